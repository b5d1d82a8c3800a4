"""The shadow arm: the server repeats answers by a rollout's other arm, after its clients have theirs.

The engine is asked one request at a time. With vLLM's `--scheduling-policy priority` it has the lowest priority of all.
Else it begins only while the server answers nobody, and the next client's request cancels it (vLLM refuses a priority
under its default policy). An adapter is loaded for it only into a free place of the engine. A failure is counted and
logged; no client sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import Protocol

from vllm_edit.errors import EditError
from vllm_edit.evaluation.judging import unchanged
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.shadow_report import ShadowPair
from vllm_edit.serving import bodies
from vllm_edit.serving.answer_text import text_of_body
from vllm_edit.serving.inner_request import answer_of
from vllm_edit.serving.prepare import LONG
from vllm_edit.serving.service import Holder, Service
from vllm_edit.serving.shadow_body import is_greedy, shadow_body
from vllm_edit.serving.shadow_copy import ShadowCopy
from vllm_edit.serving.single_flight import retrieve_error
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.usage import tokens_of
from vllm_edit.serving.watcher import FAILURES

logger = logging.getLogger(__name__)

_TIMEOUT_S = 60.0
_COUNT_S = 2.0  # between two writes of what was lost


class ShadowLog(Protocol):
    """The part of the registry that shadows are written to."""

    def add(self, rollout: str, pair: ShadowPair, server: str) -> bool: ...
    def lose(self, rollout: str, owner: str, dropped: int, failed: int) -> None: ...


class NothingToCompare(EditError):
    """The request is not repeated, or the client's answer has no text."""


class ShadowArm:
    """The shadow arm of one server. `run` is its background task.

    prioritised: the engine schedules by priority. server: the server's name for people. rest_s: after a failure.
    """

    def __init__(
        self, holder: Holder, service: Service, log: ShadowLog, *, prioritised: bool, server: str, rest_s: float = 1.0
    ) -> None:
        self._holder, self._service, self._log = holder, service, log
        self._prioritised, self._server, self._rest_s = prioritised, server, rest_s
        self._queue = service.shadows
        self._owner = secrets.token_hex(16)
        self._salt = secrets.token_hex(16)  # of the prefix cache: shadows and clients share no prefix
        self._threads = Threads(1)
        self._written: dict[str, tuple[int, int]] = {}
        self._without_place: set[str] = set()  # rollouts for which that is logged

    async def run(self) -> None:
        """Repeat answers again and again; never returns."""
        try:
            while True:
                copy = await self._queue.take(lambda: self.idle, _COUNT_S)
                try:
                    if copy is not None:
                        await self.repeat(copy)
                    await self.count()
                except Exception as error:  # catch everything: if this task died, nothing would be repeated any more
                    unforeseen = None if isinstance(error, FAILURES) else error
                    logger.warning("shadows are not written: %s", error, exc_info=unforeseen)
                    await asyncio.sleep(self._rest_s)
        finally:
            self._queue.follow(())
            with contextlib.suppress(*FAILURES):
                await self.count()

    @property
    def idle(self) -> bool:
        """True if an answer may be repeated now."""
        return self._prioritised or not self._service.answers.running

    async def repeat(self, copy: ShadowCopy) -> None:
        """Repeat an answer, compare both, and log the result.

        Raises:
            EditError: the registry cannot be written; the result is counted as dropped.
        """
        rollout = copy.shadowed.rollout
        if rollout in self._queue.full:
            self._queue.drop(rollout)
            return
        task = asyncio.create_task(self._pair(copy))
        task.add_done_callback(retrieve_error)  # of a task that is interrupted, nobody asks for it
        if not await self._queue.run(copy, task, interruptible=not self._prioritised):
            return
        error = task.exception()
        if isinstance(error, NothingToCompare):
            self._queue.drop(rollout)
        elif error is not None:
            self._queue.fail(rollout)
            unforeseen = None if isinstance(error, (*FAILURES, TimeoutError)) else error
            why = str(error) or "too late"
            logger.warning("rollout %s: the other arm repeats no answer: %s", rollout, why, exc_info=unforeseen)
            await asyncio.sleep(self._rest_s)  # an arm that fails is not asked for each request
        else:
            await self._write(rollout, task.result())

    async def count(self) -> None:
        """Write how many answers were lost, where that has changed.

        Raises:
            EditError: the registry cannot be written; the next call tries again.
        """
        for rollout in {*self._queue.dropped, *self._queue.failed}:
            lost = (self._queue.dropped[rollout], self._queue.failed[rollout])
            if self._written.get(rollout) != lost:
                await self._threads.run(self._log.lose, rollout, self._owner, *lost)
                self._written[rollout] = lost

    async def _write(self, rollout: str, pair: ShadowPair) -> None:
        try:
            more = await self._threads.run(self._log.add, rollout, pair, self._server)
        except BaseException:
            self._queue.drop(rollout)
            raise
        self._service.metrics.shadows.labels("same" if pair.same else "changed").inc()
        if not more:
            self._queue.full.add(rollout)

    async def _pair(self, copy: ShadowCopy) -> ShadowPair:
        """Repeat the answer; raise `EditError` if it has nothing to compare, or the other arm has no answer."""
        answer, shadow = copy.answer, copy.shadowed.shadow
        text = text_of_body(copy.route, copy.content_type, copy.content)
        body = shadow_body(copy.route, copy.raw)
        if answer is None or text is None or body is None:
            raise NothingToCompare("there is nothing to compare")
        greedy, begun = is_greedy(body), time.perf_counter()
        async with asyncio.timeout(_TIMEOUT_S):
            repeated, tokens = await self._ask(copy, body)
        return ShadowPair(
            answer.id,
            copy.shadowed.side,
            unchanged(repeated, text),
            greedy,
            seconds=answer.seconds,
            shadow_seconds=time.perf_counter() - begun,
            tokens=answer.completion_tokens,
            shadow_tokens=tokens,
            text=text if shadow.texts else None,
            shadow_text=repeated if shadow.texts else None,
        )

    async def _ask(self, copy: ShadowCopy, body: bodies.Body) -> tuple[str, int | None]:
        """The other arm's text, and its number of tokens."""
        arm = copy.shadowed.other
        self._refuse_to_replace(copy.shadowed.rollout, arm)
        choice = Choice(arm.mode, arm.name, copy.tenant, "SHADOW")
        text, answer = await answer_of(
            self._holder,
            self._service,
            choice,
            copy.route,
            body,
            salt=self._salt,
            prioritised=self._prioritised,
            long=len(copy.raw) > LONG,
        )
        return text, tokens_of(answer)[1]

    def _refuse_to_replace(self, rollout: str, arm: Arm) -> None:
        """Raise `NothingToCompare` if the arm's adapter would take the place of another in the engine."""
        residency = self._service.residency
        full = len(residency.names) >= residency.capacity
        if arm.mode == "weights" and arm.name not in residency.names and full:
            if rollout not in self._without_place:
                self._without_place.add(rollout)
                logger.warning(
                    "rollout %s: the engine has no free place for %s, so its shadows are dropped; restart with more "
                    "--max-cpu-loras",
                    rollout,
                    arm.name,
                )
            raise NothingToCompare("the engine has no free place for the arm's adapter")
