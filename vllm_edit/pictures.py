"""Checks shared by all pictures of results."""

from __future__ import annotations

from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.files import check_folder_of

FORMATS = (".png", ".svg")


def check_drawable(path: Path) -> None:
    """Raise before anything is computed if a picture could not be written afterwards.

    Raises:
        EditError: another format than PNG or SVG, a missing folder, or no matplotlib.
    """
    if path.suffix.lower() not in FORMATS:
        raise EditError(f"expected a picture named *{' or *'.join(FORMATS)}; got {path}")
    check_folder_of(path)
    check_library("a picture")


def check_library(what: str) -> None:
    """Raise if matplotlib, an optional extra, is not installed.

    Args:
        what: the thing that needs it, for the message.

    Raises:
        EditError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise EditError(f"{what} needs matplotlib; install it with: pip install 'vllm-edit[plot]'") from None
