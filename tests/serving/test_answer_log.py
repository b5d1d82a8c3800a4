"""The log of answers: batches, a registry that fails and comes back, dropping, retention, exposures, outcomes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.errors import EditError, NotFound
from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.decision import TenantState, decide
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import UnknownAnswer
from vllm_edit.serving.admin.outcomes import Outcome, record
from vllm_edit.serving.answer import Answer, new_id
from vllm_edit.serving.answer_log import AnswerLog
from vllm_edit.serving.bodies import CHAT
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.scope import Narrowed
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.usage import Usage

THREADS = Threads(1)
SERVER = "here:1"


class Flaky:
    """A registry whose log cannot be written while it is `down`; `sizes` are those of the batches that it was sent."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self.down = registry, False
        self.error: Exception = EditError("the registry cannot be used: gone")
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.rollouts = registry.rollouts
        self.answers = self

    def add(self, found: Any) -> None:
        self.sizes.append(len(found))
        self.threads.add(threading.get_ident())
        if self.down:
            raise self.error
        self._registry.answers.add(found)

    def find(self, id: str) -> Any:
        return self._registry.answers.find(id)

    def now(self) -> datetime:
        return self._registry.now()

    def sweep(self, older_than: datetime, limit: int) -> int:
        if self.down:
            raise self.error
        return self._registry.answers.sweep(older_than, limit)


class Place:
    """A registry with a rollout at 100 %, and logs over it."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}")
        for name in (OLD, NEW):
            self.registry.add_patch(name)
            self.registry.set_status(name, "accepted")
        self.registry.create_tenant("acme")
        self.registry.publish("acme", OLD)
        self.registry.rollouts.create(rollout(metrics=(Metric("solved"),)))
        self.rollout = self.registry.rollouts.ramp("spring", 100)
        self.flaky = Flaky(self.registry)
        self.counted = CollectorRegistry()
        self.metrics = Metrics(self.counted)

    def log(self, **settings: Any) -> AnswerLog:
        return AnswerLog(self.flaky, self.metrics, server=SERVER, **settings)  # type: ignore[arg-type]

    def answer(self, user: str | None = None, **changes: Any) -> Answer:
        """An answer of the rollout if it names a user, else of the published patch."""
        state = TenantState("acme", OLD, self.rollout if user else None)
        choice = decide(state, {"x-user-id": user or ""}, {}, datetime.now(UTC))
        return replace(Answer.of(new_id(), CHAT, "acme", choice, key="0123456789ab", generation=7), **changes)

    def total(self, name: str) -> float:
        return self.counted.get_sample_value(f"vllm_edit_log_{name}_total") or 0.0

    def kept(self) -> list[str]:
        return [entry.id for entry in self.registry.answers.newest(limit=100_000)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.registry.close()


def usage(status: int | None = 200, whole: bool = True) -> Usage:
    """The row of an answer with this end."""
    made = Usage(CHAT)
    if status is not None:
        headers = [(b"content-type", b"application/json")]
        made.sent({"type": "http.response.start", "status": status, "headers": headers})
        body = b'{"usage": {"prompt_tokens": 12, "completion_tokens": 34}}'
        made.sent({"type": "http.response.body", "body": body, "more_body": not whole})
    return made


def ended(log: AnswerLog, answer: Answer, seen: Usage | None = None) -> Answer:
    log.begin(answer)
    answer.end(seen or usage())
    log.finish(answer)
    return answer


async def running(log: AnswerLog, until: Callable[[], bool]) -> None:
    """Run the background task until the condition is true."""
    task = asyncio.create_task(log.run())
    try:
        async with asyncio.timeout(60):
            while not until():
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_an_answer_is_found_from_its_beginning_and_in_the_registry_after_its_end(place: Place) -> None:
    async def steps() -> None:
        log, other = place.log(), place.log()
        answer = place.answer()
        log.begin(answer)
        assert log.get(answer.id) is answer
        assert (await log.find(answer.id)).ended is None
        assert await log.flush()
        assert place.kept() == [], "it has not ended"
        answer.end(usage())
        log.finish(answer)
        assert await log.flush()
        found = await other.find(answer.id)
        assert found == await log.find(answer.id)
        expected = {"tenant": "acme", "patch": OLD, "adapter": OLD, "mode": "weights", "reason": "TARGETING_MATCH"}
        expected |= {"key": "0123456789ab", "generation": 7, "server": SERVER, "status": 200, "ended": "whole"}
        expected |= {"prompt_tokens": 12, "completion_tokens": 34, "prompt": None, "rollout": None}
        assert expected.items() <= asdict(found).items()
        with pytest.raises(NotFound):
            await log.find("edit-0")

    asyncio.run(steps())


def test_the_subjects_in_scope_answered(place: Place) -> None:
    answer = place.answer()
    answer.narrow(Narrowed(NEW, subjects=("France",), groups=(3,)))
    entry = answer.entry(SERVER)
    assert (entry.patch, entry.adapter, entry.subjects, entry.groups) == (OLD, NEW, ("France",), (3,))
    answer.narrow(Narrowed(None, subjects=(), groups=()))
    assert (answer.patch, answer.adapter, answer.reason) == (OLD, None, "NO_SUBJECT")


def test_rows_are_written_in_batches_in_a_thread(place: Place) -> None:
    async def steps() -> list[Answer]:
        log = place.log()
        answers = [ended(log, place.answer()) for _ in range(1_200)]
        await asyncio.gather(*(log.flush() for _ in range(5)))
        return answers

    answers = asyncio.run(steps())
    assert place.flaky.sizes == [500, 500, 200]
    assert threading.get_ident() not in place.flaky.threads
    assert sorted(place.kept()) == sorted(answer.id for answer in answers)
    assert place.total("rows") == 1_200


def test_the_background_task_writes_by_itself_and_at_once_when_a_batch_is_full(place: Place) -> None:
    async def steps() -> None:
        slow = place.log(every_seconds=3_600)
        for _ in range(500):
            ended(slow, place.answer())
        await running(slow, lambda: place.total("rows") == 500)
        quick = place.log(every_seconds=0.01)
        ended(quick, place.answer())
        await running(quick, lambda: place.total("rows") == 501)

    asyncio.run(steps())


def test_a_registry_that_was_down_gets_everything_once_it_is_back(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps() -> list[Answer]:
        log = place.log(every_seconds=0.01)
        place.flaky.down = True
        answers = [ended(log, place.answer(user="ann")) for _ in range(3)]
        await running(log, lambda: len(place.flaky.sizes) >= 3)
        assert place.kept() == []
        answers.append(ended(log, place.answer()))
        place.flaky.down = False
        await running(log, lambda: place.total("rows") == 4)
        assert await log.flush(), "the task may have been stopped before it heard that it had written"
        return answers

    with caplog.at_level(logging.INFO):
        answers = asyncio.run(steps())
    assert sorted(place.kept()) == sorted(answer.id for answer in answers)
    assert place.total("dropped") == 0
    assert caplog.text.count("cannot be written") == 1, "one outage is logged once"
    assert "is written again" in caplog.text
    assert sum(arm.requests for arm in place.registry.rollouts.report("spring").traffic.values()) == 3


def test_the_log_continues_after_an_unforeseen_error(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.flaky.error = RuntimeError("the dictionary changed its size")

    async def steps() -> None:
        log = place.log(every_seconds=0.01)
        place.flaky.down = True
        ended(log, place.answer())

        def comes_back() -> bool:
            place.flaky.down = len(place.flaky.sizes) < 3
            return place.total("rows") == 1

        await running(log, comes_back)

    with caplog.at_level(logging.INFO):
        asyncio.run(steps())
    assert len(place.kept()) == 1
    assert place.total("dropped") == 0
    records = [row for row in caplog.records if "cannot be written" in row.message]
    assert len(records) == 1
    assert records[0].exc_info is not None, "it is our defect: the log says where"


def test_the_databases_clock_decides_what_a_server_sweeps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own clock may be a year ahead, and would delete all servers' answers."""

    async def steps() -> None:
        log = place.log(keep_days=30.0)
        for _ in range(3):
            ended(log, place.answer())
        await log.flush()
        assert not await log._sweep()
        assert len(place.kept()) == 3
        later = place.registry.now() + timedelta(days=31)
        monkeypatch.setattr(place.registry, "now", lambda: later)
        await log._sweep()
        assert place.kept() == []

    asyncio.run(steps())


def test_sweeping_and_closing_outlast_an_unforeseen_error(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def steps() -> None:
        place.flaky.error = RuntimeError("the dictionary changed its size")
        place.flaky.down = True
        log = place.log(every_seconds=0.01)
        await running(log, lambda: "old answers cannot be deleted" in caplog.text)
        ended(log, place.answer())
        await log.close()

    asyncio.run(steps())
    assert place.total("dropped") == 1


def test_a_waiter_for_a_failed_try_does_not_try_again(place: Place) -> None:
    async def steps() -> list[bool]:
        log = place.log()
        place.flaky.down = True
        ended(log, place.answer())
        return await asyncio.gather(*(log.flush() for _ in range(10)))

    assert asyncio.run(steps()) == [False] * 10
    assert len(place.flaky.sizes) == 1


def test_while_the_registry_is_down_the_oldest_are_dropped_and_counted(place: Place) -> None:
    async def steps() -> list[Answer]:
        log = place.log(queued=10)
        place.flaky.down = True
        answers = [ended(log, place.answer()) for _ in range(12)]
        assert not await log.flush()
        answers += [ended(log, place.answer()) for _ in range(3)]
        place.flaky.down = False
        assert await log.flush()
        return answers

    answers = asyncio.run(steps())
    assert sorted(place.kept()) == sorted(answer.id for answer in answers[5:])
    assert place.total("dropped") == 5


def test_a_batch_whose_write_was_not_heard_of_is_sent_again(place: Place) -> None:
    async def steps() -> None:
        log = place.log()
        ended(log, place.answer(user="ann"))
        writing, release = threading.Event(), threading.Event()
        add = place.flaky.add

        def slow(found: Any) -> None:
            add(found)
            writing.set()
            release.wait(60)

        place.flaky.add = slow  # type: ignore[method-assign]
        task = asyncio.create_task(log.flush())
        await asyncio.to_thread(writing.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        place.flaky.add = add  # type: ignore[method-assign]
        await log.close()

    asyncio.run(steps())
    assert place.flaky.sizes == [1, 1]
    assert len(place.kept()) == 1
    assert sum(arm.requests for arm in place.registry.rollouts.report("spring").traffic.values()) == 1


def test_closing_writes_waiting_rows_and_counts_rows_that_cannot_be_written(place: Place) -> None:
    async def steps() -> None:
        log = place.log()
        ended(log, place.answer())
        await log.close()
        assert len(place.kept()) == 1
        ended(log, place.answer())
        place.flaky.down = True
        await log.close()

    asyncio.run(steps())
    assert len(place.kept()) == 1
    assert place.total("dropped") == 1


def test_a_row_that_no_database_takes_does_not_hold_up_the_others(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = place.answer(user="ann")
    assert foreign.assignment is not None
    foreign.assignment = replace(foreign.assignment, rollout="of-another-registry")

    async def steps() -> None:
        log = place.log()
        for answer in (place.answer(user="bob"), foreign, place.answer(user="cid"), place.answer()):
            ended(log, answer)
        assert await log.flush()

    asyncio.run(steps())
    assert len(place.kept()) == 4
    assert sum(arm.requests for arm in place.registry.rollouts.report("spring").traffic.values()) == 2
    assert place.total("dropped") == 1
    assert "a row of the log of answers cannot be written: FOREIGN KEY constraint failed" in caplog.text
    assert foreign.id not in caplog.text, "what the operator reads is no log of requests"


@pytest.mark.parametrize(("days", "left"), [(30, 2), (0, 3), (0.5, 1)])
def test_answers_older_than_the_retention_are_deleted(place: Place, days: float, left: int) -> None:
    now = datetime.now(UTC)
    old = [place.answer(at=now - timedelta(days=age)).entry(SERVER) for age in (31, 29)]
    place.registry.answers.add(old)

    async def steps() -> None:
        log = place.log(keep_days=days, every_seconds=0.001)
        ended(log, place.answer())
        await running(log, lambda: place.total("rows") == 1 and len(place.kept()) == left)

    asyncio.run(steps())
    assert len(place.kept()) == left


def test_memory_holds_the_last_answers(place: Place) -> None:
    log = place.log(remembered=2)
    answers = [place.answer() for _ in range(3)]
    for answer in answers:
        log.begin(answer)
    assert [log.get(answer.id) for answer in answers] == [None, *answers[1:]]


# Exposures


@pytest.mark.parametrize(
    ("seen", "failed"),
    [
        (usage(), False),
        (usage(404), False),
        (usage(500), True),
        (usage(whole=False), True),
        (usage(None), True),
    ],
)
def test_an_answer_that_a_rollout_decided_is_an_exposure(place: Place, seen: Usage, failed: bool) -> None:
    answer = place.answer(user="ann")
    answer.end(seen)
    exposure = answer.exposure()
    assert exposure is not None
    assert (exposure.id, exposure.tenant, exposure.assignment) == (answer.id, "acme", answer.assignment)
    assert (exposure.failed, exposure.seconds) == (failed, answer.seconds)
    assert answer.entry(SERVER).rollout == "spring"
    assert place.answer().exposure() is None


def test_a_client_that_left_has_not_been_failed(place: Place) -> None:
    seen = usage(whole=False)
    seen.received({"type": "http.disconnect"})
    answer = place.answer(user="ann")
    answer.end(seen)
    assert (answer.ended, answer.failed) == ("left", False)


# Outcomes


def test_an_outcome_may_come_right_after_its_answer(place: Place) -> None:
    async def steps() -> None:
        log = place.log()
        answer = ended(log, place.answer(user="ann"))
        assert await record(log, place.registry, THREADS, "acme", answer.id, "solved", 1.0)
        assert not await record(log, place.registry, THREADS, None, answer.id, "solved", 1.0)
        with pytest.raises(EditError, match="is 1 already"):
            await record(log, place.registry, THREADS, None, answer.id, "solved", 0.0)

    asyncio.run(steps())


def test_an_outcome_waits_for_another_server_to_write_its_log(place: Place) -> None:
    async def steps() -> bool:
        asked, answered = place.log(every_seconds=0.5), place.log(every_seconds=0.01)
        answer = ended(answered, place.answer(user="ann"))
        reported = asyncio.create_task(record(asked, place.registry, THREADS, "acme", answer.id, "solved", 1.0))
        await running(answered, reported.done)
        return await reported

    assert asyncio.run(steps())


@pytest.mark.parametrize(("tenant", "id"), [("globex", None), ("acme", "edit-0"), (None, "edit-0"), ("acme", "a\0")])
def test_an_outcome_of_no_answer_of_the_tenant_is_not_found(place: Place, tenant: str | None, id: str | None) -> None:
    async def steps() -> None:
        log = place.log(every_seconds=0.001)
        answer = ended(log, place.answer(user="ann"))
        await record(log, place.registry, THREADS, tenant, id or answer.id, "solved", 1.0)

    with pytest.raises(UnknownAnswer):
        asyncio.run(steps())


def test_a_misspelt_metric_is_reported_at_once(place: Place) -> None:
    async def steps() -> None:
        log = place.log(every_seconds=3_600)
        answer = ended(log, place.answer(user="ann"))
        async with asyncio.timeout(600):
            await record(log, place.registry, THREADS, "acme", answer.id, "solvd", 1.0)

    with pytest.raises(NotFound, match="has no metric 'solvd'"):
        asyncio.run(steps())


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"id": "edit-0", "metric": "solved"}',
        '{"id": "edit-0", "metric": "solved", "value": NaN}',
        '{"id": "edit-0", "metric": "solved", "value": Infinity}',
        '{"id": "edit-0", "metric": "solved", "value": 1e999}',
        f'{{"id": "edit-0", "metric": "solved", "value": 1{"0" * 400}}}',
        '{"id": "edit-0", "metric": "solved", "value": null}',
        '{"id": "", "metric": "solved", "value": 1}',
        f'{{"id": "{"a" * 65}", "metric": "solved", "value": 1}}',
        f'{{"id": "edit-0", "metric": "{"a" * 64}", "value": 1}}',
        '{"id": 1, "metric": "solved", "value": 1}',
        '{"id": "edit-0", "metric": "solved", "value": 1, "tenant": "globex"}',
    ],
)
def test_a_body_that_is_not_an_outcome_is_refused(body: str) -> None:
    with pytest.raises(ValidationError):
        Outcome.model_validate_json(body)


def test_true_and_false_are_values() -> None:
    assert Outcome.model_validate_json('{"id": "edit-0", "metric": "solved", "value": true}').value == 1.0
