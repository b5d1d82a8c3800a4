"""A server follows its registry, continues without it, and starts from its node's stored state."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.rollout.example import published, rollout
from tests.serving.snapshots import NOW, publication, snapshot
from tests.serving.without_engine import run
from vllm_edit.errors import Corrupt, Incompatible, NotFound, Unavailable
from vllm_edit.registry.api_keys import ApiKey
from vllm_edit.registry.registry import Registry as SqlRegistry
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.caller import ANYONE
from vllm_edit.serving.heartbeat import Heartbeat
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.model_field import Asking, Catalogue
from vllm_edit.serving.watcher import Watcher
from vllm_edit.store.last_state import LastState

OLD, NEW = (f"capital@{digit * 32}" for digit in "ab")
KEY = ApiKey("0" * 12, "acme", ("serve",), "", NOW, "ann", None, None, None, None, "0" * 64)
PUBLISHED = snapshot((NEW, OLD), {"acme": [publication("acme", OLD)]})


class Registry:
    """A registry whose state the test sets, and that can be down."""

    def __init__(self, state: Snapshot) -> None:
        self.state, self.down, self.reads = state, False, 0

    def revision(self) -> Revision:
        self.reads += 1
        if self.down:
            raise Unavailable("the registry is down")
        return self.state.revision

    def snapshot(self) -> Snapshot:
        self.revision()
        return self.state

    def wait_for_change(self, generation: int, timeout_s: float, token: str | None) -> bool:
        return self.revision() != Revision(generation, token)


class Watched:
    """A watcher with its registry, and the list of its reports."""

    def __init__(self, folder: Path, state: Snapshot = PUBLISHED) -> None:
        self.registry, self.saved = Registry(state), LastState(folder / "state.json")
        self.metrics = CollectorRegistry()
        self.changes: list[int] = []
        self.reported: list[int] = []
        self.watcher = Watcher(
            self.registry,
            ("atlas",),
            Metrics(self.metrics),
            saved=self.saved,
            on_change=lambda catalogue: self.changes.append(catalogue.generation),
            report=self._tell,
        )

    async def _tell(self, revision: Revision) -> None:
        self.reported.append(revision.generation)

    def metric(self, name: str) -> float | None:
        return self.metrics.get_sample_value(name)

    async def until(self, holds: Callable[[], bool]) -> None:
        watching = asyncio.create_task(self.watcher.run())
        try:
            async with asyncio.timeout(60):
                while not holds():
                    await asyncio.sleep(0.005)
        finally:
            watching.cancel()


def asked(model: str | None) -> Callable[[Watched], Awaitable[Any]]:
    return lambda watched: watched.watcher.resolve(model, Asking(ANYONE, datetime.now(UTC)))


def test_a_new_tenant_with_the_bases_name_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(tmp_path)

    async def steps() -> None:
        await watched.watcher.first()
        for generation in (2, 3):
            standing = {"atlas": [publication("atlas", OLD)]}
            watched.registry.state = replace(snapshot((OLD,), standing), generation=generation)
            await watched.watcher.refresh()

    run(steps())
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [message.partition(",")[0] for message in logged] == ["tenant atlas has the base model's served name"]


def test_a_change_is_stored_on_the_node_then_applied_then_reported(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    run(watched.watcher.first())
    assert (watched.changes, watched.reported, watched.metric("vllm_edit_generation")) == ([1], [1], 1)
    assert watched.saved.read() == PUBLISHED
    run(watched.watcher.refresh())
    assert (watched.changes, watched.reported) == ([1], [1]), "nothing changed, nothing is reported"
    watched.registry.state = replace(PUBLISHED, generation=2)
    run(watched.until(lambda: watched.reported[-1] == 2))
    assert (watched.changes, watched.metric("vllm_edit_patches")) == ([1, 2], None)
    assert watched.metrics.get_sample_value("vllm_edit_patches", {"gate": "accepted"}) == 2


def test_adapters_that_take_all_of_asyncios_threads_do_not_hold_up_a_kill(tmp_path: Path) -> None:
    """An object store that hangs: a server that follows late counts as dead, and no kill waits for it."""
    watched, come = Watched(tmp_path), threading.Event()

    async def followed_meanwhile() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        loading = asyncio.create_task(asyncio.to_thread(come.wait))
        try:
            await watched.watcher.first()
            watched.registry.state = replace(PUBLISHED, generation=2)
            await watched.until(lambda: watched.reported[-1] == 2)
            assert not loading.done()
        finally:
            come.set()

    run(followed_meanwhile())


def test_without_the_registry_a_server_starts_from_its_nodes_stored_state(tmp_path: Path) -> None:
    run(Watched(tmp_path).watcher.first())
    watched = Watched(tmp_path)
    watched.registry.down = True
    catalogue: Catalogue = run(watched.watcher.first())
    assert catalogue.snapshot == PUBLISHED
    assert run(asked("acme")(watched)).adapter == OLD
    assert (watched.changes, watched.reported, watched.metric("vllm_edit_registry_up")) == ([1], [], 0)
    watched.registry.down = False
    watched.registry.state = replace(PUBLISHED, generation=2)
    run(watched.until(lambda: 2 in watched.reported and watched.metric("vllm_edit_registry_up") == 1))


def test_without_registry_and_stored_state_it_does_not_start(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.registry.down = True
    with pytest.raises(Incompatible, match="registry is down; and this node has no saved state"):
        run(watched.watcher.first())
    watched.saved.keep(PUBLISHED)
    watched.saved.path.write_bytes(watched.saved.path.read_bytes().replace(b"acme", b"evil"))
    with pytest.raises(Corrupt):
        run(watched.watcher.first())


def test_a_registry_that_goes_down_leaves_the_last_state_in_force(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    run(watched.watcher.first())
    watched.registry.down = True
    run(watched.until(lambda: watched.metric("vllm_edit_registry_up") == 0))
    assert run(asked("acme")(watched)).adapter == OLD
    reads = watched.registry.reads
    with pytest.raises(NotFound):
        run(asked("nobody")(watched))
    assert watched.registry.reads == reads, "no request waits for what is known to be down"


def test_a_state_that_cannot_be_understood_does_not_end_the_following(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    run(watched.watcher.first())

    def strange() -> Snapshot:
        del watched.registry.snapshot  # type: ignore[method-assign]
        raise TypeError("a newer version's field")

    watched.registry.snapshot = strange  # type: ignore[method-assign]
    watched.registry.state = replace(PUBLISHED, generation=2)
    run(watched.until(lambda: watched.reported[-1] == 2))
    assert watched.metrics.get_sample_value("vllm_edit_refreshes_total", {"outcome": "failed"}) == 1


def test_a_registry_that_lost_its_keys_does_not_open_a_running_server(tmp_path: Path) -> None:
    keyed = snapshot((OLD,), {"acme": [publication("acme", OLD)]}, keys=[KEY])
    watched = Watched(tmp_path, keyed)
    run(watched.watcher.first())
    watched.registry.state = replace(keyed, generation=2, api_keys={})
    with pytest.raises(Incompatible, match="lost its keys"):
        run(watched.watcher.refresh())
    assert watched.watcher.current.snapshot == watched.saved.read() == keyed
    watched.registry.state = replace(keyed, generation=3)
    run(watched.until(lambda: watched.reported[-1] == 3))


def test_a_name_is_looked_up_once_more_only_while_the_registry_can_be_read(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    run(watched.watcher.first())
    watched.registry.state = replace(snapshot(("river@" + "c" * 32,)), generation=2)
    assert run(asked("river")(watched)).adapter == "river@" + "c" * 32
    watched.registry.down = True  # and no check has noticed it yet
    with pytest.raises(NotFound):
        run(asked("nobody")(watched))


def test_a_state_that_cannot_be_stored_is_followed_all_the_same(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("no folder can be made here")
    assert run(watched.watcher.first()).snapshot == PUBLISHED


def test_when_a_publication_expires_the_next_patch_is_wanted_without_a_change(tmp_path: Path) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=0.5)
    publications = [publication("acme", NEW, ends), publication("acme", OLD)]
    watched = Watched(tmp_path, snapshot((NEW, OLD), {"acme": publications}))
    run(watched.watcher.first())
    assert watched.watcher.current.wanted(ends - timedelta(seconds=0.1)) == [NEW]
    run(watched.until(lambda: len(watched.changes) > 1))
    assert datetime.now(UTC) >= ends
    assert watched.watcher.current.wanted(datetime.now(UTC)) == [OLD]
    assert set(watched.changes) == {1}


def test_the_registry_of_another_store_is_no_registry_that_is_down(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    run(watched.watcher.first())
    again = Watched(tmp_path)

    def foreign() -> Revision:
        raise Incompatible("the registry belongs to another store")

    again.registry.revision = foreign  # type: ignore[method-assign]
    with pytest.raises(Incompatible, match="another store"):
        run(again.watcher.first())
    assert again.changes == [], "what was kept of it is not served"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda registry: registry.revoke_api_key(registry.api_keys()[0].id), id="a revoked key"),
        pytest.param(lambda registry: registry.rollback("globex"), id="a rollback"),
        pytest.param(lambda registry: registry.rollouts.kill("spring"), id="a kill"),
    ],
)
def test_a_change_after_a_failover_is_followed_though_a_lost_change_had_its_number(
    change: Callable[[SqlRegistry], object], tmp_path: Path
) -> None:
    """The new primary lacks the last change, which the server follows and has saved."""
    lost = published(f"sqlite:///{tmp_path / 'lost.db'}")
    lost.create_api_key("acme")
    lost.rollouts.create(rollout())
    lost.rollouts.ramp("spring", 50)
    lost.close()
    shutil.copy(tmp_path / "lost.db", tmp_path / "new.db")
    new, saved = SqlRegistry(f"sqlite:///{tmp_path / 'new.db'}"), LastState(tmp_path / "state.json")
    heartbeat = Heartbeat(new.servers, lambda: True)
    watcher = Watcher(lost, ("atlas",), Metrics(CollectorRegistry()), saved=saved, report=heartbeat.beat)
    lost.create_tenant("initech")

    async def steps() -> None:
        known = (await watcher.first()).snapshot
        watcher._registry = new
        change(new)
        assert new.generation() == known.generation
        assert new.servers.wait(new.generation(), 0).acknowledged == (), "the lost state counts for no change"
        assert [entry.revision.behind(new.revision()) for entry in new.servers.known()] == [1]
        assert new.wait_for_change(known.generation, 0, known.token)
        await watcher.refresh()
        assert watcher.current.snapshot == new.snapshot() == saved.read() != known
        assert new.servers.wait(new.generation(), 0).acknowledged == (heartbeat.name,)

    run(steps())
    lost.close()
    new.close()


def test_after_a_restore_the_older_state_replaces_the_lost_one_on_the_node(tmp_path: Path) -> None:
    watched = Watched(tmp_path, replace(PUBLISHED, generation=9, token="lost"))
    run(watched.watcher.first())
    watched.registry.state = restored = replace(PUBLISHED, generation=7, token="restored")
    run(watched.watcher.refresh())
    assert watched.watcher.current.snapshot == watched.saved.read() == restored
