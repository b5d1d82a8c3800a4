"""Processes that are killed at any instant of an operation leave a store that is whole, and nothing half published."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.faults.attempts import Attempts, State
from tests.faults.nursery import Nursery, nursery
from tests.faults.operations import LEASE_S, Operations
from tests.faults.sizes import Sizes
from vllm_edit.errors import EditError
from vllm_edit.progress import Progress
from vllm_edit.store.garbage import gc
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

PER_STORE = 50
"""Kills before a new store is used: the check after each kill grows with the store's history."""
BEYOND = 1.1
"""Kills are drawn over so many times an operation's duration, so that they reach its end on a busier machine too."""
ROUNDS = 8
"""So many times the planned kills at most, while all of them fell on the same states: each round kills later."""

Record = Callable[[str, object], None]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_registry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it before a store is created: its registry will be in a new database of that kind."""
    if request.param == "sqlite":
        return lambda: monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)  # the store's own
    cluster: postgres.Cluster = request.getfixturevalue("cluster")
    return lambda: monkeypatch.setenv("VLLM_EDIT_REGISTRY", cluster.new_database())


@pytest.fixture(scope="module")
def warm() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


def test_a_store_is_whole_after_a_kill_at_any_moment(
    tmp_path: Path,
    warm: Nursery,
    new_registry: Callable[[], None],
    sizes: Sizes,
    progress: Progress,
    record_property: Record,
) -> None:
    operations, instants = Operations.ready(), random.Random(0)
    unfinished: Counter[str] = Counter()
    between: set[State] = set()
    seconds: dict[str, float] = {}

    def varied() -> bool:
        """Say whether two kinds were killed before their end, and one kind in two of its states."""
        return len(unfinished) > 1 and len(between) > len(seconds)

    number = 0
    while number < sizes.kills or (number < ROUNDS * sizes.kills and not varied()):
        if number % PER_STORE == 0:
            new_registry()
            store = operations.create(str(tmp_path / f"store-{number}"))
            attempts = Attempts(operations, store)
        kind = list(attempts.kinds)[number % len(attempts.kinds)]
        progress(kind, number, max(number, sizes.kills))
        if kind not in seconds:
            seconds[kind] = warm.seconds(store.url, *attempts.kinds[kind](store).order)
        attempt = attempts.kinds[kind](store)
        store.registry.close()  # or SQLite's next opener would have nothing to recover
        latest = BEYOND * seconds[kind] * (1 + number // sizes.kills)
        if warm.kill(instants.uniform(0, latest), store.url, *attempt.order):
            unfinished[kind] += 1
        store = Store.open(store.url)
        assert_whole(store, tmp_path / "cache")
        found = attempt.seen(store)
        assert found in attempt.states, f"{attempt.order} was half done"
        between.add((kind, attempt.states.index(found)))
        if kind == "compile" and found == "ungated":
            (name,) = (name for name in store.names() if name.startswith(f"{attempt.order[1]}@"))
            with pytest.raises(EditError, match="was never judged"):
                store.registry.publish("acme", name)
        if found in attempt.again:
            operations.do(store, *attempt.order)
            assert attempt.seen(store) == attempt.again[found]
        number += 1
        if number % PER_STORE == 0:
            assert_nothing_is_left(store)
            store.registry.close()
    if number % PER_STORE != 0:
        assert_nothing_is_left(store)
        store.registry.close()
    record_property("killed", number)
    record_property("of them before the operation had finished", sum(unfinished.values()))
    record_property("unfinished", dict(unfinished))
    assert len(unfinished) > 1, "no operation was killed before it had finished"
    assert len(between) > len(seconds), f"the kills must fall on different states, all fell on {between}"


def test_a_job_is_done_once_when_its_worker_is_killed_at_any_moment(
    tmp_path: Path, warm: Nursery, new_registry: Callable[[], None], sizes: Sizes, record_property: Record
) -> None:
    operations, instants = Operations.ready(), random.Random(1)
    new_registry()
    store = operations.create(str(tmp_path / "store"))
    operations.submit(store, "first")
    seconds = warm.seconds(store.url, "work")
    unfinished: Counter[str] = Counter()
    for number in range(sizes.kills // 2):
        job = operations.submit(store, f"fact-{number}")
        store.registry.close()
        warm.kill(instants.uniform(0, BEYOND * seconds), store.url, "work")
        store = Store.open(store.url)
        found = store.registry.jobs.find(job.id)
        unfinished[f"{found.state}, {'named' if found.name else 'not named'}"] += found.open
        while store.registry.jobs.find(job.id).open:
            time.sleep(LEASE_S / 5)
            operations.work(store)
        assert_done_once(store, job.id)
    assert_nothing_is_left(store)
    record_property("killed before the end", dict(unfinished))
    assert unfinished.total(), "no worker was killed before its job had ended"
    store.registry.close()


def assert_done_once(store: Store, id: str) -> None:
    """One compiled patch, accepted; one row of the audit that says so, and one that it was saved."""
    job = store.registry.jobs.find(id)
    assert job.state == "done"
    assert [name for name in store.names() if name.startswith(f"{job.patch}@")] == [job.name]
    assert store.entry(str(job.name)).status == "accepted"
    named = Counter(row.what for row in store.registry.audit() if str(job.name) in row.new)
    assert (named["patch.save"], named["job.finish"]) == (1, 1)
    assert_whole(store, Path(store.url).parent / "cache")


def assert_whole(store: Store, cache: Path) -> None:
    """Every file matches its digest, the audit is whole, no id was given twice, and what is served can be."""
    assert problems_of(store) == []
    assert store.registry.verify_audit().problems == ()
    named: dict[int, str] = {}
    for row in store.registry.audit():
        if row.what == "patch.save":
            entry = json.loads(row.new)
            assert named.setdefault(entry["adapter_id"], entry["name"]) == entry["name"]
    assert {entry.adapter_id: entry.name for entry in store.registry.patches()}.items() <= named.items()
    for tenant in store.registry.tenants():
        if tenant.active is not None:
            shutil.rmtree(store.adapter_folder(tenant.active, cache))


def assert_nothing_is_left(store: Store) -> None:
    """The first gc after a day removes the leftovers of killed writers, and the patches that were to be removed."""
    assert_whole(store, Path(store.url).parent / "cache")
    temporary = Path(store.url) / "tmp"
    for path in temporary.glob("*"):
        os.utime(path, (0, 0))
    gc(store, dry_run=False)
    assert list(temporary.glob("*")) == []
    assert store.registry.retired.since() == {}
    assert {path.name for path in (Path(store.url) / "patches").iterdir()} == set(store.names())
