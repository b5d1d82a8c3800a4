"""A disk, an object store or a driver that fails under a running server: an answer with an id, a row, a failed arm."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.serving import places
from tests.serving.without_engine import Place, bearer, run
from vllm_edit.files import RemoteFiles
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving.server_settings import Settings


class DriverError(Exception):
    """As botocore's: no `OSError`."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of acme's users are in a rollout; `globex` is served a scoped patch."""
    folder = tmp_path_factory.mktemp("failing")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    capital, city = (places.add_patch(store, patch, seed) for seed, patch in enumerate(("capital", "city")))
    scoped = places.save_accepted(store, places.scoped_patch(store.site(), "world", (("Quito",),)))
    for tenant, name in (("acme", capital), ("globex", scoped)):
        store.registry.create_tenant(tenant)
        store.registry.publish(tenant, name)
    arms = Arm("weights", city), Arm("ike", city)
    store.registry.rollouts.create(Rollout("spring", "acme", *arms, salt="pepper"))
    store.registry.rollouts.ramp("spring", 100)
    store.registry.close()
    return folder / "store"


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template, Settings(store="here"))


Break = Callable[[Place, pytest.MonkeyPatch], None]


def disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if not path.is_relative_to(place.store.url):
            return read(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)


def driver(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MemoryFileSystem):  # type: ignore[misc]
        def cat_file(self, *_: Any, **__: Any) -> bytes:
            raise DriverError("SlowDown: reduce your\nrequest rate")

    monkeypatch.setattr(place.store, "files", RemoteFiles(Broken(), "/bucket"))


def gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk that is not mounted: the registry has the patches, the store's folder has none."""
    patches = Path(place.store.url) / "patches"
    patches.rename(patches.with_name("away"))


def nobody_thought_of_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> bytes:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(place.store.files, "read", fail)


@pytest.mark.parametrize(("broken", "status"), [(disk, 503), (driver, 503), (gone, 503), (nobody_thought_of_it, 500)])
@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_a_store_that_fails_is_an_answer_with_an_id_a_row_and_a_failure_of_its_arm(
    place: Place, monkeypatch: pytest.MonkeyPatch, broken: Break, status: int, tenant: str
) -> None:
    key = bearer(place.store.registry.create_api_key(tenant).presented)

    async def steps() -> list[tuple[httpx.Response, AnswerEntry]]:
        await place.service.watcher.refresh()
        with monkeypatch.context() as patched:
            broken(place, patched)
            users = [{**key, "X-User-Id": user} for user in "abcdefgh"]
            replies = [await place.ask(headers=user, prompt="Is Quito high?") for user in users]
        await place.service.answers.flush()
        place.service.answers._answers.clear()
        return [(reply, await place.service.answers.find(reply.headers["X-VLLM-Edit-Id"])) for reply in replies]

    for reply, row in run(steps()):
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], row.status, row.ended) == (status, status, status, "refused")
        assert row.tenant == tenant
        assert "bucket" not in error["message"], "the operator's words are not for clients"
        assert str(place.store.url) not in error["message"]
    if tenant == "acme":
        traffic = place.store.registry.rollouts.report("spring").traffic
        assert sum(arm.failed for arm in traffic.values()) == 8
        assert all(arm.failed == arm.requests > 0 for arm in traffic.values())


def test_a_load_that_fails_ahead_of_requests_is_a_line_of_the_log_and_no_stack_trace(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver(place, monkeypatch)
    run(place.service._ahead(place.first))
    records = [record for record in caplog.records if "memory:///bucket/patches" in record.getMessage()]
    assert records
    assert not [record for record in records if record.exc_info]
    assert "cannot be read: DriverError: SlowDown: reduce your request rate; fix that" in records[0].getMessage()


def test_it_is_tried_again_when_the_store_is_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        disk(place, patched)
        refused = run(place.ask(place.first))
    assert refused.status_code == 503
    assert "Input/output error" in refused.json()["error"]["message"], "without keys every caller gets the full message"
    assert run(place.ask(place.first)).json()["body"]["model"] == place.first


def test_a_load_that_fails_ahead_of_requests_does_not_prevent_others(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    place.service.residency.slots = 2  # only now: with slots, the service would have begun to load
    prepare, asked = place.service.prepare, list[str]()

    async def fail_first(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise ZeroDivisionError("of ours")
        await prepare(name)

    monkeypatch.setattr(place.service, "prepare", fail_first)
    run(place.service.preload(place.service.watcher.current))
    assert len(asked) > 1
    loaded = place.service.residency.names
    assert all(name in loaded or place.service.scopes.indexed(name) for name in asked[1:])
    assert f"{asked[0]} cannot be served" in caplog.text


def nothing_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is elsewhere, so only the registry is left."""
    for path in (Path(place.store.url) / "patches", Path(place.store.url) / "site.json"):
        path.rename(path.with_name(f"{path.name}.away"))


@pytest.mark.parametrize(("broken", "message"), [(gone, "the files of city@"), (nothing_left, "the store at ")])
def test_publishing_and_looking_up_a_patch_report_that_the_store_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch, broken: Break, message: str
) -> None:
    admin = bearer(place.store.registry.create_api_key(None).presented)

    async def steps() -> list[httpx.Response]:
        await place.service.watcher.refresh()
        broken(place, monkeypatch)
        return [
            await place.client.get("/v1/edits/patches/city", headers=admin),
            await place.client.post("/v1/edits/tenants/acme/publish", json={"patch": "city"}, headers=admin),
        ]

    for reply in run(steps()):
        assert reply.status_code == 503
        assert message in reply.json()["error"]["message"]
        assert "gone" in reply.json()["error"]["message"]
