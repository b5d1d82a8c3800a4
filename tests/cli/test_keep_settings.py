"""A store from before the digests of a base's settings reports this, and can store them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer

from tests.cli.program import Program
from tests.serving import places
from vllm_edit.artefacts.site import WITHOUT_SETTINGS, Fingerprint
from vllm_edit.errors import EditError
from vllm_edit.serving import startup
from vllm_edit.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.make_model(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def model(tmp_path: Path, made: Path) -> Path:
    return shutil.copytree(made, tmp_path / "tiny")


@pytest.fixture
def older(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    before = Fingerprint(**Fingerprint.of_folder(model).model_dump(exclude={"settings"}))
    return places.make_store(tmp_path / "store", places.make_site(model, base=before))


def _changed(model: Path) -> None:
    file = model / "generation_config.json"
    file.write_text(json.dumps({"repetition_penalty": 1.3}))


def test_verify_names_the_missing_digest(program: Program, older: Store) -> None:
    ran = program("verify", "--store", older.url)
    assert ran.code == 0
    assert ran.err.strip() == f"note: {WITHOUT_SETTINGS}"
    assert program("verify", "--store", older.url, "--json").json["notes"] == [WITHOUT_SETTINGS]


def test_stored_settings_are_compared_from_then_on(program: Program, older: Store, model: Path) -> None:
    site = older.site().digest
    ran = program("store", "keep-settings", "--store", older.url, "--json")
    assert (ran.code, ran.json["settings"]) == (0, Fingerprint.of_folder(model).settings)
    assert older.site().digest == site, "patches that were compiled at it stay valid"
    assert startup.folder_problems(model, older.base()) == []
    assert program("verify", "--store", older.url).err == ""
    _changed(model)
    (problem,) = startup.folder_problems(model, older.base())
    assert problem.startswith("the served model's settings is ")
    again = program("store", "keep-settings", "--store", older.url)
    assert (again.code, "already" in again.err) == (1, True)


def test_another_base_is_not_stored(program: Program, older: Store, tmp_path: Path) -> None:
    other = places.save_tiny("llama", tmp_path / "other", seed=1)
    ran = program("store", "keep-settings", "--model", other, "--store", older.url)
    assert ran.code == 1
    assert "weights is" in ran.err
    assert older.base().settings is None


def test_a_tokenizer_that_does_not_give_text_back_is_not_saved(program: Program, older: Store, model: Path) -> None:
    file = model / "tokenizer_config.json"
    file.write_text(file.read_text().replace("TokenizersBackend", "LlamaTokenizer"))
    ran = program("store", "keep-settings", "--store", older.url)
    assert ran.code == 1
    assert "does not give text back" in ran.err
    assert older.base().settings is None


def test_a_new_store_has_nothing_to_keep(program: Program, tmp_path: Path, model: Path) -> None:
    store = places.make_store(tmp_path / "new", places.make_site(model))
    assert store.notes() == []
    assert "already" in program("store", "keep-settings", "--store", store.url).err


def test_a_server_of_an_older_store_says_so_and_looks_at_its_tokenizer(
    older: Store, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    startup.check_settings(older.base(), tokenizer)
    assert [record.getMessage() for record in caplog.records] == [WITHOUT_SETTINGS]
    lossy = AutoTokenizer.from_pretrained(model)
    lossy.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(EditError, match="does not give text back"):
        startup.check_settings(older.base(), lossy)
    startup.check_settings(Fingerprint.of_folder(model), lossy)  # its digest is enough
