"""`vllm-edit job` and `worker`: the queue at hand, as an operator sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Program
from tests.editing.examples import FRANCE
from vllm_edit.patch import Gate, Patch
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.registry.jobs import Job, Jobs
from vllm_edit.store.store import Store


def submit(store: Store, name: str = "capital") -> Job:
    patch = Patch(name=name, gate=Gate(reliability=0, locality=0, unrelated=0), edits=(FRANCE,))
    settings = {"on_missed": "report", "steps": 5, "forms": ["plain"]}
    return store.registry.jobs.submit(JobRequest(patch, "rome", settings), by="ann")


def test_jobs_are_listed_shown_and_cancelled(program: Program, store: Store) -> None:
    first, second = submit(store), submit(store, "river")
    claim = store.registry.jobs.claim("vm:1:a")
    assert claim is not None
    store.registry.jobs.beat(claim, "training", 1, 9)
    listed = program("job", "list").out.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        [second.id, "river", "queued"], [first.id, "capital", "running"]]  # fmt: skip
    assert "training, 1 of 9" in listed[2]
    shown = program("job", "show", first.id).out
    assert "by ann" in shown
    assert "vm:1" in shown
    assert program("job", "show", first.id, "--json").json["step"] == "training"
    assert program("job", "cancel", second.id, "--why", "a mistake").out == (
        f"job {second.id} of patch river is cancelled\n")  # fmt: skip
    assert [job["state"] for job in program("job", "list", "--state", "cancelled", "--json").json] == ["cancelled"]
    row = store.registry.audit(newest=1)[0]
    assert (row.what, row.why) == ("job.cancel", "a mistake")


def test_mistakes_are_one_line(program: Program, store: Store) -> None:
    unknown = program("job", "show", "job-1")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)
    assert program("job", "list", "--state", "lost").code == 2
    failed = submit(store)
    claim = store.registry.jobs.claim("vm:1:a")
    assert claim is not None
    store.registry.jobs.fail(claim, "edit 0 missed its target")
    assert "edit 0 missed its target" in program("job", "show", failed.id).out
    ended = program("job", "cancel", failed.id)
    assert (ended.code, "has ended already" in ended.err) == (1, True)


def test_a_key_for_authors_has_the_right(program: Program, store: Store) -> None:
    store.registry.create_tenant("acme")
    made = program("tenant", "key", "create", "acme", "--author", "--no-base", "--json").json
    assert made["rights"] == ["serve", "author"]


@pytest.mark.slow
def test_a_worker_drains_the_queue(program: Program, initialised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    store = Store.open(initialised)
    job = submit(store)
    ran = program("worker", "--drain", "--store", initialised)
    assert ran.code == 0, ran.err
    done = program("job", "show", job.id, "--store", initialised, "--json").json
    assert (done["state"], done["result"]["status"]) == ("done", "accepted")
    assert ran.out == f"{job.id}  done  capital: {done['name']} accepted\n"


@pytest.mark.slow
def test_a_worker_prints_each_job_as_a_line_of_json_and_ends_well_if_terminated(
    program: Program, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    before = signal.getsignal(signal.SIGTERM)

    job = Store.open(initialised).registry.jobs.submit(JobRequest(Patch(name="river", edits=(FRANCE,)), "magic"))
    fail = Jobs.fail

    def failing(*arguments: Any) -> Job:
        os.kill(os.getpid(), signal.SIGTERM)
        return fail(*arguments)

    monkeypatch.setattr(Jobs, "fail", failing)
    ran = program("worker", "--store", initialised, "--json")
    assert ran.code == 0
    (failed,) = (json.loads(line) for line in ran.out.splitlines())
    assert (failed["id"], failed["state"], "magic" in failed["error"]) == (job.id, "failed", True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_server_side_of_jobs_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from vllm_edit.registry.jobs import Jobs\n"
        "from vllm_edit.serving.admin.submitted import read_patch\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
