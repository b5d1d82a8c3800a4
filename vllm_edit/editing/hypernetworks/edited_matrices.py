"""The matrices that a hypernetwork edits, found by structure."""

from __future__ import annotations

from vllm_edit.errors import EditError
from vllm_edit.models.base import Base


def last_matrices(base: Base, layers: int) -> tuple[str, ...]:
    """The MLP matrices of the last `layers` blocks, in the order in which they run.

    Raises:
        EditError: the model has fewer blocks.
    """
    blocks = base.layout.matrices
    if not 0 < layers <= len(blocks):
        raise EditError(f"expected 1 to {len(blocks)} layers of {base.name}, got {layers}")
    return tuple(name for block in blocks[-layers:] for name in block)
