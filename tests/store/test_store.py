"""The store gives back the saved values, finds every damaged file, and finds artefacts by their names only."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.example import MODULE, compiled, moment, new_store, site
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from vllm_edit.artefacts.checksums import MANIFEST
from vllm_edit.artefacts.folder import pack
from vllm_edit.artefacts.reports import CompileReport, CompositionReport
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.errors import Corrupt, EditError, NotFound
from vllm_edit.store.garbage import gc
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store


def test_a_compiled_patch_comes_back_as_it_was_saved(store: Store) -> None:
    given_ = compiled()
    name = store.save(given_)
    found = Store.open(store.url).load(name)
    assert found.manifest == given_.manifest
    assert found.name == name
    assert found.demonstrations == given_.demonstrations == store.demonstrations(name)
    assert found.report == given_.report
    assert found.factors is not None
    assert given_.factors is not None
    for key, tensor in given_.factors.tensors().items():
        assert torch.equal(found.factors.tensors()[key], tensor)
    assert found.delta.digest == given_.delta.digest
    torch.testing.assert_close(found.delta.parts[MODULE].dense(), given_.delta.parts[MODULE].dense())


def test_a_patch_without_factors_and_demonstrations_is_stored(store: Store) -> None:
    full = compiled()
    bare = full.manifest.model_copy(update={"factors": None, "demonstrations": None})
    name = store.save(replace(full, manifest=bare, factors=None, demonstrations=(), report=CompileReport()))
    found = store.load(name)
    assert (found.factors, found.demonstrations, found.report) == (None, (), CompileReport())


def test_a_compositions_report_comes_back(store: Store) -> None:
    one = compiled()
    algebra = CompositionReport(norm_growth=1.5, constraint_error=0.01, kept_energy=0.9)
    joined = replace(
        one, manifest=one.manifest.model_copy(update={"kind": "composition"}), report=CompileReport(), algebra=algebra
    )
    found = store.load(store.save(joined.timed(0.5)))
    assert (found.report, found.algebra) == (CompileReport(), algebra.model_copy(update={"seconds": 0.5}))


def test_a_record_of_another_version_is_read_and_one_that_is_no_report_is_named(store: Store) -> None:
    name = store.save(compiled())
    store.add_record(name, "compile", {"health": {"relative_norm": 0.01}, "seconds": 2})
    assert store.load(name).report == CompileReport(seconds=2)
    store.add_record(name, "compile", {"seconds": "long"})
    wanted = rf"the last compile record of {name}: expected a CompileReport; got another record \(seconds: "
    with pytest.raises(Corrupt, match=wanted):
        store.load(name)


def test_site_and_moment_come_back_and_another_site_is_refused(store: Store) -> None:
    assert store.site() == site()
    assert torch.equal(store.moment()["matrix"], moment()["matrix"])
    assert new_store(Path(store.url)).site() == site()
    with pytest.raises(EditError, match="has a site already"):
        Store.create(store.url, site(layer=2), moment())


def test_creating_refuses_a_moment_that_is_not_the_sites(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="expected the second moment with digest"):
        Store.create(tmp_path / "s", site(), {"matrix": torch.eye(12)})
    with pytest.raises(NotFound, match="store init"):
        Store.open(tmp_path / "s")


def test_opening_a_folder_that_is_not_a_store_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="vllm-edit store init"):
        Store.open(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_saving_again_changes_no_file_and_keeps_the_id(store: Store) -> None:
    name = store.save(compiled())
    before = _files(Path(store.url) / "patches")
    assert store.save(compiled()) == name
    assert _files(Path(store.url) / "patches") == before
    assert store.adapter_id(name) == 1


@pytest.mark.parametrize("file", ["factors.safetensors", "manifest.json", "adapter/adapter_config.json"])
@pytest.mark.parametrize("lost", [True, False])
def test_saving_again_repairs_a_damaged_file_and_touches_no_other(store: Store, file: str, lost: bool) -> None:
    name = store.save(compiled())
    folder = Path(store.url) / "patches" / name
    before, inodes = _files(folder), {path: path.stat().st_ino for path in folder.rglob("*") if path != folder / file}
    if lost:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(b"damaged")
    assert store.save(compiled()) == name
    assert _files(folder) == before
    assert {path: path.stat().st_ino for path in inodes} == inodes, "what was right never was away"
    assert store.adapter_id(name) == 1


def test_two_stores_write_the_same_bytes_for_the_same_patch(store: Store, tmp_path: Path) -> None:
    store.save(compiled())
    other = new_store(tmp_path / "other")
    other.save(compiled())
    assert _files(Path(store.url) / "patches") == _files(Path(other.url) / "patches")


def test_a_saved_patch_must_match_its_manifest_and_the_stores_site(store: Store) -> None:
    full = compiled()
    other = Delta({MODULE: LowRank(B=torch.ones(8, 1), A=torch.ones(1, 12))})
    with pytest.raises(EditError, match="adapter"):
        store.save(replace(full, delta=other))
    elsewhere = full.manifest.model_copy(update={"site": "0" * 32})
    with pytest.raises(EditError, match="compiled at site"):
        store.save(replace(full, manifest=elsewhere))
    assert store.names() == []


FILES = (
    "manifest.json",
    "files.json",
    "factors.safetensors",
    "demonstrations.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


def test_an_artefact_has_the_files_that_are_flipped_below(store: Store) -> None:
    name = store.save(compiled())
    assert sorted(_files(Path(store.url) / "patches" / name)) == sorted(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_anywhere_is_found_and_its_file_named(store: Store, file: str) -> None:
    name = store.save(compiled())
    path = Path(store.url) / "patches" / name / file
    intact = path.read_bytes()
    places = {0, len(intact) - 1, *random.Random(file).choices(range(len(intact)), k=20)}
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=file):
            store.load(name)
        assert any(file in problem for problem in problems_of(store))
    path.write_bytes(intact)
    assert problems_of(store) == []


@pytest.mark.parametrize("file", [file for file in FILES if file != "manifest.json"])
def test_a_missing_or_cut_file_is_named(store: Store, file: str) -> None:
    name = store.save(compiled())
    path = Path(store.url) / "patches" / name / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Corrupt, match=file):
        store.load(name)
    path.unlink()
    with pytest.raises(Corrupt, match=file):
        store.load(name)


def test_files_swapped_between_two_patches_are_found(store: Store) -> None:
    first, second = store.save(compiled()), store.save(compiled(seed=1))
    patches = Path(store.url) / "patches"
    # With its list of digests, so that only the manifest can tell.
    for part in ("adapter", "files.json", "factors.safetensors", "demonstrations.json"):
        target = patches / first / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = patches / second / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    with pytest.raises(Corrupt, match="adapter_model"):
        store.load(first)
    shutil.rmtree(patches / first)
    shutil.copytree(patches / second, patches / first)
    with pytest.raises(Corrupt, match="manifest"):
        store.load(first)


@pytest.mark.parametrize("file", ["site.json", "moments"])
def test_a_damaged_site_or_moment_is_found(store: Store, file: str) -> None:
    path = Path(store.url) / file
    path = next(path.iterdir()) if path.is_dir() else path
    intact = path.read_bytes()
    damaged = (
        intact.replace(b'"layer": 1', b'"layer": 2') if file == "site.json" else intact[:-1] + bytes([intact[-1] ^ 1])
    )
    assert damaged != intact
    path.write_bytes(damaged)
    assert any(path.name in problem for problem in problems_of(store))
    path.write_bytes(b"{")
    assert any(path.name in problem for problem in problems_of(store))


def test_names_resolve_in_full_by_patch_and_by_the_start_of_a_digest(store: Store) -> None:
    old, new = store.save(compiled()), store.save(compiled(seed=1))
    other = store.save(compiled(patch="currency"))
    assert store.names() == [other, new, old]
    assert store.resolve(old) == old
    assert store.resolve("capital") == new
    assert store.resolve(old[: len("capital@") + 4]) == old
    store.save(compiled())
    assert store.resolve("capital") == old, "the newest is what was saved last"


def test_an_ambiguous_start_of_a_digest_is_refused(store: Store) -> None:
    from vllm_edit.names import resolve

    names = ["capital@abcd" + "0" * 28, "capital@abcd" + "1" * 28]
    with pytest.raises(EditError, match="fits 2 names"):
        resolve("capital@abcd", names)
    assert resolve("capital@abcd1", names) == names[1]
    with pytest.raises(NotFound):
        resolve("capital@abc", names)


def test_an_unknown_name_reports_the_nearest(store: Store) -> None:
    name = store.save(compiled())
    with pytest.raises(NotFound) as caught:
        store.resolve("capitol")
    assert caught.value.nearest == [name]
    with pytest.raises(NotFound) as caught:
        store.load("capital@" + "0" * 32)
    assert caught.value.nearest == [name]


HOSTILE = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "capital@../../../../../../../../../../etc",
    "/etc/passwd",
    "capital@" + "0" * 31,
    "capital@" + "0" * 33,
    "capital@" + "0" * 31 + "\n",
    "capital@" + "0" * 32 + "\n",
    "capital@" + "0" * 32 + "/../x",
    "capital\x00@" + "0" * 32,
    "Capital@" + "0" * 32,
    "capital@" + "A" * 32,
    "*@" + "*" * 32,
    "capital@" + "?" * 32,
    "ｃapital@" + "0" * 32,
    "capital@" + "０" * 32,
    "x" * 10_000,
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_not_found_and_touches_nothing(store: Store, name: str) -> None:
    _refused_everywhere(store, name)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(alphabet="capital@0123456789abcdef./\\~*?[]%\x00\n ", max_size=50))
def test_no_text_but_a_stored_name_reaches_a_file(store: Store, name: str) -> None:
    _refused_everywhere(store, name)


def _refused_everywhere(store: Store, name: str) -> None:
    before = _files(Path(store.url).parent)
    uses = (
        store.resolve,
        store.load,
        store.manifest,
        store.demonstrations,
        store.adapter_folder,
        store.adapter_id,
        store.records,
        lambda name: store.add_record(name, "gate", {}),
    )
    for use in uses:
        if use == store.records and name.count("@") == 1 and len(name.partition("@")[2]) == 32:
            continue  # a well-formed name without records has none
        with pytest.raises(NotFound) as caught:
            use(name)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    after = _files(Path(store.url).parent)
    assert {path: data for path, data in after.items() if "registry.db" not in path} == {
        path: data for path, data in before.items() if "registry.db" not in path
    }


@pytest.mark.parametrize("kind", ["", "../x", "a-b", "a/b", "A", "x" * 40])
def test_a_records_kind_is_checked(store: Store, kind: str) -> None:
    name = store.save(compiled())
    with pytest.raises(EditError, match="kind"):
        store.add_record(name, kind, {})


def test_records_are_stored_in_order_outside_the_digest(store: Store) -> None:
    name = store.save(replace(compiled(), report=CompileReport()))
    for score in (0.5, 1.0):
        store.add_record(name, "gate", {"reliability": score, "note": "全世界"})
    store.add_record(name, "eval", {})
    assert [record.data["reliability"] for record in store.records(name, "gate")] == [0.5, 1.0]
    assert [record.kind for record in store.records(name)] == ["gate", "gate", "eval"]
    assert store.load(name).name == name


def test_the_adapter_folder_is_a_verified_copy_that_heals(store: Store, tmp_path: Path) -> None:
    name = store.save(compiled())
    folder = store.adapter_folder(name, tmp_path / "cache")
    assert folder == tmp_path / "cache" / name
    assert Delta.load_peft(folder).digest == compiled().delta.digest
    inode = folder.stat().st_ino
    assert store.adapter_folder(name, tmp_path / "cache").stat().st_ino == inode, "an intact copy is left alone"
    (folder / "adapter_config.json").write_text("{}")
    assert json.loads((store.adapter_folder(name, tmp_path / "cache") / "adapter_config.json").read_text())["r"] == 1
    (folder / "adapter_model.safetensors").unlink()
    assert Delta.load_peft(store.adapter_folder(name, tmp_path / "cache")).digest == compiled().delta.digest
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_a_corrupt_adapter_is_never_copied(store: Store, tmp_path: Path) -> None:
    name = store.save(compiled())
    (Path(store.url) / "patches" / name / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(Corrupt, match="adapter_config"):
        store.adapter_folder(name, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_default_copy_is_private_to_the_user(store: Store) -> None:
    folder = store.adapter_folder(store.save(compiled()))
    assert folder.parent.stat().st_mode & 0o077 == 0
    shutil.rmtree(folder)


def test_peft_loads_the_adapter_folder(store: Store, tmp_path: Path) -> None:
    model = tiny_model("llama", tiny_tokenizer(), hidden=64, d_ff=96)
    random_ = torch.Generator().manual_seed(3)
    delta = Delta({MODULE: LowRank(torch.randn(64, 2, generator=random_), torch.randn(2, 96, generator=random_))})
    full = compiled()
    manifest = full.manifest.model_copy(update={"adapter": delta.digest, "rank": 2})
    name = store.save(replace(full, manifest=manifest, delta=delta))
    base = save_tiny("llama", tmp_path / "llama", hidden=64, d_ff=96)
    from transformers import AutoModelForCausalLM

    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(store.adapter_folder(name, tmp_path / "c"))
    )
    ids = torch.arange(10, 20)[None]
    with torch.no_grad(), delta.apply(model):
        expected = model(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, expected, rtol=0, atol=1e-4)


def test_a_store_puts_its_registry_at_the_given_url(
    registry_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", registry_url)
    store = new_store(tmp_path / "elsewhere")
    names = [store.save(compiled(seed=seed)) for seed in range(2)]
    store.registry.set_status(names[0], "accepted")
    store.registry.create_tenant("acme")
    store.registry.publish("acme", names[0])
    other = Store.open(store.url)
    assert other.registry.active("acme") == names[0]
    assert (other.names(), gc(other).removed) == (names[::-1], ())
    assert problems_of(other) == []
    found = other.registry.verify_audit()
    assert (found.not_anchored, found.problems) == (0, ())
    assert not (tmp_path / "elsewhere" / "registry.db").exists()
    store.registry.close()
    other.registry.close()


def test_a_store_is_opened_and_read_while_its_registry_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name = store.save(compiled())
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", f"sqlite:///{store.url}/gone/registry.db")
    opened = Store.open(store.url)
    assert opened.load(name).manifest == compiled().manifest
    with pytest.raises(EditError, match="cannot be used"):
        opened.names()


def test_a_store_is_not_made_with_a_registry_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", f"sqlite:///{tmp_path}/gone/registry.db")
    with pytest.raises(EditError, match="cannot be used"):
        new_store(tmp_path / "store")
    with pytest.raises(NotFound, match="no store"):
        Store.open(tmp_path / "store")


def test_an_adapter_id_is_never_given_twice(store: Store) -> None:
    first = store.save(compiled())
    second = store.save(compiled(seed=1))
    third = store.save(compiled(seed=2))
    assert [store.adapter_id(name) for name in (first, second, third)] == [1, 2, 3]
    store.save(compiled())  # the newest again, so that the last id is the one to go
    assert set(gc(store, dry_run=False).removed) == {third, second}
    assert store.adapter_id(store.save(compiled(seed=2))) == 4


def test_a_patch_whose_files_vanished_is_reported(store: Store) -> None:
    name = store.save(compiled())
    shutil.rmtree(Path(store.url) / "patches" / name)
    assert store.names() == []
    assert problems_of(store) == [f"{name} is in the registry, but its files are gone"]


def test_a_patch_of_an_earlier_version_with_an_end_that_no_database_holds_harms_no_other(store: Store) -> None:
    whole, made = store.save(compiled()), compiled(patch="never")
    far = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-5)))
    edits = tuple(edit.model_copy(update={"valid_until": far}) for edit in made.manifest.edits)
    never = replace(made, manifest=made.manifest.model_copy(update={"edits": edits}))
    store.files.write_folder(f"patches/{never.name}", pack(never), MANIFEST)  # as before such an end was refused
    assert sorted(store.names()) == sorted([whole, never.name])
    assert store.load(whole).name == whole
    with pytest.raises(Corrupt, match=r"written by another version.*years 1 to 9999 in UTC.*compile again"):
        store.load(never.name)
    assert [problem for problem in problems_of(store) if whole in problem] == []


def test_artefacts_may_be_on_any_fsspec_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/store"
    with pytest.raises(EditError, match="VLLM_EDIT_REGISTRY"):
        new_store(url)  # type: ignore[arg-type]
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", f"sqlite:///{tmp_path / 'registry.db'}")
    remote = new_store(url)  # type: ignore[arg-type]
    old, name = remote.save(compiled()), remote.save(compiled(seed=1))
    again = Store.open(url)
    assert again.load(name).manifest == compiled(seed=1).manifest
    assert again.resolve("capital") == name
    assert [record.kind for record in again.records(name)] == ["compile"]
    assert Delta.load_peft(again.adapter_folder(name, tmp_path / "cache")).digest == compiled(seed=1).delta.digest
    assert gc(again, dry_run=False).removed == (old,)
    assert again.names() == [name]
    assert problems_of(again) == []


def test_the_default_place_is_configurable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(tmp_path / "configured")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=r"no store at \.vllm-edit"):
        Store.open()
    monkeypatch.setenv("VLLM_EDIT_STORE", str(tmp_path / "configured"))
    assert Store.open().site() == site()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
