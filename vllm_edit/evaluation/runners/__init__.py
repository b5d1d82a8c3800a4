"""Engines that an evaluation can ask. `hf` needs no vLLM, `vllm` imports it; neither is imported here."""
