"""Workers compile the patches of the queue; a job is done once, wherever its worker dies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.editing.examples import FRANCE, JAPAN, LOOSE, bench
from vllm_edit.artefacts.signatures import SigningKey
from vllm_edit.errors import Incompatible, Unavailable, Unsigned
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Gate, Patch
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.registry.jobs import Job, Jobs
from vllm_edit.registry.registry import Registry
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.release.worker import Worker
from vllm_edit.store.signers import Signers, change_signers
from vllm_edit.store.store import Store

ANY = Gate(reliability=0, locality=0, unrelated=0)
"""A gate that a random model passes."""
SETTINGS = json.loads(LOOSE.model_dump_json())
UNREACHABLE = JAPAN.model_copy(update={"target_new": "全世界最帥的人是誰？全世界最帥的人是李宏毅。"})


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    one = bench()
    store = Store.create(tmp_path / "store", one.site, one.moment.tensors())
    yield Pipeline(store, one.base, Bank())
    store.registry.close()


def submit(pipeline: Pipeline, *edits: Any, name: str = "capital", gate: Gate = ANY, method: str = "auto") -> Job:
    request = JobRequest(Patch(name=name, gate=gate, edits=edits or (FRANCE,)), method, SETTINGS)
    return pipeline.store.registry.jobs.submit(request)


def drained(pipeline: Pipeline, **options: Any) -> list[Job]:
    """The jobs that a worker ends until the queue is empty."""
    ended: list[Job] = []
    Worker(pipeline, **options).run(drain=True, ended=ended.append)
    return ended


def audited(pipeline: Pipeline, what: str) -> int:
    return sum(row.what == what for row in pipeline.store.registry.audit())


def test_a_worker_compiles_judges_and_does_not_publish(pipeline: Pipeline) -> None:
    pipeline.store.registry.create_tenant("acme")
    submit(pipeline), submit(pipeline, UNREACHABLE, name="missed"), submit(pipeline, gate=Gate(reliability=1), name="b")
    first, missed, rejected = drained(pipeline)
    assert (first.state, first.result and first.result["status"]) == ("done", "accepted")
    assert pipeline.store.names()[-1] == first.name
    assert pipeline.store.entry(str(first.name)).status == "accepted"
    assert first.result is not None
    assert first.result["gate"] == {"judged_by": "model", "failures": [], "not_judged": "", "default_probes": 0}
    assert missed.state == "failed"
    assert missed.error.startswith("edit 0 ('The currency of Japan is the' → ")
    assert rejected.state == "done"
    assert pipeline.store.registry.published() == set()


def test_the_name_is_the_one_that_compiling_by_hand_gives(pipeline: Pipeline) -> None:
    submit(pipeline)
    (job,) = drained(pipeline)
    assert pipeline.run(Patch(name="capital", gate=ANY, edits=(FRANCE,)), "rome", SETTINGS).name == job.name


@pytest.mark.parametrize(("method", "said"), [("magic", "magic"), ("rome", "unknown settings")])
def test_an_unknown_method_or_setting_fails_its_job_alone(pipeline: Pipeline, method: str, said: str) -> None:
    wrong = JobRequest(Patch(name="wrong", edits=(FRANCE,)), method, {"no_such_setting": 1})
    pipeline.store.registry.jobs.submit(wrong)
    submit(pipeline)
    failed, done = drained(pipeline)
    assert (failed.state, said in failed.error, done.state) == ("failed", True, "done")


def test_a_worker_with_another_model_does_not_start(pipeline: Pipeline) -> None:
    """It would fail every job of the queue."""
    job = submit(pipeline)
    with pytest.raises(Incompatible, match="the model"):
        drained(Pipeline(pipeline.store, bench("gpt2").base, Bank()))
    assert pipeline.store.registry.jobs.find(job.id).state == "queued"


def test_an_unforeseen_error_fails_its_job_and_does_not_show_its_text(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(pipeline), submit(pipeline, name="second")
    compile, broken = pipeline.compile, iter([True])

    def sometimes(*arguments: Any) -> Any:
        if next(broken, False):
            raise ZeroDivisionError("/root/secret")
        return compile(*arguments)

    monkeypatch.setattr(pipeline, "compile", sometimes)
    failed, done = drained(pipeline)
    assert (failed.state, done.state) == ("failed", "done")
    assert "ZeroDivisionError" in failed.error
    assert "secret" not in failed.error


DEATHS: dict[str, tuple[type, str, bool]] = {
    "before the name is noted": (Jobs, "note_name", False),
    "after the name is noted": (Jobs, "note_name", True),
    "before the patch is entered": (Registry, "add_patch", False),
    "after the patch is saved": (Registry, "add_patch", True),
    "before the verdict": (Registry, "set_status", False),
    "after the verdict": (Registry, "set_status", True),
    "before the end": (Jobs, "finish", False),
}


@pytest.mark.parametrize("moment", DEATHS)
def test_a_job_whose_worker_dies_is_done_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    kind, method, after = DEATHS[moment]
    submit(pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "release", lambda *_, **__: None)  # a dead process releases nothing
        patched.setattr(kind, method, _dying(getattr(kind, method), after))
        with pytest.raises(Killed):
            drained(pipeline, lease_s=0.05)
    Event().wait(0.1)
    (job,) = drained(pipeline)
    assert (job.state, job.attempts) == ("done", 2)
    assert pipeline.store.names() == [job.name]
    assert pipeline.store.entry(str(job.name)).status == "accepted"
    assert {what: audited(pipeline, what) for what in ("patch.save", "patch.judge", "job.finish")} == {
        "patch.save": 1, "patch.judge": 1, "job.finish": 1}  # fmt: skip
    assert pipeline.store.registry.verify_audit().problems == ()


def test_a_resumed_job_is_finished_in_a_store_that_requires_signatures(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pipeline.store
    key = SigningKey.create(tmp_path / "key.pem")
    required = Signers().trusting(key.public, "ann").model_copy(update={"required": True})
    change_signers(store.files, store.registry, "signer.require", lambda _: required)
    submit(pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "release", lambda *_, **__: None)
        patched.setattr(Registry, "add_patch", _dying(Registry.add_patch, after=True))
        with pytest.raises(Killed):
            drained(pipeline, lease_s=0.05)
    Event().wait(0.1)
    (job,) = drained(pipeline)
    assert (job.state, job.attempts) == ("done", 2)
    with pytest.raises(Unsigned):
        store.load(str(job.name))


def _dying(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> Any:
        if after:
            function(*arguments, **named)
        raise Killed

    return dying


def test_a_cancelled_job_stops_at_its_next_step_and_saves_nothing(pipeline: Pipeline) -> None:
    job = submit(pipeline)
    jobs = pipeline.store.registry.jobs
    before = pipeline.base.state_digest()

    def cancelling(step: str, done: int, total: int) -> None:
        if jobs.find(job.id).open:
            jobs.cancel(job.id)
            Event().wait(0.3)  # a heartbeat notices it

    Worker(pipeline, lease_s=0.4).run(drain=True, progress=cancelling)
    assert jobs.find(job.id).state == "cancelled"
    assert pipeline.store.names() == []
    assert pipeline.base.state_digest() == before


def test_a_stopped_worker_returns_its_job_which_does_not_count_as_an_attempt(pipeline: Pipeline) -> None:
    job, stop = submit(pipeline), Event()
    worker = Worker(pipeline, stop=stop)
    worker.run(progress=lambda *_: stop.set())
    found = pipeline.store.registry.jobs.find(job.id)
    assert (found.state, found.attempts) == ("queued", 0)
    assert drained(pipeline)[0].state == "done"


def test_a_job_is_tried_again_when_the_store_could_not_be_used(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, full = submit(pipeline), iter([True])
    save = pipeline.save

    def sometimes(*arguments: Any) -> Any:
        if next(full, False):
            raise Unavailable("/root/store cannot be written: No space left on device")
        return save(*arguments)

    monkeypatch.setattr(pipeline, "save", sometimes)
    with pytest.raises(Unavailable, match=f"job {job.id} returns to the queue: .* No space left"):
        drained(pipeline)
    assert pipeline.store.registry.jobs.find(job.id).error == "", "its author does not learn names of files"
    (done,) = drained(pipeline)
    assert (done.id, done.state, done.attempts) == (job.id, "done", 2)


def test_a_worker_that_does_not_drain_waits_for_a_registry_that_is_down(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_edit.release.worker._RETRY_S", 0.0)
    submit(pipeline)
    stop, ended, claim, down = Event(), list[Job](), Jobs.claim, iter([True, True])

    def sometimes(*arguments: Any) -> Any:
        if next(down, False):
            raise Unavailable("the registry is down")
        return claim(*arguments)

    monkeypatch.setattr(Jobs, "claim", sometimes)

    def end(job: Job) -> None:
        ended.append(job)
        stop.set()

    Worker(pipeline, stop=stop).run(ended=end)
    assert [job.state for job in ended] == ["done"]


def test_a_long_step_without_progress_does_not_lose_the_job(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(pipeline)
    compile, jobs = pipeline.compile, pipeline.store.registry.jobs

    def slow(*arguments: Any) -> Any:
        Event().wait(0.6)
        assert jobs.claim("vm:2:b") is None
        return compile(*arguments)

    monkeypatch.setattr(pipeline, "compile", slow)
    (done,) = drained(pipeline, lease_s=0.3)
    assert done.attempts == 1


def test_a_waiting_worker_takes_a_new_job_at_once(pipeline: Pipeline) -> None:
    stop, ended = Event(), list[Job]()
    wait = pipeline.store.registry.wait_for_change

    def submitting(generation: int, timeout_s: float) -> bool:
        submit(pipeline)
        return wait(generation, timeout_s)

    pipeline.store.registry.wait_for_change = submitting  # type: ignore[method-assign]

    def end(job: Job) -> None:
        ended.append(job)
        stop.set()

    Worker(pipeline, stop=stop).run(ended=end)
    assert [job.state for job in ended] == ["done"]
