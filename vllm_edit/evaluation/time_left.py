"""How long the rest of a long piece of work takes, from how long this process took for what it has done."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """done: of `total`, what was there before this process began and took it no time."""

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._before, self._clock = total, done, clock
        self._started = clock()

    def skip(self, count: int) -> None:
        """So many more were there before this process began."""
        self._before += count

    def text(self, done: float) -> str:
        """What is left when `done` is done, such as "about 12 min left"; empty while nothing is known."""
        if done <= self._before:
            return ""
        seconds = (self._clock() - self._started) * (self.total - done) / (done - self._before)
        return f"about {shown(seconds)} left"


def shown(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
