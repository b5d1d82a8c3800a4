"""A fixed split of names: the same in every process, without a random state."""

from __future__ import annotations

import zlib


def included(*parts: str, share: float) -> bool:
    """A fixed pseudo-random choice: True for `share` of all keys, the same in every process."""
    return zlib.crc32("\x1f".join(parts).encode()) % 10_000 < share * 10_000
