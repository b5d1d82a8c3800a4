"""Rich's console for what commands print: text of clients and files is shown, never obeyed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_edit.printable import printable


class SafeConsole(Console):
    """Strings are printed with their control characters escaped, and `:names:` in them are no emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)
