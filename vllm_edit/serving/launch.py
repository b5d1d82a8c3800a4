"""`python -m vllm_edit.serving.launch serve MODEL …`: vLLM's own command line, under either of its distributions."""

from __future__ import annotations

from vllm_edit.serving.compat import version


def main() -> None:
    version.answer_for_vllm()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
