"""vLLM's interfaces and internals. Importing this imports neither vLLM nor torch."""
