"""The lease of a job while a worker works on it: a thread sends heartbeats with the progress."""

from __future__ import annotations

import logging
from threading import Event, Thread
from types import TracebackType
from typing import Self

from vllm_edit.errors import EditError
from vllm_edit.progress import Progress, silent
from vllm_edit.registry.jobs import Claim, JobLost, Jobs

logger = logging.getLogger(__name__)

_LONGEST_BEAT_S = 2.0
"""A cancelled job is noticed, and progress is visible, after this time at most."""


class Stopped(Exception):
    """The worker was asked to stop."""


class Lease:
    """Extends a claim's lease inside a `with` block. The work reports its progress to `report`, which can end it."""

    def __init__(self, jobs: Jobs, claim: Claim, stop: Event, progress: Progress | None = None) -> None:
        """The lease of a claim.

        Args:
            jobs: the registry's jobs.
            claim: the claim.
            stop: set from outside to stop the work.
            progress: called with what is reported.
        """
        self._jobs, self._claim, self._stop, self._progress = jobs, claim, stop, progress or silent
        self._reported = ("", 0, 0)
        self._ended, self._lost = Event(), Event()
        self._thread = Thread(target=self._beat, name=f"lease of {claim.job.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, step: str, done: int, total: int) -> None:
        """Report progress.

        Raises:
            JobLost: the job was cancelled, or another worker has claimed it.
            Stopped: the worker was asked to stop.
        """
        self._reported = (step, done, total)
        self._progress(step, done, total)
        if self._lost.is_set():
            raise JobLost(f"job {self._claim.job.id} was cancelled, or another worker has claimed it")
        if self._stop.is_set():
            raise Stopped

    def _beat(self) -> None:
        """Send heartbeats. While the registry is down the work goes on: its last write shows who has the job."""
        while not self._ended.wait(min(_LONGEST_BEAT_S, self._claim.lease_s / 4)):
            try:
                if not self._jobs.beat(self._claim, *self._reported):
                    self._lost.set()
                    return
            except EditError as error:
                logger.warning("no heartbeat of job %s: %s", self._claim.job.id, error)
