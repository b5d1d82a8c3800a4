"""A ramp schedule: the shares that a rollout passes through by itself, and how long it stays at each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Self

from vllm_edit.errors import EditError
from vllm_edit.names import shown
from vllm_edit.rollout.buckets import BUCKETS, buckets_of

_MOST_STEPS = 32
_LONGEST_S = 365 * 86400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_STEP = re.compile(
    rf"(?P<percent>\d{{1,3}}(?:\.\d{{1,6}})?)\s?%?(?:\s+(?P<count>\d{{1,8}})(?P<unit>[{''.join(_UNITS)}]))?"
)


@dataclass(frozen=True)
class Step:
    """A share in buckets (of 10,000), and for how many seconds it holds; None for ever."""

    share: int
    seconds: int | None = None

    def __str__(self) -> str:
        """The step as a person writes it."""
        percent = f"{self.share * 100 / BUCKETS:g}%"
        if self.seconds is None:
            return percent
        unit = next(unit for unit in reversed(_UNITS) if self.seconds % _UNITS[unit] == 0 or unit == "s")
        return f"{percent} {self.seconds // _UNITS[unit]}{unit}"


@dataclass(frozen=True)
class Schedule:
    """The steps of a ramp, in order. A rollout has one only while it follows it.

    Attributes:
        steps: The shares rise from step to step; only the last has no duration.
        place: Index of the present step.
        since: When the present step began, by the registry's clock; None before the first step.
        held: The limit that holds the schedule at the present step, if any.
    """

    steps: tuple[Step, ...]
    place: int = 0
    since: datetime | None = None
    held: str | None = None

    def __post_init__(self) -> None:
        shares = [step.share for step in self.steps]
        if not 1 <= len(self.steps) <= _MOST_STEPS or not 0 <= self.place < len(self.steps):
            raise EditError(f"expected a schedule of 1 to {_MOST_STEPS} steps; got {len(self.steps)}")
        if any(not 0 <= share <= BUCKETS for share in shares):
            raise EditError(f"expected shares of 0 to 100 per cent; got the schedule {self}")
        if any(later <= earlier for earlier, later in pairwise(shares)):
            raise EditError(f"expected shares that rise from step to step; got the schedule {self}")
        *others, last = (step.seconds for step in self.steps)
        if last is not None or any(seconds is None or not 0 < seconds <= _LONGEST_S for seconds in others):
            raise EditError(
                "expected a duration of at most a year at every step but the last, like 1% 1h, 10% 1d, 50%; got the "
                f"schedule {self}"
            )

    def __str__(self) -> str:
        """The schedule as a person writes it."""
        return ", ".join(map(str, self.steps))

    @property
    def share(self) -> int:
        """The present step's share, in buckets."""
        return self.steps[self.place].share

    @property
    def next_at(self) -> datetime | None:
        """When the next step is due; None after the last step, and while a limit holds the schedule."""
        seconds = self.steps[self.place].seconds
        if seconds is None or self.since is None or self.held is not None:
            return None
        return self.since + timedelta(seconds=seconds)

    def due(self, now: datetime) -> bool:
        return self.next_at is not None and self.next_at <= now

    def begun(self, now: datetime) -> Self:
        """The schedule at its first step."""
        return replace(self, place=0, since=now, held=None)

    def advanced(self, now: datetime) -> Self:
        """The schedule at its next step, which begins now: a step that begins late is as long as the others."""
        return replace(self, place=self.place + 1, since=now)

    def as_record(self) -> ScheduleRecord:
        following = self.steps[self.place + 1].share * 100 / BUCKETS if self.place + 1 < len(self.steps) else None
        return ScheduleRecord(str(self), self.share * 100 / BUCKETS, self.since, following, self.next_at, self.held)


@dataclass(frozen=True)
class ScheduleRecord:
    """A `Schedule` as JSON shows it: steps as a person writes them, shares in per cent.

    Attributes:
        next: The next step's share; None at the last step.
        next_at: When it is due; None if the schedule has ended or is held.
    """

    steps: str
    share: float
    since: datetime | None
    next: float | None
    next_at: datetime | None
    held: str | None


def parse_schedule(text: str) -> Schedule:
    """Parse a schedule: `1% 1h, 10% 1d, 50%`; `10` alone is a schedule of one step.

    Raises:
        EditError: a step cannot be read, or the steps are no ramp.
    """
    steps = []
    for part in text.split(","):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise EditError(f"expected a share like 10, or a schedule like '1% 1h, 10% 1d, 50%'; got {shown(text)}")
        seconds = None if match["count"] is None else int(match["count"]) * _UNITS[match["unit"]]
        steps.append(Step(buckets_of(float(match["percent"])), seconds))
    return Schedule(tuple(steps))
