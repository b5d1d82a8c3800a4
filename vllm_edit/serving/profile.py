"""Engine flags for a store: LoRA around exactly the site's modules, as many slots as the site has, the right dtype.

Wrapping one module instead of all measured 2x (decode) and 5x (prefill) faster on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_edit.errors import Incompatible
from vllm_edit.serving.compat import version, wrapped
from vllm_edit.serving.settings import ALLOW_OPEN, FORWARDED, STORE, TRUSTED_PEERS
from vllm_edit.serving.startup import PLUGIN, is_loopback
from vllm_edit.store.site import Site

_LEAST_CPU_LORAS = 256
_CACHE_GIB = "1"  # key-value cache on the CPU: plenty for small models, and the default takes half of the memory


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
    """The profile of a store's site on this machine; the user's flags come last, so they win.

    model: folder or hub id that vLLM loads. served_name: readable name of the base model for clients.
    keyed: whether the registry has keys; None where it cannot be read, and the server itself will look.

    Raises:
        Incompatible: a user's flag contradicts the site.
    """
    cpu = version.is_cpu()
    slots = site.slots + 1 if cpu else site.slots  # a spare slot is the second line behind the cure of the CPU defect
    flags = ["--served-model-name", served_name] + ([] if served_name == model else [model])
    flags += ["--enable-lora", "--max-lora-rank", str(site.max_rank), "--max-loras", str(slots)]
    asked = _value(user_flags, "--max-loras") or ""
    flags += ["--max-cpu-loras", str(max(_LEAST_CPU_LORAS, slots, int(asked) if asked.isdigit() else 0))]
    flags += ["--lora-target-modules", *wrapped.candidates(site.modules)]
    # CPU: bfloat16 without its own units runs 100x slower. CUDA: the LoRA kernels refuse float32.
    flags += ["--dtype", "float32", "--enforce-eager"] if cpu else ["--dtype", "bfloat16"]
    if _value(user_flags, "--host") is None:
        flags += ["--host", "127.0.0.1"]
    _check(user_flags, site, allow_open, keyed)
    environment = {STORE: store_url, "VLLM_PLUGINS": merged_plugins(os.environ.get("VLLM_PLUGINS"))}
    if cpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", _CACHE_GIB)
    if allow_open:
        environment[ALLOW_OPEN] = "1"
    if os.environ.get(TRUSTED_PEERS):
        environment[FORWARDED] = ""
    return Profile(model, [*flags, *user_flags], environment)


def _check(user_flags: Sequence[str], site: Site, allow_open: bool, keyed: bool | None) -> None:
    """What would make the server refuse itself after a minute of loading is refused here, by name."""
    problems = []
    modules = _values(user_flags, "--lora-target-modules")
    if modules is not None and sorted(modules) not in (sorted(site.modules), sorted(wrapped.candidates(site.modules))):
        problems.append(f"--lora-target-modules {' '.join(modules)}: the site is {' '.join(site.modules)}")
    rank = _value(user_flags, "--max-lora-rank")
    if rank is not None and rank.isdigit() and int(rank) < site.max_rank:
        problems.append(f"--max-lora-rank {rank}: patches of this site may have rank {site.max_rank}")
    count = _value(user_flags, "--api-server-count")
    if count is not None and count != "1":
        problems.append(f"--api-server-count {count}: the router needs exactly one API server")
    host = _value(user_flags, "--host")
    single = _value(user_flags, "--api-key") is not None or bool(os.environ.get("VLLM_API_KEY"))
    if keyed and single:
        problems.append("--api-key (or VLLM_API_KEY): the registry has keys, and it would reject every one of them")
    if host is not None and keyed is False and not (is_loopback(host) or single or allow_open):
        problems.append(
            f"--host {host} without keys answers anyone; make keys (vllm-edit tenant key create), or add --allow-open "
            "if that is meant"
        )
    for flag in ("--lora-modules", "--tokenizer", "--chat-template", "--quantization", "--grpc", "--headless"):
        if _values(user_flags, flag) is not None:
            problems.append(f"{flag}: would not serve the base and the patches of this store")
    if _values(user_flags, "--no-enable-lora") is not None:
        problems.append("--no-enable-lora: patches are served as LoRA adapters")
    if problems:
        raise Incompatible("flags that contradict the store: " + "; ".join(problems))


def _values(flags: Sequence[str], name: str) -> list[str] | None:
    """Values of a flag in either spelling (`--a b c`, `--a=b`, `_` for `-`); None where it is not given."""
    found: list[str] | None = None
    for token in flags:
        head, equals, tail = token.partition("=")
        if head.startswith("--"):
            match = head.replace("_", "-") == name
            if match:
                found = [tail] if equals else []
            collecting = match and not equals
        elif found is not None and collecting:
            found.append(token)
    return found


def _value(flags: Sequence[str], name: str) -> str | None:
    values = _values(flags, name)
    return values[0] if values else None


def merged_plugins(present: str | None) -> str:
    """`VLLM_PLUGINS` with ours: it is one allow-list for all groups, so what the user allowed stays."""
    named = [name for name in (present or "").split(",") if name]
    return ",".join(named if PLUGIN in named else [*named, PLUGIN])
