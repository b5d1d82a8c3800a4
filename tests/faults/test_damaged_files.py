"""A changed, cut or swapped file of a store is refused by its name, never served, and listed by `verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from tests.faults.damages import damaged, for_every, holding
from tests.faults.sizes import Sizes
from tests.serving.places import save_accepted, scoped_patch
from tests.store.example import compiled, moment, new_store, site
from vllm_edit.artefacts.folder import encode_adapter
from vllm_edit.artefacts.units import members_inside, unit_path
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.registry.audit import ANCHOR
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.site_files import SITE
from vllm_edit.store.store import Store

Record = Callable[[str, object], None]
PLAIN = (
    "manifest.json",
    "files.json",
    "factors.safetensors",
    "demonstrations.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)
SCOPED = ("manifest.json", "files.json", "demonstrations.json", "units")
PAGE = 4096  # of a database of SQLite
FILES = [*(("capital", file) for file in PLAIN), *(("world", file) for file in SCOPED)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two patches of one name, the newer served to a tenant, and one with scope subject."""
    folder = tmp_path_factory.mktemp("damaged") / "store"
    store = new_store(folder)
    save_accepted(store, compiled())
    name = save_accepted(store, compiled(seed=1))
    save_accepted(store, scoped_patch(site(), "world", [("France", "法國"), ("Japan",), ("Brazil",)]))
    store.registry.create_tenant("acme")
    store.registry.publish("acme", name)
    store.registry.close()
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(shutil.copytree(template, tmp_path / "store"))
    yield opened
    opened.registry.close()


@pytest.mark.parametrize(("patch", "file"), FILES, ids=lambda text: text)
def test_a_damaged_file_of_a_patch_is_refused_and_listed(
    store: Store, patch: str, file: str, sizes: Sizes, record_property: Record
) -> None:
    name = store.resolve(patch)
    path = Path(store.url) / "patches" / name / file
    if path.is_dir():
        path = next(path.iterdir())
    where, members = str(path.relative_to(Path(store.url) / "patches")), members_inside(store.manifest(name))
    intact = handed_out(store, name, members)

    def check(data: bytes) -> None:
        with holding(path, data):
            with pytest.raises(Corrupt) as refused:
                store.check(name)
            assert where in str(refused.value)
            assert any(where in problem for problem in problems_of(store))
            for what, found in handed_out(store, name, members).items():
                assert found in (None, intact[what]), f"{what} was served damaged"

    record_property("damages", for_every(check, damaged(path.read_bytes()), sizes.damages))
    assert problems_of(store) == []


@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("manifest.json", "manifest.json"),
        ("files.json", ""),  # it is intact, the file that it lists is not
        ("factors.safetensors", "factors.safetensors"),
        ("adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors"),
    ],
)
def test_a_file_that_is_another_patchs_is_refused_and_listed(store: Store, file: str, where: str) -> None:
    newer, older = [name for name in store.names() if name.startswith("capital@")]
    patches, intact = Path(store.url) / "patches", handed_out(store, newer, ())
    with holding(patches / newer / file, (patches / older / file).read_bytes()):
        with pytest.raises(Corrupt, match=f"{newer}/{where}"):
            store.check(newer)
        assert any(f"{newer}/{where}" in problem for problem in problems_of(store))
        for what, found in handed_out(store, newer, ()).items():
            assert found in (None, intact[what]), f"{what} of another patch was served"


def test_a_changed_byte_that_means_nothing_is_listed_too(store: Store) -> None:
    name = store.resolve("world")
    units = (Path(store.url) / "patches" / name / "units").iterdir()
    padded = next(path for path in units if b"}} " in path.read_bytes())  # safetensors pads its header with blanks
    with holding(padded, padded.read_bytes().replace(b"}} ", b"}}\n", 1)):
        assert any(f"units/{padded.name}" in problem for problem in problems_of(store))


def test_a_unit_that_is_another_subjects_is_refused_and_listed(store: Store) -> None:
    name = store.resolve("world")
    members = members_inside(store.manifest(name))
    one, other = (Path(store.url) / "patches" / name / unit_path(member) for member in members[:2])
    with holding(one, other.read_bytes()):
        with pytest.raises(Corrupt, match=f"{name}/units/{one.name}"):
            store.unit(name, members[0])
        assert any(f"{name}/units/{one.name}" in problem for problem in problems_of(store))
        assert store.unit(name, members[1]).name == members[1]


@pytest.mark.parametrize(
    ("file", "where"), [(SITE, SITE), (ANCHOR, ANCHOR), ("registry.db", "rows 2 to 8 were removed")]
)
def test_a_file_that_is_another_stores_is_listed(store: Store, tmp_path: Path, file: str, where: str) -> None:
    elsewhere = site().model_copy(update={"damping": 0.5})  # its second moment is the same
    other = Store.create(tmp_path / "other", elsewhere, moment())
    other.registry.create_tenant("globex")
    other.registry.close()
    store.registry.close()
    shutil.copy(Path(other.url) / file, Path(store.url) / file)
    before = (Path(store.url) / "registry.db").read_bytes()
    assert any(where in problem for problem in problems_of(store))
    assert file == ANCHOR or (Path(store.url) / "registry.db").read_bytes() == before, "a look writes nothing"


@pytest.mark.parametrize("file", [SITE, "moments", ANCHOR])
def test_a_damaged_file_of_the_store_itself_is_refused_and_listed(
    store: Store, file: str, sizes: Sizes, record_property: Record
) -> None:
    path = Path(store.url) / file
    if path.is_dir():
        path = next(path.iterdir())
    intact, where = store.site(), str(path.relative_to(store.url))

    def check(data: bytes) -> None:
        with holding(path, data):
            if any(where in problem for problem in problems_of(store)):
                return
            # Insignificant text, like white space, may have changed; but nothing else.
            assert file != ANCHOR
            assert store.site() == intact
            assert torch.equal(store.moment()["matrix"], moment()["matrix"])

    record_property("damages", for_every(check, damaged(path.read_bytes()), sizes.damages))
    assert problems_of(store) == []


def test_a_damaged_record_harms_no_patch_and_is_listed_if_it_is_no_json(
    store: Store, sizes: Sizes, record_property: Record
) -> None:
    name = store.resolve("capital")
    (path,) = (Path(store.url) / "records" / name).glob("compile-*.json")

    def check(data: bytes) -> None:
        with holding(path, data):
            store.check(name)
            assert store.adapter_files(name)
            try:
                json.loads(data)
            except ValueError:
                assert any(f"records/{name}/{path.name}" in problem for problem in problems_of(store))

    record_property("damages", for_every(check, damaged(path.read_bytes()), sizes.damages))


def test_an_empty_database_in_a_registrys_place_is_refused(store: Store) -> None:
    store.registry.close()
    for left in Path(store.url).glob("registry.db*"):
        left.unlink()
    for _ in "12":
        opened = Store.open(store.url)
        with pytest.raises(EditError, match=r"registry\.db is empty, but audit\.json records 8 changes"):
            opened.registry.tenants()
        opened.registry.close()
        assert not list(Path(store.url).glob("registry.db*")), "what was refused is not made either"
    (Path(store.url) / ANCHOR).unlink()
    opened = Store.open(store.url)
    assert opened.registry.tenants() == [], "a new one was meant"
    opened.registry.close()


def test_a_registry_of_garbage_is_refused_by_name_and_nothing_else_is_read_from_it(
    template: Path, tmp_path: Path, sizes: Sizes, record_property: Record
) -> None:
    """Garbage, a cut at any length, pages of zeros: the file reads as it was written, or is refused."""
    folder = shutil.copytree(template, tmp_path / "store")
    path = folder / "registry.db"
    whole = path.read_bytes()
    opened = Store.open(folder)
    intact = {what: use() for what, use in read_from(opened).items()}
    opened.registry.close()

    def check(damage: tuple[str, bytes]) -> None:
        kind, data = damage
        path.write_bytes(data)
        for left in folder.glob("registry.db-*"):
            left.unlink()
        store = Store.open(folder)
        try:
            refusals = [why for what, use in read_from(store).items() if (why := _refused(use, intact[what]))]
            assert all("registry.db" in why and "\n" not in why for why in refusals)
            lost = kind != "zeros" and data.ljust(len(whole), b"\0") != whole  # a free page may hold anything
            assert refusals or _listed(store, "registry.db") or not lost
        finally:
            store.registry.close()

    record_property("damages", for_every(check, _garbled(whole), sizes.damages))


def read_from(store: Store) -> dict[str, Callable[[], object]]:
    """The content of a registry."""
    registry = store.registry
    return {
        "patches": registry.patches,
        "tenants": registry.tenants,
        "history": lambda: registry.history("acme"),
        "snapshot": registry.snapshot,
        "audit": registry.audit,
        "rollouts": registry.rollouts.newest_first,
    }


def _refused(use: Callable[[], object], intact: object) -> str:
    """The reason of the refusal; a file that is not refused must be unchanged."""
    try:
        found = use()
    except EditError as error:
        return str(error)
    assert found == intact
    return ""


def _listed(store: Store, where: str) -> bool:
    try:
        return any(where in problem for problem in problems_of(store))
    except EditError as error:
        return where in str(error)


@st.composite
def _garbled(draw: st.DrawFn, whole: bytes) -> tuple[str, bytes]:
    """The damage of a database, and its remaining content."""
    kind = draw(st.sampled_from(["garbage", "header", "cut", "zeros"]))
    if kind == "garbage":
        return kind, draw(st.binary(min_size=1, max_size=4 * PAGE))
    if kind == "header":
        return kind, draw(st.binary(min_size=16, max_size=100)) + whole[100:]
    if kind == "cut":
        return kind, whole[: draw(st.integers(0, len(whole) - 1))]
    place = PAGE * draw(st.integers(0, len(whole) // PAGE - 1))
    return kind, whole[:place] + bytes(PAGE) + whole[place + PAGE :]


def handed_out(store: Store, name: str, members: Sequence[str]) -> dict[str, object]:
    """Everything that a server reads of a patch, None if it is refused. members: of a scoped patch."""
    uses: dict[str, Callable[[], object]] = {
        "the manifest": lambda: store.manifest(name),
        "demonstrations": lambda: store.demonstrations(name),
        "the adapter": lambda: None if members else store.adapter_files(name),
    }
    for member in members:
        uses[member] = partial(lambda member: encode_adapter(store.unit(name, member)), member)
    return {what: _given(use) for what, use in uses.items()}


def _given(use: Callable[[], object]) -> object:
    try:
        return use()
    except Corrupt:
        return None
