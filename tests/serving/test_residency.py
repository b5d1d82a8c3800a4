"""Adapters leave if there are too many, and never while a request uses them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.errors import NotFound
from vllm_edit.serving.server_settings import Settings
from vllm_edit.store.store import Store

COUNT = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    for number in range(COUNT):
        places.add_patch(store, f"patch{number}", number)
    store.registry.close()
    return folder / "store"


def place_of(tmp_path: Path, template: Path, **residency: Any) -> Place:
    return Place(tmp_path, template, Settings(store="here"), **{"capacity": 2, "grace_s": 0.0, **residency})


async def settled(place: Place) -> list[str]:
    """Patches in the engine after all loads and removals have ended, oldest first."""
    while leaving := list(place.service.residency._leaving.values()):
        await asyncio.gather(*leaving)
    return [name.partition("@")[0] for name in place.slots.held]


def test_beyond_the_capacity_the_one_unused_longest_leaves_engine_and_disk(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template)

    async def steps() -> list[str]:
        for patch in ("patch0", "patch1", "patch0", "patch2", "patch3"):
            assert (await place.ask(patch)).status_code == 200
            await settled(place)
        return await settled(place)

    assert run(steps()) == ["patch2", "patch3"]
    assert {path.name for path in Path(place.folder.name).iterdir()} == set(place.slots.held)
    assert [name.partition("@")[0] for name, _, _ in place.slots.added] == ["patch0", "patch1", "patch2", "patch3"]


def test_an_adapter_that_is_asked_for_again_comes_back(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=1)

    async def steps() -> list[int]:
        return [(await place.ask(f"patch{number % 3}")).status_code for number in range(9)]

    assert run(steps()) == [200] * 9
    assert len(place.slots.added) == 9


def test_an_adapter_on_lease_is_never_taken_away(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=1)
    names = {name.partition("@")[0]: name for name in place.store.names()}
    residency = place.service.residency

    async def steps() -> None:
        async with residency.lease(names["patch0"]), residency.lease(names["patch0"]):
            for number in range(1, COUNT):
                async with residency.lease(names[f"patch{number}"]):
                    assert residency.leases == 3
                    assert await settled(place) == ["patch0", f"patch{number}"]
                    assert (Path(place.slots.held[names["patch0"]]) / "adapter_config.json").exists()
        assert residency.leases == 0
        assert await settled(place) == ["patch0"]

    run(steps())


def test_many_at_once_over_few_places_are_all_answered(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template)

    async def steps() -> set[int]:
        asked = [place.ask(f"patch{number % COUNT}") for number in range(300)]
        return {reply.status_code for reply in await asyncio.gather(*asked)}

    assert run(steps()) == {200}


def test_an_adapter_whose_last_request_has_just_ended_stays_for_a_moment(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=1, grace_s=0.2)

    async def steps() -> tuple[list[str], list[str]]:
        await place.ask("patch0")
        await place.ask("patch1")
        early = await settled(place)
        while place.service.residency._look is not None:
            await asyncio.sleep(0.01)
        return early, await settled(place)

    assert run(steps()) == (["patch0", "patch1"], ["patch1"])


def test_an_adapter_that_the_engine_does_not_unload_keeps_its_files(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=1)

    async def steps() -> None:
        await place.ask("patch0")
        await place.ask("patch1")
        place.slots.refuse = True
        await settled(place)

    run(steps())
    assert len(list(Path(place.folder.name).iterdir())) == 2


def test_adapters_of_a_removed_patch_leave_when_their_last_request_has_ended(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=8)
    residency = place.service.residency
    first, second = (place.store.resolve(f"patch{number}") for number in range(2))

    async def steps() -> list[Any]:
        seen: list[Any] = []
        for name in (first, second):
            await residency.ensure(name)
        async with residency.lease(first):
            residency.follow({second})
            await settled(place)
            seen += [residency.drained, sorted(place.slots.held)]
            with pytest.raises(NotFound, match="removed"):
                await residency.ensure(first)
        seen.append(residency.drained)
        await settled(place)
        return [*seen, residency.drained, sorted(place.slots.held)]

    assert run(steps()) == [False, sorted([first, second]), False, True, [second]]
    assert {path.name for path in Path(place.folder.name).iterdir()} == {second}


def test_no_adapter_gets_the_number_of_one_that_the_engine_may_still_hold(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM only touches a number that it knows. A registry that was restored from an older copy gives ids again, here
    while the old patch's adapter is on lease, in its moment of grace, or is not unloaded."""
    monkeypatch.setattr(Store, "adapter_id", lambda store, name: 2)
    place = place_of(tmp_path, template, grace_s=60.0)
    residency = place.service.residency
    old, new, other = (place.store.resolve(f"patch{number}") for number in range(3))

    async def steps() -> None:
        async with residency.lease(old):
            residency.follow({new, other})
            async with residency.lease(new):
                pass
        residency._grace_s = 0.0
        place.slots.refuse = True
        residency.follow({other})
        await settled(place)
        place.slots.refuse = False
        async with residency.lease(other):
            pass

    run(steps())
    assert len({number for _, number, _ in place.slots.added}) == len(place.slots.added) == 3


def test_an_adapter_that_a_newer_version_uses_belongs_to_it_once_the_older_is_removed(
    tmp_path: Path, template: Path
) -> None:
    place = place_of(tmp_path, template)
    names = {name.partition("@")[0]: name for name in place.store.names()}
    older, newer, shared = names["patch0"], names["patch1"], names["patch2"]
    residency = place.service.residency

    async def steps() -> None:
        async with residency.lease(shared, patch=older), residency.lease(shared, patch=newer):
            residency.follow({newer})
            assert not residency.drained, "a request of the older version runs"
        async with residency.lease(shared, patch=newer):
            assert residency.drained
        assert await settled(place) == ["patch2"]
        assert residency.drained

    run(steps())


def test_a_patch_that_is_removed_while_it_is_loaded_ahead_leaves_again(tmp_path: Path, template: Path) -> None:
    place = place_of(tmp_path, template, capacity=8)
    residency, name = place.service.residency, place.store.resolve("patch0")

    async def steps() -> list[Any]:
        loading = asyncio.create_task(residency.ensure(name))
        while not residency._used:
            await asyncio.sleep(0)
        residency.follow(())
        seen = [residency.drained]
        with pytest.raises(NotFound):
            await loading
        return [*seen, await settled(place), residency.drained]

    assert run(steps()) == [False, [], True]


@pytest.mark.parametrize("slots", [1, 2])
def test_the_patch_of_every_tenant_is_loaded_ahead_whatever_the_slots(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr("tests.serving.without_engine.Slots.slots", slots)
    place = Place(tmp_path, template, Settings(store="here"))
    names = place.store.names()
    scoped = places.save_accepted(place.store, places.scoped_patch(place.store.site(), "world", (("Quito",),)))
    registry = place.store.registry

    async def steps() -> None:
        for number, name in enumerate([scoped, *names]):
            registry.create_tenant(f"tenant{number}")
            registry.set_status(name, "accepted")
            registry.publish(f"tenant{number}", name)
            await place.service.watcher.refresh()
            while place.service.tasks:
                await asyncio.gather(*place.service.tasks)
            ahead = name in place.service.residency.names or place.service.scopes.indexed(name)
            assert ahead, f"not loaded before it is asked for, as number {number}"

    run(steps())
    assert set(place.slots.held) == set(names)


def test_no_more_is_loaded_ahead_than_the_engine_holds(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.serving.without_engine.Slots.slots", 1)
    place = place_of(tmp_path, template)
    names = place.store.names()
    for number, name in enumerate(names):
        place.store.registry.create_tenant(f"tenant{number}")
        place.store.registry.publish(f"tenant{number}", name)

    async def steps() -> None:
        await place.service.watcher.refresh()
        while place.service.tasks:
            await asyncio.gather(*place.service.tasks)

    run(steps())
    assert [name for name, _, _ in place.slots.added] == names[:2]
