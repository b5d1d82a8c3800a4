"""Which texts go through a model together: of like length, each under its own patch, a common beginning read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_edit.models.shared_prefix import LEAST, sharing

_FILLING, _LEAST_FILLED = 16, 0.75
"""A batch of so many rows ends where more than a quarter of its shortest row would be padding: so many use a processor
nearly as well as more would."""


@dataclass(frozen=True)
class Together:
    """rows: numbers of the texts of a batch. shared: first tokens that they all have in common and that are read once;
    0 where rows of different patches may be together."""

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
    """Batches of at most `size` texts, and of at most `most` in the sum of their `weights` (at least one text).

    owners: each text's patch; texts with a common beginning are read as such only under one patch. own: how many first
    tokens of each text may be read so; None: none.
    """
    groups = [(list(range(len(texts))), 0)] if own is None else _groups(texts, own, owners)
    for numbers, shared in groups:
        batch: list[int] = []
        weight = 0
        for number in sorted(numbers, key=lambda number: -len(texts[number])):  # memory runs out at once or never
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
