"""The effect of every vLLM setting on a base is known; a setting that changes the base model is refused by name."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from tests.serving import places
from vllm_edit.artefacts.site import Site
from vllm_edit.engine.compat import version
from vllm_edit.engine.compat.flags import CHECKED, NEUTRAL, REFUSED, judged, named, problems
from vllm_edit.errors import Incompatible
from vllm_edit.serving import startup
from vllm_edit.serving.offline import PatchedLLM
from vllm_edit.serving.profile import profile

_PARSER_ONLY = {"help", "model_tag"}
"""Arguments that no configuration has: the parser's help, and the model of the command."""

OTHER_MODELS: dict[str, tuple[str, ...]] = {
    "hf_overrides": ("--hf-overrides", '{"rms_norm_eps": 0.5}'),
    "hf_overrides=": ('--hf_overrides={"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}',),
    "hf_overrides.": ("--hf-overrides.rms_norm_eps", "0.5"),
    "hf_overrides.=": ("--hf-overrides.rope_parameters.factor=4.0",),
    "hf_overrides, abbreviated": ("--hf-ov", '{"rms_norm_eps": 0.5}'),
    "hf_config_path": ("--hf-config-path", "elsewhere"),
    "config_format": ("--config-format", "mistral"),
    "generation_config": ("--generation-config", "vllm"),
    "generation_config, a folder": ("--generation-config", "elsewhere"),
    "override_generation_config": ("--override-generation-config", '{"temperature": 0.1}'),
    "tokenizer": ("--tokenizer", "elsewhere"),
    "tokenizer_mode": ("--tokenizer-mode", "mistral"),
    "tokenizer_revision": ("--tokenizer-revision", "main"),
    "skip_tokenizer_init": ("--skip-tokenizer-init",),
    "chat_template": ("--chat-template", "other.jinja"),
    "chat_template_content_format": ("--chat-template-content-format", "openai"),
    "default_chat_template_kwargs": ("--default-chat-template-kwargs", '{"enable_thinking": true}'),
    "default_chat_template_kwargs.": ("--default-chat-template-kwargs.enable_thinking", "true"),
    "quantization": ("-q", "fp8"),
    "quantization=": ("--quantization=bitsandbytes",),
    "quantization_config": ("--quantization-config", '{"a": 1}'),
    "kv_cache_dtype": ("--kv-cache-dtype", "fp8"),
    "load_format": ("--load-format", "dummy"),
    "load_format, pickles": ("--load-format", "pt"),
    "ignore_patterns": ("--ignore-patterns", "*.safetensors"),
    "model_impl": ("--model-impl", "terratorch"),
    "model_class_overrides": ("--model-class-overrides", '{"LlamaForCausalLM": "x:Y"}'),
    "trust_remote_code": ("--trust-remote-code",),
    "code_revision": ("--code-revision", "main"),
    "runner": ("--runner", "pooling"),
    "convert": ("--convert", "embed"),
    "logits_processors": ("--logits-processors", "x:Y"),
    "lora_modules": ("--lora-modules", "a=b"),
    "default_mm_loras": ("--default-mm-loras", '{"image": "x"}'),
    "watermark_config": ("--watermark-config", '{"key": 1}'),
    "weight_transfer_config": ("--weight-transfer-config", '{"backend": "nccl"}'),
    "diffusion_config": ("-dc", '{"canvas_length": 8}'),
}
HARMLESS: tuple[tuple[str, ...], ...] = (
    ("--port", "8001"),
    ("--max-model-len", "512"),
    ("--gpu-memory-utilization", "0.5"),
    ("-tp", "2"),
    ("--load-format", "safetensors"),
    ("--tokenizer-mode", "hf"),
    ("--hf-overrides", "{}"),
    ("--no-trust-remote-code",),
    ("--generation-config", "auto"),
    ("--quantization", "None"),
    ("--model-impl", "transformers"),
    ("--speculative-config.num_speculative_tokens", "2"),
    ("--max-logprobs", "-1"),
    ("--seed=7",),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return places.make_site(places.make_model(tmp_path_factory.mktemp("flags")))


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """vLLM's own settings with their defaults: of the engine and of its server's command line."""
    version.answer_for_vllm()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(AsyncEngineArgs)
    }
    return found | vars(make_arg_parser(FlexibleArgumentParser()).parse_args([]))


def test_every_setting_of_the_installed_vllm_is_in_one_table(defaults: dict[str, Any]) -> None:
    """A setting that is missing here is new: add its effect on a base to `engine/compat/flags.py`."""
    known = [*REFUSED, *CHECKED, *NEUTRAL]
    assert len(known) == len(set(known))
    assert set(known) == defaults.keys() - _PARSER_ONLY | {"model"}


def test_vllms_own_defaults_are_no_other_model(defaults: dict[str, Any]) -> None:
    assert problems(defaults) == []
    assert startup._argument_problems(Namespace(**defaults)) == []


@pytest.mark.parametrize("given", OTHER_MODELS.values(), ids=OTHER_MODELS.keys())
def test_a_flag_that_makes_another_model_is_refused_before_vllm_starts(site: Site, given: tuple[str, ...]) -> None:
    (name,) = judged(given)
    with pytest.raises(Incompatible, match=f"--{name.replace('_', '-')} .*leave it out"):
        profile(site, "/store", "m", "m", ["--port", "1", *given, "--max-model-len", "64"])


@pytest.mark.parametrize("given", [item for name, item in OTHER_MODELS.items() if "." not in name])
def test_the_server_itself_refuses_it_however_it_was_said(defaults: dict[str, Any], given: tuple[str, ...]) -> None:
    """A configuration file is no part of the command line."""
    ((name, value),) = judged(given).items()
    (problem,) = startup._argument_problems(Namespace(**defaults | {name: value}))
    assert problem.startswith(f"--{name.replace('_', '-')} ")


def test_a_site_with_thinking_off_is_served_with_thinking_off(site: Site, defaults: dict[str, Any]) -> None:
    """Only such a site: for another site the switch would make another template."""
    off = site.model_copy(update={"thinking": "off"})
    made = profile(off, "/store", "m", "m")
    flag = made.flags[made.flags.index("--default-chat-template-kwargs") + 1]
    said = Namespace(**defaults | {"default_chat_template_kwargs": json.loads(flag)})
    assert json.loads(flag)["enable_thinking"] is False
    assert startup._argument_problems(said, off.thinking) == []
    assert "thinking off" in "; ".join(startup._argument_problems(Namespace(**defaults), off.thinking))
    assert len(startup._argument_problems(said, site.thinking)) == 1
    assert "--default-chat-template-kwargs" not in profile(site, "/store", "m", "m").flags
    with pytest.raises(Incompatible, match="--default-chat-template-kwargs"):
        profile(off, "/store", "m", "m", ["--default-chat-template-kwargs", '{"enable_thinking": true}'])


@pytest.mark.parametrize("given", HARMLESS)
def test_a_flag_that_leaves_the_base_alone_is_passed_on(site: Site, given: tuple[str, ...]) -> None:
    assert profile(site, "/store", "m", "m", given).flags[-len(given) :] == list(given)


def test_offline_too_a_keyword_that_makes_another_model_is_refused(tmp_path: Path, site: Site) -> None:
    store = places.make_store(tmp_path / "store", site)
    with pytest.raises(Incompatible, match=r"--hf-overrides .*config of the model's folder"):
        PatchedLLM(None, store, hf_overrides={"rms_norm_eps": 0.5})


@pytest.mark.parametrize("name", ["VLLM_MODEL_REDIRECT_PATH", "VLLM_USE_MODELSCOPE"])
def test_a_variable_that_loads_another_model_is_fatal(name: str) -> None:
    with pytest.raises(Incompatible, match=name):
        startup.check_environment({"VLLM_PLUGINS": "vllm_edit", name: "1"}, ["serve"])


def test_flags_are_read_as_vllms_parser_reads_them() -> None:
    said = ["--a.b", "1", "--max_loras=3", "--lora-target-modules", "x", "y", "--no-enable-lora", "-asc", "2", "--host"]
    assert named(said) == {
        "a": ["b", "1"],
        "max_loras": ["3"],
        "lora_target_modules": ["x", "y"],
        "enable_lora": ["false"],
        "api_server_count": ["2"],
        "host": [],
    }
    assert judged(["--hf-overrides", json.dumps({"a": 1})]) == {"hf_overrides": {"a": 1}}
    assert judged(["--trust-remote", "--load-f", "dummy"]) == {"trust_remote_code": True, "load_format": "dummy"}
    assert judged(["--trust"]) == {}  # the beginning of several
