"""Which edits: a seeded draw of CounterFact's facts, one of each subject, in batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.public.sets import apart
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.patch import Patch


def drawn_batches(facts: Sequence[Edit], count: int, size: int, seed: int) -> list[Patch]:
    """The first `count` batches of `size` edits. More batches of the same size and seed begin with the same ones.

    Raises:
        EditError: the facts have too few subjects.
    """
    drawn = apart(random.Random(f"lifelong:{seed}").sample(list(facts), k=len(facts)))
    if len(drawn) < count * size:
        raise EditError(
            f"{count} batches of {size} edits need {count * size} subjects, the facts have {len(drawn)}: ask for fewer "
            "(--batches, --size)"
        )
    return [
        Patch(name=f"batch-{number:04d}", edits=tuple(drawn[number * size : (number + 1) * size]))
        for number in range(count)
    ]
