"""`vllm-edit serve` reports in one line why a server would not come up, and starts vLLM only if it would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Program
from tests.serving import places
from vllm_edit.engine import lora_support
from vllm_edit.engine.lora_support import LoraClass
from vllm_edit.store.last_state import LastState
from vllm_edit.store.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("VLLM_EDIT_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    monkeypatch.delenv("VLLM_EDIT_STORE", raising=False)
    return places.make_store(tmp_path / "store", places.make_site(model))


class Serve:
    """Runs `vllm-edit serve` up to the start of vLLM."""

    def __init__(self, program: Program, store: Store) -> None:
        self._program, self._store = program, store
        self.started: list[list[str]] = []

    def __call__(self, *arguments: object) -> list[list[str]]:
        ran = self._program("serve", *arguments, "--store", self._store.url)
        assert (ran.code, ran.err) == (0, "")
        return self.started

    def refused(self, *arguments: object) -> str:
        """The single line of the error."""
        ran = self._program("serve", *arguments, "--store", self._store.url)
        assert ran.code == 1
        assert self.started == []
        assert ran.out == ""
        (line,) = ran.err.strip().splitlines()
        return line


@pytest.fixture
def serve(program: Program, store: Store, monkeypatch: pytest.MonkeyPatch) -> Serve:
    made = Serve(program, store)

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        assert environment["VLLM_EDIT_STORE"] == store.url
        made.started.append(command)

    monkeypatch.setattr(os, "execve", execve)
    return made


def test_a_server_of_the_stores_base_is_started(serve: Serve, model: Path) -> None:
    (command,) = serve("--port", "1")
    assert str(model) in command
    assert command[-2:] == ["--port", "1"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "weights is"),
        ("tokenizer_config.json", "settings is"),
        ("config.json", "config is"),
        ("chat_template.jinja", "chat_template is"),
    ],
)
def test_another_base(serve: Serve, tmp_path: Path, model: Path, file: str, message: str) -> None:
    other = places.save_tiny("llama", tmp_path / "seed", seed=1)
    folder = shutil.copytree(model, tmp_path / "other")
    if file == "model.safetensors":
        shutil.copy(other / file, folder / file)
    elif file.endswith(".json"):
        (folder / file).write_text((folder / file).read_text().replace("{", '{"other": 1,', 1))
    else:
        (folder / file).write_text("{{ messages }}")
    assert message in serve.refused(folder)


def test_flags_refuses_another_base_as_serve_does_but_the_model_may_be_on_another_machine(
    serve: Serve, program: Program, store: Store, tmp_path: Path
) -> None:
    other = places.save_tiny("llama", tmp_path / "seed", seed=1)
    for named in (other, "no/such/folder"):
        ran = program("flags", named, "--store", store.url)
        assert (ran.code, ran.out, ran.err.strip()) == (1, "", serve.refused(named))
    assert program("flags", "--store", store.url).code == 0
    elsewhere = tmp_path / "elsewhere"
    assert str(elsewhere) in program("flags", elsewhere, "--store", store.url).out


def test_a_model_that_is_not_whole(serve: Serve, tmp_path: Path, model: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "truncated or damaged" in serve.refused(folder)
    assert "no such model folder" in serve.refused(tmp_path / "nowhere")
    assert "neither a model folder nor the id" in serve.refused("no/such/folder")


def _cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache returns the folder as the snapshot of every model."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_hub_model_that_is_not_downloaded_yet_is_left_to_the_server(
    serve: Serve, tmp_path: Path, model: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve("nobody/nothing-of-that-name")
    folder = shutil.copytree(model, tmp_path / "snapshot")
    (folder / missing).unlink()
    _cached(folder, monkeypatch)
    assert len(serve("nobody/tiny")) == 2


def test_another_base_in_the_hubs_cache(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cached(places.save_tiny("llama", tmp_path / "seed", seed=1), monkeypatch)
    assert "nobody/tiny is not the base" in serve.refused("nobody/tiny")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hf-overrides", '{"rms_norm_eps": 1}'), "--hf-overrides"),
        (("--max-lora-rank", "1"), "--max-lora-rank 1"),
        (("--host", "0.0.0.0"), "make keys"),
        (("--grpc",), "--grpc"),
    ],
)
def test_flags_that_contradict_the_store(serve: Serve, flags: tuple[str, ...], message: str) -> None:
    assert message in serve.refused(*flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hf-overrides: {rms_norm_eps: 1}", "--hf-overrides"),
        ("trust-remote-code: true\nport: 1", "--trust-remote-code"),
        ("enable-lora: false", "--no-enable-lora"),
        ("quantization: fp8", "--quantization fp8"),
        ("host: 0.0.0.0", "make keys"),
        ("- port", "expected a mapping"),
        ("a: [", "config.yaml: "),
        ("&x {a: *x}", "expected values that JSON can hold"),
        ("a: {[1]: 2}", "config.yaml: "),
        (None, "config.yaml cannot be read"),
    ],
)
def test_a_configuration_file_that_contradicts_the_store(
    serve: Serve, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    assert message in serve.refused("--config", file)


def test_a_configuration_file_is_passed_on(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\nlimit-mm-per-prompt: {image: 1}\nmiddleware: [a, b]\nenforce-eager: true\n")
    (command,) = serve("--config", file)
    assert command[-2:] == ["--config", str(file)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VLLM_USE_RUST_FRONTEND", "1", "VLLM_USE_RUST_FRONTEND replaces"),
        ("VLLM_SKIP_MODEL_NAME_VALIDATION", "1", "VLLM_SKIP_MODEL_NAME_VALIDATION lets"),
        ("VLLM_EDIT_LOG_DAYS", "many", "VLLM_EDIT_LOG_DAYS: expected a number"),
        ("VLLM_EDIT_TRUSTED_PEERS", "10.0.0.0/8", "go together"),
        ("VLLM_EDIT_REGISTRY", "sqlite:///x?bogus=1", "bogus"),
        ("VLLM_EDIT_REGISTRY", "mysql://x/y", "got a URL for mysql"),
    ],
)
def test_an_environment_in_which_it_could_not_serve(
    serve: Serve, name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert message in serve.refused()


def test_another_stores_registry(
    serve: Serve, program: Program, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = places.make_site(model, layer=2, modules=("model.layers.2.mlp.down_proj",))
    other = places.make_store(tmp_path / "two", site)
    places.add_patch(other, "capital", 1)
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", str(other.registry.url))
    assert "belongs to another store" in serve.refused()
    assert "belongs to another store" in program("flags", "--store", tmp_path / "store").err


def _damage_registry(store: Store) -> None:
    store.registry.close()
    for file in Path(store.url).glob("registry.db*"):
        file.unlink()
    (Path(store.url) / "registry.db").write_bytes(b"nothing" * 1000)


def test_a_registry_that_cannot_be_read_and_no_state_of_it(serve: Serve, store: Store) -> None:
    _damage_registry(store)
    assert "no saved state of it" in serve.refused()


def test_a_registry_that_cannot_be_read_is_replaced_by_the_stored_state(serve: Serve, store: Store) -> None:
    LastState.of(store).keep(store.registry.snapshot())
    _damage_registry(store)
    assert serve()


@pytest.mark.parametrize("kind", ["damaged", "forbidden", "folder"])
def test_a_stored_state_that_cannot_be_read(serve: Serve, store: Store, kind: str) -> None:
    kept = LastState.of(store)
    kept.keep(store.registry.snapshot())
    _damage_registry(store)
    if kind == "damaged":
        kept.path.write_text("{")
    else:
        kept.path.unlink()
        if kind == "folder":
            kept.path.mkdir()
        else:
            kept.path.symlink_to(kept.path)  # not even root can read it
    assert "remove it, and start when the registry can be reached" in (printed := serve.refused())
    assert str(kept.path) in printed


def test_a_tenant_of_the_base_models_name(serve: Serve, store: Store, model: Path) -> None:
    store.registry.create_tenant("other")
    store.registry.publish("other", places.add_patch(store, "capital", 1), "x", "ann")
    assert serve()
    serve.started.clear()
    assert "tenant other has the base model's served name" in serve.refused("--served-model-name", "x", "other")


def test_a_class_without_lora(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(folder: Path) -> Any:
        return LoraClass("LlamaForCausalLM", "Other", supports_lora=False)

    monkeypatch.setattr(lora_support, "lora_class", without)
    assert "does not support LoRA" in serve.refused()
