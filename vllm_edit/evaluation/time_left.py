"""Estimates the time left of a long run from this process's progress."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """Estimates the time left. `done` of `total` units were finished before this process began."""

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._before, self._clock = total, done, clock
        self._started = clock()

    def skip(self, count: int) -> None:
        """Count `count` more units as finished before this process began."""
        self._before += count

    def text(self, done: float) -> str:
        """The time left after `done` units, such as "about 12 min left"; empty before the first unit."""
        if done <= self._before:
            return ""
        seconds = (self._clock() - self._started) * (self.total - done) / (done - self._before)
        return f"about {shown(seconds)} left"


def shown(seconds: float) -> str:
    """A readable duration: 40 s, 12 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
