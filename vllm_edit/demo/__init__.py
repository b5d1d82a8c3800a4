"""The demo: the whole product, once through, on this machine, with the embedded model. `vllm-edit demo` runs it."""
