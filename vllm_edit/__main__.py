"""`python -m vllm_edit`: the same as `vllm-edit`."""

from vllm_edit.cli import main

if __name__ == "__main__":
    main()
