"""Which modules a running engine has really wrapped with LoRA, and their runtime names.

Upstream: an adapter for a module outside `--lora-target-modules` loads "successfully" and does nothing
(vllm-project/vllm issue 55193), so the configuration is not proof. vLLM's endpoint-plugin interface says to pair such
a plugin with a general plugin that "installs the engine side method"; that is `install`. It relies on
`WorkerBase.get_model` and on `BaseLayerWithLoRA` being the class of wrapped layers (0.32). Delete when the engine
client can list wrapped modules.

vLLM packs some linear layers that read the same input into one (`gate_proj` and `up_proj` into `gate_up_proj`, by a
model's `packed_modules_mapping`). An adapter keeps the model's own names and vLLM packs it when it loads; only what is
wrapped goes by the packed name, and in 0.32 a full path matches the packed module only under that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METHOD = "vllm_edit_wrapped_modules"
_PACKED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
"""What vLLM's dense models pack of an MLP; no model is loaded yet whose own mapping could be asked."""


def install() -> None:
    """Give every worker of this process the method `METHOD`, callable through `collective_rpc`. Idempotent."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, wrapped_modules)


def wrapped_modules(worker: Any, site: list[str]) -> dict[str, list[str]]:
    """Runtime names that this worker wrapped with LoRA, and those of the `site`'s modules. Runs inside the engine."""
    from vllm.lora.layers import BaseLayerWithLoRA

    model = worker.get_model()
    found = [name for name, module in model.named_modules() if isinstance(module, BaseLayerWithLoRA)]
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renamed = site if mapper is None else [_runtime_name(mapper.get_rename_mapper(), name) for name in site]
    packing = getattr(model, "packed_modules_mapping", None) or {}
    packed = {child: parent for parent, children in packing.items() if len(children) > 1 for child in children}
    return {"wrapped": sorted(found), "expected": sorted({_packed_name(name, packed) for name in renamed})}


def candidates(modules: Sequence[str]) -> list[str]:
    """Names for `--lora-target-modules`: the modules, what vLLM packs them into, and what its Transformers backend
    calls them.

    That backend (GPT-NeoX and others) renames a base model's own prefix to `model`; the engine ignores a name that no
    module has, and the start-up check compares what was wrapped with what should be.
    """
    packed = [name for name in (_packed_name(name, _PACKED) for name in modules) if name not in modules]
    renamed = [f"model.{name.partition('.')[2]}" for name in modules if not name.startswith(("model.", "transformer."))]
    return [*modules, *dict.fromkeys(packed), *renamed]


def _packed_name(module: str, packed: Mapping[str, str]) -> str:
    """The module's name where it goes by its own, else that of what it is packed into."""
    parent, _, own = module.rpartition(".")
    return f"{parent}.{packed[own]}" if own in packed else module


def _runtime_name(mapper: Any, module: str) -> str:
    mapped: str | None = mapper.map_name(f"{module}.weight")
    return module if mapped is None else mapped.removesuffix(".weight")
