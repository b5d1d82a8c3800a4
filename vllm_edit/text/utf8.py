"""Text files as users write them: UTF-8, with or without a byte order mark."""

from __future__ import annotations

from pathlib import Path

from vllm_edit.errors import EditError


class NotUTF8(EditError):
    """A file in another encoding; `problem` is the message without the file's name."""

    def __init__(self, path: str | Path, line: int) -> None:
        self.problem = f"line {line}: not UTF-8; save the file in that encoding"
        super().__init__(f"{path}: {self.problem}")


def read_text(path: str | Path) -> str:
    """The file's text, with `\\n` at the end of each line.

    Raises:
        NotUTF8: naming the first line that is not UTF-8.
        OSError: the file cannot be read.
    """
    return decoded(Path(path).read_bytes(), path).replace("\r\n", "\n").replace("\r", "\n")


def decoded(content: bytes, path: str | Path, encoding: str = "utf-8-sig") -> str:
    """Decode a file's bytes. `path` is for the message; `encoding` is UTF-8, or that of a byte order mark.

    Raises:
        NotUTF8: names the first line that is not valid.
    """
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotUTF8(path, content.count(b"\n", 0, error.start) + 1) from None
