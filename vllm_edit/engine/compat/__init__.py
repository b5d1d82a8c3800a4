"""Every touch of vLLM's internals, one file each: the upstream issue, the versions concerned, what will delete it."""
