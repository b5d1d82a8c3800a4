"""The shadow of a rollout: a share of answered requests is answered a second time by the other arm, for nobody."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.errors import EditError
from vllm_edit.rollout.buckets import BUCKETS, buckets_of

MOST_COMPARED = 10_000
"""Comparisons that a rollout stores; then no answer is drawn any more. All of them count, in their order."""


@dataclass(frozen=True)
class Shadow:
    """What is answered a second time.

    Attributes:
        share: Buckets (of 10,000) of the answers, drawn at random.
        texts: Whether both texts are stored, and not only whether they are the same.
    """

    share: int
    texts: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= BUCKETS:
            raise EditError(f"expected a shadow of more than 0 to 100 per cent; got {self.share * 100 / BUCKETS:g}")

    def as_record(self) -> ShadowRecord:
        return ShadowRecord(self.share * 100 / BUCKETS, self.texts)


@dataclass(frozen=True)
class ShadowRecord:
    """A `Shadow` as JSON shows it, in per cent."""

    percent: float
    texts: bool


def shadow_of(percent: float | None, *, texts: bool) -> Shadow | None:
    """Return the shadow of `percent` of the answers; None for none or 0 per cent.

    Raises:
        EditError: the percentage is invalid, or texts are asked for without answers.
    """
    share = 0 if percent is None else buckets_of(percent)
    if texts and not share:
        raise EditError("texts of a shadow are stored only with a shadow; expected a percentage of more than 0")
    return Shadow(share, texts) if share else None
