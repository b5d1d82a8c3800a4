"""All code that touches vLLM's internals. Each file states the upstream issue, the versions, and when to delete it."""
