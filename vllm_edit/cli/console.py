"""Rich's console for the output of commands: control sequences in text of clients and files have no effect."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_edit.text.printable import printable


class SafeConsole(Console):
    """Prints strings with control characters escaped, and does not replace `:names:` by emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **options)
