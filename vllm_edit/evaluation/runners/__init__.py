"""Engines for evaluations: `hf` needs no vLLM, `vllm` imports it. Neither is imported here."""
