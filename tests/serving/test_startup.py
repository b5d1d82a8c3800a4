"""A server either applies its store's patches to the right base or does not come up; its flags are the site's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from tests.serving import places
from vllm_edit.artefacts.site import Site
from vllm_edit.engine.compat import version, wrapped
from vllm_edit.engine.plugins import merged_plugins
from vllm_edit.errors import Incompatible
from vllm_edit.serving import startup
from vllm_edit.serving.profile import profile
from vllm_edit.serving.server_settings import Settings

GOOD = {"VLLM_EDIT_STORE": "x", "VLLM_PLUGINS": "vllm_edit,other"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.make_model(tmp_path_factory.mktemp("startup"))


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return places.make_site(folder)


def test_environment_in_which_the_router_is_active_passes() -> None:
    startup.check_environment(GOOD, ["serve"])
    startup.check_environment(GOOD | {"VLLM_EDIT_TRUSTED_PEERS": "10.1.0.0/16", "FORWARDED_ALLOW_IPS": ""}, ["serve"])


@pytest.mark.parametrize(
    ("changed", "arguments", "named"),
    [
        ({"VLLM_PLUGINS": "other"}, [], "VLLM_PLUGINS"),
        ({"VLLM_PLUGINS": ""}, [], "VLLM_PLUGINS"),
        ({"VLLM_SKIP_MODEL_NAME_VALIDATION": "1"}, [], "VLLM_SKIP_MODEL_NAME_VALIDATION"),
        ({"VLLM_USE_RUST_FRONTEND": "true"}, [], "VLLM_USE_RUST_FRONTEND"),
        ({}, ["serve", "--grpc"], "--grpc"),
        ({"VLLM_EDIT_TRUSTED_PEERS": "10.1.0.0/16"}, [], "FORWARDED_ALLOW_IPS"),
        ({"VLLM_EDIT_TRUSTED_PEERS": "10.1.0.0/16", "FORWARDED_ALLOW_IPS": "10.1.0.7"}, [], "FORWARDED_ALLOW_IPS"),
    ],
)
def test_environment_that_bypasses_the_router_is_fatal(
    changed: dict[str, str], arguments: list[str], named: str
) -> None:
    with pytest.raises(Incompatible, match=named):
        startup.check_environment(GOOD | changed, arguments)


FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONG_ROPE = AutoConfig.for_model(
    "phi3",
    rope_scaling={"type": "longrope", **FACTORS},
    original_max_position_embeddings=4096,
    max_position_embeddings=131072,
)


def model(**changed: Any) -> SimpleNamespace:
    own = {"model": "m", "tokenizer": "m", "quantization": None, "max_model_len": 4096, "hf_config": LONG_ROPE}
    return SimpleNamespace(**own | changed)


def configuration(site: Site, **changed: Any) -> Any:
    lora = SimpleNamespace(max_lora_rank=site.max_rank, target_modules=list(site.modules))
    settings = {
        "model_config": model(),
        "lora_config": lora,
        "load_config": SimpleNamespace(load_format="auto"),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
    }
    return SimpleNamespace(**settings | changed)


def test_configuration_of_our_own_flags_has_no_problem(site: Site) -> None:
    assert startup._configuration_problems(configuration(site), site) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lora_config": None}, "LoRA is off"),
        ({"lora_config": SimpleNamespace(max_lora_rank=1, target_modules=["x"])}, "--max-lora-rank"),
        ({"lora_config": SimpleNamespace(max_lora_rank=8, target_modules=None)}, "--lora-target-modules"),
        ({"model_config": model(tokenizer="t")}, "--tokenizer"),
        ({"model_config": model(quantization="fp8")}, "--quantization"),
        ({"model_config": model(max_model_len=4097)}, "use --max-model-len 4096"),
        ({"load_config": SimpleNamespace(load_format="dummy")}, "--load-format"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline"),
    ],
)
def test_configuration_that_would_serve_something_else_is_named(
    site: Site, changed: dict[str, Any], named: str
) -> None:
    assert named in "; ".join(startup._configuration_problems(configuration(site, **changed), site))


class Engine:
    """The two questions that the check asks of a running engine."""

    def __init__(self, folder: Path, wrapped: list[str]) -> None:
        self.config = SimpleNamespace(model_config=SimpleNamespace(model=str(folder), revision=None))
        self._wrapped = wrapped

    async def wrapped_modules(self, site: Sequence[str]) -> list[dict[str, list[str]]]:
        return [{"wrapped": self._wrapped, "expected": list(site)}]


def test_engine_on_the_sites_base_with_the_sites_modules_passes(folder: Path, site: Site) -> None:
    assert asyncio.run(startup._engine_problems(Engine(folder, list(site.modules)), site)) == []


def test_other_weights_or_other_wrapped_modules_are_named(tmp_path: Path, folder: Path, site: Site) -> None:
    other = places.save_tiny("llama", tmp_path / "other", seed=1)
    assert "weights" in "; ".join(asyncio.run(startup._engine_problems(Engine(other, list(site.modules)), site)))
    assert "wraps nothing" in "; ".join(asyncio.run(startup._engine_problems(Engine(folder, []), site)))


@pytest.mark.parametrize(
    ("arguments", "settings", "keyed", "refused"),
    [
        ({"host": "127.0.0.1"}, Settings(), False, False),
        ({"host": "::1"}, Settings(), False, False),
        ({"host": "localhost"}, Settings(), False, False),
        ({"host": None}, Settings(), False, True),
        ({"host": "0.0.0.0"}, Settings(), False, True),
        ({"host": "127.0.0.1.example"}, Settings(), False, True),
        ({"host": "0.0.0.0"}, Settings(allow_open=True), False, False),
        ({"host": "0.0.0.0", "api_key": ["k"]}, Settings(), False, False),
        ({"host": "0.0.0.0"}, Settings(), True, False),
        ({"host": "127.0.0.1", "api_key": ["k"]}, Settings(allow_open=True), True, True),
    ],
)
def test_without_keys_only_loopback_and_keys_of_one_kind(
    arguments: dict[str, Any], settings: Settings, keyed: bool, refused: bool
) -> None:
    assert bool(startup._keyed_problems(Namespace(**arguments), settings, keyed)) is refused


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.0.0.1", "api_server_count": 2}, True),
        ({"host": "127.0.0.1", "lora_modules": ["x"]}, True),
        ({"host": "127.0.0.1", "chat_template": "x"}, True),
    ],
)
def test_arguments_that_pass_the_router_or_the_site_by_are_refused(arguments: dict[str, Any], refused: bool) -> None:
    assert bool(startup._argument_problems(Namespace(**arguments))) is refused


def test_flags_wrap_exactly_the_site_and_the_users_come_last(site: Site) -> None:
    made = profile(site, "/store", "/models/tiny", "tiny", ["--port", "1", "--max-loras", "500"])
    text = " ".join(made.flags)
    assert f"--lora-target-modules {places.MODULE} --dtype" in text
    assert "--max-lora-rank 8" in text
    assert text.endswith("--port 1 --max-loras 500")
    assert "--max-cpu-loras 500" in text
    assert "--host 127.0.0.1" in text
    assert made.environment["VLLM_EDIT_STORE"] == "/store"
    assert made.environment["VLLM_PLUGINS"].endswith("vllm_edit")
    if version.is_cpu():
        assert "--dtype float32 --enforce-eager" in text
        assert "--max-loras 17" in text


@pytest.mark.parametrize(
    "flags",
    [
        ["--lora-target-modules", "q_proj"],
        ["--lora-target-modules", places.MODULE, "k_proj"],
        ["--lora_target_modules=q_proj"],
        ["--max-lora-rank", "1"],
        ["--max-lora-rank=1"],
        ["--api-server-count", "2"],
        ["--pipeline-parallel-size", "2"],
        ["--host", "0.0.0.0"],
        ["--quantization", "fp8"],
        ["--grpc"],
        ["--no-enable-lora"],
    ],
)
def test_flags_that_contradict_the_site_are_refused_by_name(site: Site, flags: list[str]) -> None:
    with pytest.raises(Incompatible, match=flags[0].partition("=")[0].replace("_", "-")):
        profile(site, "/store", "m", "m", flags)


@pytest.mark.parametrize(
    "flags", [[], ["--data-parallel-size", "2"], ["-dp", "2"], ["--data_parallel_size=2"], ["--api-server-count", "1"]]
)
def test_there_is_one_api_server_whatever_the_number_of_engines(site: Site, flags: list[str]) -> None:
    given = profile(site, "/store", "m", "m", flags).flags
    assert [given[place + 1] for place, flag in enumerate(given) if flag == "--api-server-count"] == ["1"]


def test_modules_get_the_name_that_the_transformers_backend_gives_them() -> None:
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    assert wrapped.candidates([module]) == [module, "model.layers.1.mlp.dense_4h_to_h"]
    assert wrapped.candidates([places.MODULE]) == [places.MODULE]


def test_open_server_must_be_asked_for(site: Site) -> None:
    made = profile(site, "/store", "m", "m", ["--host", "0.0.0.0"], allow_open=True)
    assert made.environment["VLLM_EDIT_ALLOW_OPEN"] == "1"


def test_with_gateways_no_header_replaces_a_connections_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FORWARDED_ALLOW_IPS" not in profile(site, "/store", "m", "m").environment
    monkeypatch.setenv("VLLM_EDIT_TRUSTED_PEERS", "10.1.0.0/16")
    assert profile(site, "/store", "m", "m").environment["FORWARDED_ALLOW_IPS"] == ""


@pytest.mark.parametrize(
    ("present", "merged"),
    [(None, "vllm_edit"), ("", "vllm_edit"), ("a", "a,vllm_edit"), ("vllm_edit,a", "vllm_edit,a")],
)
def test_plugins_that_the_user_allowed_stay_allowed(present: str | None, merged: str) -> None:
    assert merged_plugins(present) == merged


@pytest.mark.slow
def test_serving_imports_neither_the_editing_package_nor_vllm() -> None:
    serving = "plugin startup router service admin residency prefixes profile"
    modules = [*(f"serving.{name}" for name in serving.split()), "engine.compat.engine", "engine.compat.cpu_lora_mask"]
    lines = [f"import vllm_edit.{module}" for module in modules]
    heavy = "('vllm_edit.editing', 'vllm_edit.evaluation', 'vllm.', 'peft')"
    check = f"print([m for m in sys.modules if (m + '.').startswith({heavy})])"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(["import sys", *lines, check])], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_plugin_module_needs_nothing_that_could_fail_to_import() -> None:
    code = "import sys; old = set(sys.modules); import vllm_edit.serving.plugin; print(sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {"'vllm_edit'", "'vllm_edit.serving'", "'vllm_edit.serving.plugin'"}
    third_party = {"torch", "vllm", "fastapi", "starlette", "sqlalchemy", "pydantic", "rapidfuzz", "prometheus_client"}
    assert not [name for name in third_party if f"'{name}'" in done.stdout]
    assert all(name in done.stdout for name in ours)
