"""Batches texts of similar length, each under its own patch; a common beginning is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_edit.models.shared_prefix import LEAST, sharing

_FILLING, _LEAST_FILLED = 16, 0.75
"""From 16 rows on a batch ends where more than a quarter of its shortest row would be padding: more rows hardly
use a processor better."""


@dataclass(frozen=True)
class Together:
    """The texts of one batch.

    `rows` are their indices. `shared` is the number of common first tokens, which are read once; 0 if the batch may mix
    patches.
    """

    rows: list[int]
    shared: int = 0


def together(
    texts: Sequence[Sequence[int]],
    owners: Sequence[object],
    size: int,
    *,
    weights: Sequence[int] | None = None,
    most: int | None = None,
    own: Sequence[int] | None = None,
) -> Iterator[Together]:
    """Batches of at most `size` texts whose `weights` sum to at most `most` (but at least one text).

    Args:
        texts: token ids of each text.
        owners: each text's patch; a beginning is shared only within one patch.
        size: maximum number of texts in a batch.
        weights: each text's weight.
        most: maximum sum of weights in a batch.
        own: number of first tokens of each text that may be shared; None for no sharing.
    """
    groups = [(list(range(len(texts))), 0)] if own is None else _groups(texts, own, owners)
    for numbers, shared in groups:
        batch: list[int] = []
        weight = 0
        for number in sorted(
            numbers, key=lambda number: -len(texts[number])
        ):  # longest first: memory runs out at once or never
            added = weights[number] if weights is not None else 0
            full = len(batch) == size or (most is not None and weight + added > most)
            mostly_padding = batch and len(texts[number]) < _LEAST_FILLED * len(texts[batch[0]])
            if batch and (full or (len(batch) >= _FILLING and mostly_padding)):
                yield Together(batch, shared)
                batch, weight = [], 0
            batch.append(number)
            weight += added
        if batch:
            yield Together(batch, shared)


def _groups(
    texts: Sequence[Sequence[int]], own: Sequence[int], owners: Sequence[object]
) -> list[tuple[list[int], int]]:
    """Groups with a common beginning, each of one owner, and one group of all the other texts."""
    by_owner: dict[int, list[int]] = {}
    for number, owner in enumerate(owners):
        by_owner.setdefault(id(owner), []).append(number)
    rest: list[int] = []
    groups: list[tuple[list[int], int]] = []
    for numbers in by_owner.values():
        long = [number for number in numbers if own[number] >= LEAST]
        rest += [number for number in numbers if own[number] < LEAST]
        for group, shared in sharing(texts, own, long):
            if shared:
                groups.append((group, shared))
            else:
                rest += group
    return [*groups, (rest, 0)]
