"""`python -m vllm_edit.serving.launch serve MODEL …`: vLLM's own command line, under either of its distributions."""

from __future__ import annotations

import logging

from vllm_edit.engine.compat import version
from vllm_edit.errors import EditError
from vllm_edit.text.printable import printable

logger = logging.getLogger(__name__)


def main() -> None:
    """Run vLLM's command line. An `EditError` is printed in one line, and the exit code is 1."""
    try:
        version.answer_for_vllm()
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()
    except EditError as error:
        logger.debug("refused", exc_info=True)
        raise SystemExit(printable(f"vllm-edit: {error}", keep="\n")) from None


if __name__ == "__main__":
    main()
