"""Creates stores; compiles, saves and judges patches. `vllm-edit store init` and `vllm-edit compile` call it."""
