"""The fingerprint covers exactly the files that are loaded; incomplete files are named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny
from vllm_edit.artefacts.checkpoint import Checkpoint
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.digest import digest_bytes, digest_file, digest_json
from vllm_edit.errors import EditError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 11417792\n" % 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def in_shards(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("shards") / "model")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` to change."""
    return shutil.copytree(whole, tmp_path / "model")


def set_json(path: Path, **changed: object) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changed))


def test_fingerprints_of_stores_that_exist_stay_as_they_were(whole: Path) -> None:
    """The four digests of a site from before `settings` existed, and the digest of all."""
    config = json.loads((whole / "config.json").read_text())
    volatile = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
    weights, tokenizer = whole / "model.safetensors", whole / "tokenizer.json"
    old = {
        "config": digest_json({key: value for key, value in config.items() if key not in volatile}),
        "weights": digest_bytes(weights.name.encode(), digest_file(weights).encode()),
        "tokenizer": digest_bytes(tokenizer.name.encode(), digest_file(tokenizer).encode()),
        "chat_template": digest_json((whole / "chat_template.jinja").read_text()),
    }
    now = Fingerprint.of_folder(whole)
    assert now.model_dump(exclude={"settings"}) == old
    older = Fingerprint(**old)
    assert older.digest == digest_json(old)
    assert older.departures(now) == now.departures(older) == ()
    assert now.is_named(older.digest)
    assert now.is_named(now.digest)
    assert older.digest != now.digest


def test_the_site_of_a_store_from_before_keeps_its_digest(whole: Path) -> None:
    older = Fingerprint(**Fingerprint.of_folder(whole).model_dump(exclude={"settings"}))
    site = Site(
        base=older,
        model="m",
        modules=("a",),
        layer=0,
        d_in=1,
        d_out=1,
        contexts=(Context(),),
        second_moment="s",
        second_moment_count=1,
        residual_scale=1.0,
        max_rank=8,
        slots=2,
    )
    newer = {"network", "network_method", "statistics", "margin", "thinking"}
    fields = site.model_dump(mode="json", exclude={"model", "slots"} | newer)
    del fields["base"]["settings"]
    assert site.digest == digest_json(fields)


@pytest.mark.parametrize(
    "added",
    ["pytorch_model.bin", "tf_model.h5", "training_args.bin", "README.md", "original/consolidated.00.pth"],
)
def test_a_file_that_is_not_loaded_is_not_part_of_the_fingerprint(folder: Path, added: str) -> None:
    before = Fingerprint.of_folder(folder)
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).write_bytes(b"PK\x03\x04 later")
    assert Fingerprint.of_folder(folder) == before
    Checkpoint(folder).check_served()


def test_of_shards_those_count_that_the_index_names(in_shards: Path, tmp_path: Path) -> None:
    before = Fingerprint.of_folder(in_shards)
    other = shutil.copytree(in_shards, tmp_path / "other")
    (other / "left-over.safetensors").write_bytes(b"nothing")
    assert Fingerprint.of_folder(other) == before
    Checkpoint(other).check_whole()
    Checkpoint(other).check_served()


@pytest.mark.parametrize(
    ("file", "changed", "part"),
    [
        ("config.json", {"rms_norm_eps": 0.5}, "config"),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, "settings"),
        ("tokenizer_config.json", {"add_bos_token": False}, "settings"),
        ("tokenizer_config.json", {"model_max_length": 7}, "settings"),
        ("added_tokens.json", {"<more>": 512}, "settings"),
        ("generation_config.json", {"repetition_penalty": 1.5}, "settings"),
        ("generation_config.json", {"eos_token_id": [1, 2, 3]}, "settings"),
    ],
)
def test_a_setting_that_makes_another_model_changes_the_fingerprint(
    folder: Path, file: str, changed: dict[str, object], part: str
) -> None:
    before = Fingerprint.of_folder(folder)
    set_json(folder / file, **changed)
    assert before.departures(Fingerprint.of_folder(folder)) == (part,)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"transformers_version": "9"}),
        ("tokenizer_config.json", {"name_or_path": "elsewhere"}),
        ("generation_config.json", {"transformers_version": "9"}),
    ],
)
def test_a_setting_that_names_the_writing_software_does_not(
    folder: Path, file: str, changed: dict[str, object]
) -> None:
    before = Fingerprint.of_folder(folder)
    set_json(folder / file, **changed)
    assert Fingerprint.of_folder(folder) == before


def test_a_store_whose_folder_held_more_weights_says_that_it_has_to_be_made_anew(whole: Path) -> None:
    now = Fingerprint.of_folder(whole)
    older = now.model_copy(update={"weights": "another", "settings": None})
    kinds = {"network": "n", "modules": ("a",), "layer": 0, "model": "m", "max_rank": 8, "slots": 2}
    (problem,) = Site(base=older, **kinds).base_problems(now)
    assert problem.startswith("weights is ")
    assert "has to be made anew" in problem
    (problem,) = Site(base=now, **kinds).base_problems(older.model_copy(update={"settings": now.settings}))
    assert "anew" not in problem


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pointer(path: Path) -> None:
    path.write_bytes(POINTER)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights are a pointer": ("model.safetensors", _pointer, "Git LFS pointer"),
    "tokenizer is a pointer": ("tokenizer.json", _pointer, "Git LFS pointer"),
    "template is a pointer": ("chat_template.jinja", _pointer, "Git LFS pointer"),
    "weights are cut": ("model.safetensors", _half, "truncated or damaged"),
    "weights are empty": ("model.safetensors", lambda path: path.write_bytes(b""), "truncated or damaged"),
    "weights are text": ("model.safetensors", lambda path: path.write_text("<html>" * 99), "truncated or damaged"),
    "weights are longer": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"0"), "damaged"),
    "weights are a list": ("model.safetensors", lambda path: path.write_bytes(b"\2" + b"\0" * 7 + b"[]"), "damaged"),
}


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_is_not_whole_is_named(
    folder: Path, file: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder / file)
    with pytest.raises(EditError, match=message) as raised:
        Checkpoint(folder).check_whole()
    assert str(folder / file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_whole_files_pass_and_those_of_older_torch_too(whole: Path, in_shards: Path, folder: Path) -> None:
    Checkpoint(whole).check_whole()
    Checkpoint(in_shards).check_whole()
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):
        torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        Checkpoint(folder).check_whole()
        Checkpoint(folder).check_served()
    torch.save({"a": torch.ones(99)}, folder / "pytorch_model.bin")
    _half(folder / "pytorch_model.bin")
    with pytest.raises(EditError, match=r"pytorch_model\.bin is truncated"):
        Checkpoint(folder).check_whole()


def test_a_missing_shard_is_named(in_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(in_shards, tmp_path / "model")
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(EditError, match=f"{last.name} is missing, but the index"):
        Checkpoint(folder).check_whole()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe{", b"[" * 100_000, POINTER, b'{"a": NaN}'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_settings_file_that_is_not_a_json_object_is_one_line(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(EditError) as raised:
        Fingerprint.of_folder(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("added", ["consolidated.safetensors", "another.safetensors"])
def test_weights_that_vllm_alone_would_load_are_refused(folder: Path, added: str) -> None:
    shutil.copy(folder / "model.safetensors", folder / added)
    with pytest.raises(EditError, match=f"only one of vLLM and transformers loads .*{added}"):
        Checkpoint(folder).check_served()
