"""The matrices that hypernetworks edit, found by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vllm_edit.errors import EditError
from vllm_edit.models.base import Base

T = TypeVar("T")


def last_matrices(base: Base, layers: int) -> tuple[str, ...]:
    """The MLP matrices of the last `layers` blocks, in the order in which they run.

    Raises:
        EditError: the model has fewer blocks.
    """
    return tuple(name for block in _last(base.layout.matrices, layers, base) for name in block)


def last_down_projections(base: Base, layers: int) -> tuple[str, ...]:
    """The MLP down projections of the last `layers` blocks, in the order in which they run.

    Raises:
        EditError: the model has fewer blocks.
    """
    return tuple(_last(base.layout.down, layers, base))


def _last(blocks: Sequence[T], layers: int, base: Base) -> Sequence[T]:
    if not 0 < layers <= len(blocks):
        raise EditError(f"expected 1 to {len(blocks)} layers of {base.name}, got {layers}")
    return blocks[-layers:]
