"""Engine flags for a store: LoRA around exactly the site's modules, the site's number of slots, and the dtype.

On a CPU, wrapping one module instead of all measured 2x (decode) and 5x (prefill) faster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_edit.artefacts.site import Site
from vllm_edit.engine.arguments import engine_arguments, engine_environment
from vllm_edit.engine.compat import flags, wrapped
from vllm_edit.errors import Incompatible
from vllm_edit.serving.server_settings import ALLOW_OPEN, FORWARDED, STORE, TRUSTED_PEERS
from vllm_edit.serving.startup import is_loopback
from vllm_edit.text.thinking import OFF

_LEAST_CPU_LORAS = 256


@dataclass(frozen=True)
class Profile:
    """How to start vLLM: `vllm serve MODEL FLAGS` in an environment with `environment`."""

    model: str
    flags: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        return ["serve", self.model, *self.flags]


def profile(
    site: Site,
    store_url: str,
    model: str,
    served_name: str,
    user_flags: Sequence[str] = (),
    allow_open: bool = False,
    keyed: bool | None = False,
) -> Profile:
    """The profile of a store's site on this machine.

    Args:
        site: the store's site.
        store_url: the store's URL.
        model: folder or hub id that vLLM loads.
        served_name: readable name of the base model for clients.
        user_flags: flags of `vllm serve`; they come last, so they override ours.
        allow_open: allow serving without keys on an address that is not loopback.
        keyed: whether the registry has keys; None if it cannot be read, and the server itself will check.

    Raises:
        Incompatible: a flag of the user, or of the file that `--config` names, contradicts the site.
        EditError: that file cannot be read.
    """
    engine = engine_arguments(site.modules, site.max_rank, site.slots)
    ours = ["--served-model-name", served_name] + ([] if served_name == model else [model])
    ours += ["--enable-lora", "--max-lora-rank", str(engine.max_lora_rank), "--max-loras", str(engine.max_loras)]
    said = flags.with_file(user_flags)
    given = flags.named(said)
    asked = _first(given, "max_loras") or ""
    ours += ["--max-cpu-loras", str(max(_LEAST_CPU_LORAS, engine.max_loras, int(asked) if asked.isdigit() else 0))]
    ours += ["--lora-target-modules", *engine.lora_target_modules, "--dtype", engine.dtype]
    ours += ["--enforce-eager"] if engine.enforce_eager else []
    if _first(given, "host") is None:
        ours += ["--host", "127.0.0.1"]
    if _first(given, "api_server_count") is None:  # with --data-parallel-size N, vLLM would start N
        ours += ["--api-server-count", "1"]
    if site.thinking == "off":
        ours += ["--default-chat-template-kwargs", json.dumps(dict(OFF))]
    _check(said, given, site, allow_open, keyed)
    environment = {STORE: store_url, **engine_environment(os.environ)}
    if allow_open:
        environment[ALLOW_OPEN] = "1"
    if os.environ.get(TRUSTED_PEERS):
        environment[FORWARDED] = ""
    return Profile(model, [*ours, *user_flags], environment)


def _check(
    user_flags: Sequence[str], given: Mapping[str, Sequence[str]], site: Site, allow_open: bool, keyed: bool | None
) -> None:
    """Refuse flags with which the server would stop after a minute of loading.

    user_flags: including those of a configuration file. given: the same flags by vLLM's field names (`flags.named`).
    """
    problems = []
    modules = given.get("lora_target_modules")
    if modules is not None and sorted(modules) not in (sorted(site.modules), sorted(wrapped.candidates(site.modules))):
        problems.append(f"--lora-target-modules {' '.join(modules)}: the site is {' '.join(site.modules)}")
    rank = _first(given, "max_lora_rank")
    if rank is not None and rank.isdigit() and int(rank) < site.max_rank:
        problems.append(f"--max-lora-rank {rank}: patches of this site may have rank {site.max_rank}")
    count = _first(given, "api_server_count")
    if count is not None and count != "1":
        problems.append(f"--api-server-count {count}: the router needs exactly one API server")
    stages = _first(given, "pipeline_parallel_size")
    if stages is not None and stages != "1":
        problems.append(f"--pipeline-parallel-size {stages}: it cannot wrap one layer only; use --tensor-parallel-size")
    host = _first(given, "host")
    single = _first(given, "api_key") is not None or bool(os.environ.get("VLLM_API_KEY"))
    if keyed and single:
        problems.append("--api-key (or VLLM_API_KEY): vLLM would reject all keys of the registry; leave it out")
    if host is not None and keyed is False and not (is_loopback(host) or single or allow_open):
        problems.append(
            f"--host {host} without keys answers anyone; make keys (vllm-edit tenant key create), or add --allow-open "
            "if that is meant"
        )
    for flag in ("grpc", "headless"):
        if flag in given:
            problems.append(f"--{flag}: would not serve the base and the patches of this store")
    if given.get("enable_lora") == ["false"]:
        problems.append("--no-enable-lora: patches are served as LoRA adapters")
    problems += flags.problems(flags.judged(user_flags), site.thinking)
    if problems:
        raise Incompatible("flags that contradict the store: " + "; ".join(problems))


def _first(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = given.get(name)
    return values[0] if values else None
