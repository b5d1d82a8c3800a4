"""A worker: compiles the patches of a registry's queue, one at a time, with one loaded model.

A job is done once, also if workers are killed at any moment. Before a patch is saved, its name is noted in the job; a
later attempt finds the saved patch, and continues with its gate or, if the verdict is there too, with the end.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from threading import Event

from vllm_edit.artefacts.reports import GateReport
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable
from vllm_edit.progress import Progress
from vllm_edit.registry.jobs import LEASE_S, Claim, Job, JobLost
from vllm_edit.release.lease import Lease, Stopped
from vllm_edit.release.pipeline import Outcome, Pipeline

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Time between two looks at the queue: the end of a lease is no change of the registry."""
_RETRY_S = 5.0
"""Pause after an attempt that failed because the store or the registry could not be used."""


class Worker:
    """Works on the jobs of a store's registry.

    Example:
        >>> Worker(Pipeline.open("my-store")).run(drain=True)
    """

    def __init__(self, pipeline: Pipeline, *, lease_s: float = LEASE_S, stop: Event | None = None) -> None:
        """A worker of this process.

        Args:
            pipeline: the store, with its loaded base.
            lease_s: seconds without a heartbeat after which another worker may take over its job.
            stop: when it is set, the current job returns to the queue at its next step, and `run` returns.

        Raises:
            Incompatible: the model is not the store's base, so every job would fail.
        """
        pipeline.check_model()
        self._pipeline, self._lease_s, self._stop = pipeline, lease_s, stop or Event()
        self._jobs = pipeline.store.registry.jobs
        self.holder = f"{socket.gethostname()[:100].replace(':', '-')}:{os.getpid()}:{secrets.token_hex(8)}"

    def run(
        self,
        *,
        drain: bool = False,
        ended: Callable[[Job], object] = lambda _: None,
        progress: Progress | None = None,
    ) -> None:
        """Work on jobs until `stop` is set.

        Args:
            drain: return when no job is free, and do not wait for a store or registry that cannot be used.
            ended: called with each job that this worker has ended.
            progress: called with (step, completed units, total units) of the current job.

        Raises:
            EditError: the registry cannot be used at the start. Later the worker waits for it, unless it drains.
        """
        registry = self._pipeline.store.registry
        generation = registry.generation()
        while not self._stop.is_set():
            try:
                claim = self._jobs.claim(self.holder, self._lease_s)
                if claim is not None:
                    job = self.work(claim, progress)
                    if job is not None:
                        ended(job)
                elif drain:
                    return
                else:
                    registry.wait_for_change(generation, _LOOK_S)
                    generation = registry.generation()
            except Unavailable as error:
                if drain:
                    raise
                logger.error("%s", error)
                self._stop.wait(_RETRY_S)

    def work(self, claim: Claim, progress: Progress | None = None) -> Job | None:
        """Work on a claimed job. Return it if this worker ended it; None if it was lost or returned to the queue.

        Args:
            claim: the claim.
            progress: called with (step, completed units, total units).

        Raises:
            Unavailable: the store or the registry cannot be used; the job will be tried again.
        """
        id = claim.job.id
        with Lease(self._jobs, claim, self._stop, progress) as lease:
            try:
                outcome = self._compiled(claim, lease.report)
                return self._jobs.finish(claim, outcome.name, outcome.as_record() | {"gate": outcome.gate.as_record()})
            except JobLost as error:
                logger.warning("%s", error)
                return None
            except Stopped:
                logger.warning("job %s returns to the queue: this worker was stopped", id)
                self._jobs.release(claim, counts=False)
                return None
            except (Unavailable, Corrupt) as error:  # the machine's fault, not the patch's
                self._jobs.release(claim, counts=True)
                raise Unavailable(f"job {id} returns to the queue: {error}") from error
            except EditError as error:
                return self._failed(claim, "; ".join(str(error).splitlines()))
            except Exception as error:  # the next job may be fine
                logger.exception("job %s failed", id)
                return self._failed(claim, f"the worker failed ({type(error).__name__}); its log has the reason")
            except BaseException:  # Ctrl-C
                self._jobs.release(claim, counts=False)
                raise

    def _failed(self, claim: Claim, reason: str) -> Job | None:
        try:
            return self._jobs.fail(claim, reason)
        except JobLost as error:
            logger.warning("%s", error)
            return None

    def _compiled(self, claim: Claim, progress: Progress) -> Outcome:
        """Compile, save and judge; steps that an earlier attempt has completed are not repeated."""
        pipeline, request = self._pipeline, claim.request
        if claim.job.name is not None and (found := self._saved(claim.job, claim.job.name, progress)) is not None:
            return found
        started = time.perf_counter()
        compiled = pipeline.compile(request.patch, request.method, request.settings, progress)
        self._jobs.note_name(claim, compiled.name)
        seconds = time.perf_counter() - started
        return pipeline.judge(compiled, seconds, progress)

    def _saved(self, job: Job, name: str, progress: Progress) -> Outcome | None:
        """The outcome of the patch that an earlier attempt of the job has saved; None if it did not."""
        store = self._pipeline.store
        try:
            entry, compiled = store.entry(name), store.load(name, signed=False)
        except NotFound:
            return None
        seconds = compiled.report.seconds or 0.0
        verdicts = [record for record in store.records(name, "gate") if record.at >= job.created_at]
        if entry.status == "ungated" or not verdicts:
            return self._pipeline.judge_saved(compiled, seconds, progress)
        return Outcome(name, compiled, GateReport.of(verdicts[-1].data), seconds)
