"""The queue: one worker on a job at a time, retries after a crash, limits, and an audit row for every change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from vllm_edit.errors import EditError, NotFound, TooMany
from vllm_edit.patch import Patch
from vllm_edit.registry import migrations
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.registry.jobs import LONGEST_LEASE_S, MOST_ATTEMPTS, MOST_OPEN, Claim, JobLost
from vllm_edit.registry.registry import Registry

GONE_S = -1.0
"""A lease that has ended when it begins: the worker died at once."""


def request(name: str = "capital", target: str = "Lyon", **settings: int) -> JobRequest:
    edit = {"prompt": "The capital of France is", "subject": "France", "target_new": target}
    return JobRequest(Patch.model_validate({"name": name, "edits": [edit]}), "rome", settings)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    for tenant in ("acme", "globex"):
        made.create_tenant(tenant)
    yield made
    made.close()


def claimed(registry: Registry, holder: str = "vm:1:a", lease_s: float = 60.0) -> Claim:
    claim = registry.jobs.claim(holder, lease_s)
    assert claim is not None
    return claim


def rows(registry: Registry) -> list[str]:
    return [row.what for row in registry.audit() if row.what.startswith("job.")]


def test_a_job_is_queued_run_and_done_and_every_step_is_audited(registry: Registry) -> None:
    job = registry.jobs.submit(request(steps=9), tenant="acme", author="0123", by="key 0123", why="a new mayor")
    assert (job.state, job.patch, job.tenant, job.settings, job.by) == (
        "queued", "capital", "acme", {"steps": 9}, "key 0123")  # fmt: skip
    claim = claimed(registry)
    assert (claim.job.id, claim.job.state, claim.job.worker, claim.job.attempts) == (job.id, "running", "vm:1", 1)
    assert claim.request == request(steps=9)
    assert registry.jobs.beat(claim, "training", 3, 9)
    shown = registry.jobs.find(job.id)
    assert (shown.step, shown.step_done, shown.step_total) == ("training", 3, 9)
    registry.jobs.note_name(claim, "capital@" + "0" * 32)
    done = registry.jobs.finish(claim, "capital@" + "0" * 32, {"status": "accepted"})
    assert (done.state, done.result, done.open) == ("done", {"status": "accepted"}, False)
    assert done.ended_at is not None
    assert rows(registry) == ["job.submit", "job.start", "job.finish"]
    submitted = next(row for row in registry.audit("acme") if row.what == "job.submit")
    assert (submitted.who, submitted.why, json.loads(submitted.new)["edits"]) == ("key 0123", "a new mayor", 1)
    assert registry.verify_audit().problems == ()


def test_jobs_are_claimed_in_the_order_of_their_submission_each_by_one_worker(registry: Registry) -> None:
    jobs = [registry.jobs.submit(request(f"patch{number}")) for number in range(6)]
    first = claimed(registry)
    assert first.job.id == jobs[0].id
    with ThreadPoolExecutor(5) as pool:
        others = list(pool.map(lambda number: claimed(registry, f"vm:{number}:b").job.id, range(5)))
    assert sorted(others) == sorted(job.id for job in jobs[1:])
    assert registry.jobs.claim("vm:9:c") is None


def test_a_dead_workers_job_is_started_again_and_its_former_worker_writes_nothing_more(registry: Registry) -> None:
    job = registry.jobs.submit(request())
    dead = claimed(registry, "vm:1:a", GONE_S)
    second = claimed(registry, "vm:2:b")
    assert (second.job.id, second.job.attempts, second.job.worker) == (job.id, 2, "vm:2")
    assert not registry.jobs.beat(dead)
    for write in (
        lambda: registry.jobs.note_name(dead, "capital@" + "0" * 32),
        lambda: registry.jobs.finish(dead, "capital@" + "0" * 32, {}),
        lambda: registry.jobs.fail(dead, "no"),
    ):
        with pytest.raises(JobLost):
            write()
    registry.jobs.release(dead, counts=True)
    assert registry.jobs.find(job.id).worker == "vm:2", "nor does it free the job of another"
    registry.jobs.finish(second, "capital@" + "0" * 32, {})
    assert rows(registry) == ["job.submit", "job.start", "job.start", "job.finish"]


def test_a_process_that_claims_its_own_dead_job_again_is_another_claim(registry: Registry) -> None:
    registry.jobs.submit(request())
    dead = claimed(registry, "vm:1:a", GONE_S)
    claimed(registry, "vm:1:a")
    assert not registry.jobs.beat(dead)


def test_a_heartbeat_extends_the_lease(registry: Registry) -> None:
    registry.jobs.submit(request())
    claim = claimed(registry, "vm:1:a", GONE_S)
    alive = Claim(claim.job, claim.request, claim.holder, 60.0)
    assert registry.jobs.beat(alive)
    assert registry.jobs.claim("vm:2:b") is None


def test_a_dead_workers_job_is_started_again_also_after_the_databases_clock_was_set_back(registry: Registry) -> None:
    job = registry.jobs.submit(request())
    claimed(registry, "vm:1:a", LONGEST_LEASE_S)
    assert registry.jobs.claim("vm:2:b") is None
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update jobs set lease = lease + 7200"))  # two hours back
    assert claimed(registry, "vm:2:b").job.id == job.id


def test_a_lease_that_is_too_long_is_refused(registry: Registry) -> None:
    with pytest.raises(EditError, match="expected a lease of at most 3600 seconds, got 3601"):
        registry.jobs.claim("vm:1:a", 3601)


def test_a_job_whose_worker_always_dies_fails_and_the_next_is_claimed(registry: Registry) -> None:
    poison, other = registry.jobs.submit(request("poison")), registry.jobs.submit(request("other"))
    for _ in range(MOST_ATTEMPTS):
        assert claimed(registry, lease_s=GONE_S).job.id == poison.id
    assert claimed(registry).job.id == other.id
    failed = registry.jobs.find(poison.id)
    assert failed.state == "failed"
    assert f"{MOST_ATTEMPTS} times" in failed.error
    assert rows(registry).count("job.fail") == 1


def test_a_job_that_cannot_be_read_fails_and_does_not_stop_the_queue(registry: Registry) -> None:
    broken, other = registry.jobs.submit(request("broken")), registry.jobs.submit(request("other"))
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update jobs set request = '{}' where id = :id"), {"id": broken.id})
    assert claimed(registry).job.id == other.id
    assert registry.jobs.find(broken.id).state == "failed"


def test_a_released_job_returns_to_its_place_and_counts_only_if_it_failed(registry: Registry) -> None:
    job, _ = registry.jobs.submit(request("first")), registry.jobs.submit(request("second"))
    registry.jobs.release(claimed(registry), counts=False)
    again = claimed(registry)
    assert (again.job.id, again.job.attempts) == (job.id, 1)
    registry.jobs.release(again, counts=True)
    assert claimed(registry).job.attempts == 2


def test_a_cancelled_job_is_not_started_and_a_running_one_is_lost_to_its_worker(registry: Registry) -> None:
    waiting = registry.jobs.submit(request("waiting"))
    assert registry.jobs.cancel(waiting.id, why="a mistake").state == "cancelled"
    assert registry.jobs.claim("vm:1:a") is None
    running = registry.jobs.submit(request("running"))
    claim = claimed(registry)
    registry.jobs.cancel(running.id)
    assert not registry.jobs.beat(claim)
    with pytest.raises(JobLost):
        registry.jobs.finish(claim, "running@" + "0" * 32, {})
    assert registry.jobs.cancel(running.id).state == "cancelled", "twice is once"
    assert rows(registry).count("job.cancel") == 2
    assert registry.jobs.claim("vm:2:b") is None


def test_an_ended_job_cannot_be_cancelled(registry: Registry) -> None:
    job = registry.jobs.submit(request())
    registry.jobs.fail(claimed(registry), "edit 0 missed\nits target \0")
    assert registry.jobs.find(job.id).error == "edit 0 missed its target \ufffd"
    with pytest.raises(EditError, match="has ended already"):
        registry.jobs.cancel(job.id)


def test_an_equal_request_is_the_same_job_until_it_ends(registry: Registry) -> None:
    job = registry.jobs.submit(request(steps=9), tenant="acme")
    assert registry.jobs.submit(request(steps=9), tenant="acme") == job
    assert registry.jobs.submit(request(steps=8), tenant="acme").id != job.id
    assert registry.jobs.submit(request(target="Nice", steps=9), tenant="acme").id != job.id
    claim = claimed(registry)
    assert registry.jobs.submit(request(steps=9), tenant="acme").state == "running"
    registry.jobs.fail(claim, "no")
    assert registry.jobs.submit(request(steps=9), tenant="acme").id != job.id
    assert rows(registry).count("job.submit") == 4


def test_a_submission_that_queues_nothing_is_no_change(registry: Registry) -> None:
    """Every server reads the registry again after a change."""
    for number in range(MOST_OPEN):
        registry.jobs.submit(request(f"patch{number}"), tenant="acme", author="0123")
    generation = registry.generation()
    registry.jobs.submit(request("patch0"), tenant="acme", author="0123")
    with pytest.raises(TooMany):
        registry.jobs.submit(request("more"), tenant="acme", author="0123")
    assert registry.generation() == generation


def test_equal_requests_of_two_tenants_are_two_jobs(registry: Registry) -> None:
    first = registry.jobs.submit(request())
    with pytest.raises(EditError, match="is taken"):
        registry.jobs.submit(request(), tenant="acme")
    registry.jobs.cancel(first.id)
    assert registry.jobs.submit(request(), tenant="acme").id != first.id


def test_an_author_has_at_most_so_many_open_jobs(registry: Registry) -> None:
    jobs = [
        registry.jobs.submit(request(f"patch{number}"), tenant="acme", author="0123") for number in range(MOST_OPEN)
    ]
    with pytest.raises(TooMany, match=f"{MOST_OPEN} jobs"):
        registry.jobs.submit(request("more"), tenant="acme", author="0123")
    assert registry.jobs.submit(request("patch0"), tenant="acme", author="0123") == jobs[0], "the same job is no more"
    registry.jobs.submit(request("other"), tenant="acme", author="4567")
    registry.jobs.cancel(jobs[3].id)
    registry.jobs.submit(request("more"), tenant="acme", author="0123")


def test_an_author_cannot_add_to_the_name_of_anothers_patch(registry: Registry) -> None:
    """`capital` without a digest is the newest patch of that name: an administrator could publish the wrong one."""
    registry.add_patch("capital@" + "1" * 32)
    with pytest.raises(EditError, match="is taken"):
        registry.jobs.submit(request("capital"), tenant="acme")
    registry.jobs.submit(request("river"), tenant="acme")
    claim = claimed(registry)
    with pytest.raises(EditError, match="is taken"):
        registry.jobs.submit(request("river", "Nice"), tenant="globex")
    registry.add_patch("river@" + "2" * 32)
    registry.jobs.finish(claim, "river@" + "2" * 32, {})
    registry.jobs.submit(request("river", "Nice"), tenant="acme")
    with pytest.raises(EditError, match="is taken"):
        registry.jobs.submit(request("river", "Bonn"), tenant="globex")
    assert registry.jobs.submit(request("capital")).state == "queued", "an administrator may"


def test_a_tenant_finds_and_cancels_its_own_jobs_only(registry: Registry) -> None:
    job = registry.jobs.submit(request(), tenant="acme")
    registry.jobs.submit(request("other"), tenant="globex")
    assert [found.id for found in registry.jobs.newest("acme")] == [job.id]
    assert len(registry.jobs.newest()) == 2
    assert registry.jobs.newest(state="done") == []
    for unknown in ("globex", "acme"):
        id = job.id if unknown == "globex" else "job-" + "0" * 32
        with pytest.raises(NotFound):
            registry.jobs.find(id, unknown)
        with pytest.raises(NotFound):
            registry.jobs.cancel(id, unknown)
    assert registry.jobs.find(job.id, "acme") == job


@pytest.mark.parametrize(
    "bad",
    [
        JobRequest(request().patch, "rome; drop"),
        JobRequest(request().patch, "rome", {"steps": float("nan")}),
        JobRequest(request().patch, "rome", {"steps": "x" * 20_000}),
        JobRequest(request().patch, "rome", {str(number): 1 for number in range(65)}),
    ],
)
def test_a_request_of_impossible_form_is_refused(registry: Registry, bad: JobRequest) -> None:
    before = registry.generation()
    with pytest.raises(EditError, match=r"expected|settings must be"):
        registry.jobs.submit(bad)
    assert registry.generation() == before


def test_the_request_of_an_ended_job_is_deleted(registry: Registry) -> None:
    registry.jobs.submit(request())
    registry.jobs.fail(claimed(registry), "no")
    with create_engine(registry.url).connect() as connection:
        assert connection.execute(text("select request from jobs")).scalars().all() == [None]


def test_a_registry_from_before_there_were_jobs_gets_an_empty_queue(registry_url: str) -> None:
    engine = create_engine(registry_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0006")
        connection.execute(text("insert into tenants (name, created_at) values ('acme', '2026-01-01 00:00:00')"))
    registry = Registry(registry_url)
    assert registry.jobs.newest("acme") == []
    registry.close()
