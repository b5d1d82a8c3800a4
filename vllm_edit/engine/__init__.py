"""vLLM's internals, apart from serving. Importing this imports neither vLLM nor torch."""
