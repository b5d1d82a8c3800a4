"""The header of a GGUF file: its metadata and the names of its tensors, without its weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package can also read it, but makes an
object for every token, which takes 50 seconds for a vocabulary of 262,144. This reader skips arrays.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_edit.errors import EditError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)

Value = str | int | float | bool


@dataclass(frozen=True)
class GgufHeader:
    """metadata: key → number, truth value or text; only the length of an array. tensors: names of the tensors."""

    metadata: Mapping[str, Value]
    tensors: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> GgufHeader:
        """Read the header of the file.

        Raises:
            EditError: the file is not a GGUF file of version 2 or 3, or ends within its header.
        """
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).header()
        except (struct.error, UnicodeDecodeError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise EditError(
                f"{path} is damaged: its metadata cannot be read ({error}); fetch the file again"
            ) from error


class _Cursor:
    """A position in the mapped file, which each read advances."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def header(self) -> GgufHeader:
        magic, version, tensors, keys = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in _VERSIONS:
            got = f"version {version}" if magic == b"GGUF" else f"a file that begins with {magic!r}"
            raise EditError(f"{self._path} cannot be read: expected a GGUF file of version 2 or 3; got {got}")
        metadata = {self._text(): self._value() for _ in range(keys)}
        return GgufHeader(metadata, tuple(self._tensor_name() for _ in range(tensors)))

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _text(self) -> str:
        (length,) = self._take("<Q")
        (octets,) = self._take(f"<{length}s")
        return str(octets.decode("utf-8"))

    def _value(self) -> Value:
        (kind,) = self._take("<I")
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            return self._skip_array()
        value: int | float | bool = self._take(self._layout(kind))[0]
        return value

    def _skip_array(self) -> int:
        kind, length = self._take("<IQ")
        if kind in _SCALARS:
            self._at += int(length) * struct.calcsize(_SCALARS[kind])
            return int(length)
        for _ in range(length):
            if kind == _TEXT:
                (size,) = self._take("<Q")
                self._at += size
            elif kind == _ARRAY:
                self._skip_array()
            else:
                self._layout(kind)
        return int(length)

    def _layout(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _tensor_name(self) -> str:
        name = self._text()
        (dimensions,) = self._take("<I")
        self._take(f"<{dimensions}QIQ")  # shape, type, offset
        return name
