"""One protocol's batches, published and asked one after the other, into a record."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.lifelong.answers import Share, asked, perplexity_of
from benchmarks.lifelong.protocols import Publisher
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.runner import Runner
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress

_FIRST, _EVERY = (1, 2, 5), 10


@dataclass(frozen=True)
class Published:
    """What was measured after one more batch.

    Attributes:
        batches, edits: published so far.
        missed: edits of the batch that exceed a limit of the method's.
        at_edit: metric → share, of the batch's edits.
        so_far: the same of a sample of all edits so far; None where no milestone is.
        drift: relative change of perplexity; None where no milestone is.
        norm: ‖ΔW‖ / ‖W‖ over the edited modules; None where no milestone is.
    """

    batches: int
    edits: int
    missed: int
    at_edit: Mapping[str, Share]
    so_far: Mapping[str, Share] | None = None
    drift: float | None = None
    norm: float | None = None

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "at_edit": _pairs(self.at_edit), "so_far": self.so_far and _pairs(self.so_far)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Published:
        so_far = record["so_far"] and _shares(record["so_far"])
        return cls(**{**record, "at_edit": _shares(record["at_edit"]), "so_far": so_far})


def _pairs(shares: Mapping[str, Share]) -> dict[str, list[int]]:
    return {metric: [share.right, share.asked] for metric, share in shares.items()}


def _shares(pairs: Mapping[str, Sequence[int]]) -> dict[str, Share]:
    return {metric: Share(*pair) for metric, pair in pairs.items()}


def milestones(batches: int) -> list[int]:
    """The numbers of batches after which a sample of all edits is asked: 1, 2, 5, 10, 20, 30, … up to `batches`."""
    return [number for number in (*_FIRST, *range(_EVERY, batches + 1, _EVERY)) if number <= batches]


def recorded(record: Record, batches: int) -> list[Published]:
    """What a record holds of the first batches."""
    return [Published.of_record(entry) for entry in record.entries[:batches]]


@dataclass(frozen=True)
class Run:
    """What all protocols have in common.

    runner: asks the base each question once. sample: edits that are asked at a milestone.
    """

    base: Base
    runner: Runner
    batches: Sequence[Patch]
    passages: Sequence[str]
    sample: int
    seed: int

    def published(self, publisher: Publisher, record: Record, progress: Progress) -> None:
        """Publish all batches, and record each. What the record holds is not asked again."""
        for number, batch in enumerate(self.batches):
            missed = publisher.publish(batch, progress)
            if number < len(record.entries):
                continue
            progress("asking", number, len(self.batches))
            record.add(self._asked(number, missed, publisher.delta).as_record())
            progress("batches", number + 1, len(self.batches))

    def _asked(self, number: int, missed: int, delta: Delta) -> Published:
        edits = [edit for batch in self.batches[: number + 1] for edit in batch.edits]
        own = range(len(edits) - len(self.batches[number].edits), len(edits))
        at_edit = asked(self.runner, delta, edits, own)
        if number + 1 not in milestones(len(self.batches)):
            return Published(number + 1, len(edits), missed, at_edit)
        order = random.Random(f"asked:{self.seed}:{number}").sample(range(len(edits)), k=min(self.sample, len(edits)))
        so_far = asked(self.runner, delta, edits, set(order))
        drift = perplexity_of(self.runner, self.passages, delta) / self._perplexity - 1
        return Published(number + 1, len(edits), missed, at_edit, so_far, drift, self._norm(delta))

    @cached_property
    def _perplexity(self) -> float:
        """The base's perplexity of the passages."""
        return perplexity_of(self.runner, self.passages)

    def _norm(self, delta: Delta) -> float:
        """‖ΔW‖ / ‖W‖ (Frobenius) over the edited modules."""
        weights = [linear_weight(find_module(self.base.model, name)).detach().float() for name in delta.parts]
        whole = math.hypot(*(float(weight.norm()) for weight in weights))
        return math.hypot(*(part.norm() for part in delta.parts.values())) / whole
