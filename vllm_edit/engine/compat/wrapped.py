"""Lists the modules that a running engine has actually wrapped with LoRA, by their runtime names.

Upstream: an adapter for a module outside `--lora-target-modules` loads "successfully" and does nothing
(vllm-project/vllm issue 55193), so the configuration is not proof. vLLM's endpoint-plugin interface requires a general
plugin that "installs the engine side method"; that is `install`. It relies on `WorkerBase.get_model` and on
`BaseLayerWithLoRA` as the class of wrapped layers (0.32). Delete when the engine client can list wrapped modules.

vLLM packs some linear layers that read the same input into one (`gate_proj` and `up_proj` into `gate_up_proj`, by a
model's `packed_modules_mapping`). An adapter uses the model's own names, and vLLM packs it at load time; only wrapped
modules have the packed name, and in 0.32 a full path matches the packed module only under that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper
    from vllm.v1.worker.worker_base import WorkerBase

METHOD = "vllm_edit_wrapped_modules"
_PACKED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
"""The MLP layers that vLLM's dense models pack; the model, and so its own mapping, is not loaded yet."""


def install() -> None:
    """Add the method `METHOD` to every worker of this process, callable through `collective_rpc`. Idempotent."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, wrapped_modules)


def wrapped_modules(worker: WorkerBase, site: list[str]) -> dict[str, list[str]]:
    """Runtime names of the modules that this worker wrapped, and of the `site`'s modules. Runs inside the engine."""
    from vllm.lora.layers import BaseLayerWithLoRA

    model = worker.get_model()
    found = [name for name, module in model.named_modules() if isinstance(module, BaseLayerWithLoRA)]
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renamed = site if mapper is None else [_runtime_name(mapper.get_rename_mapper(), name) for name in site]
    packing = getattr(model, "packed_modules_mapping", None) or {}
    packed = {child: parent for parent, children in packing.items() if len(children) > 1 for child in children}
    return {"wrapped": sorted(found), "expected": sorted({_packed_name(name, packed) for name in renamed})}


def candidates(modules: Sequence[str]) -> list[str]:
    """Names for `--lora-target-modules`: the modules, their packed names, and their names in the Transformers backend.

    That backend (GPT-NeoX and others) renames a base model's own prefix to `model`. The engine ignores a name that no
    module has, and the start-up check compares the wrapped modules with the expected ones.
    """
    packed = [name for name in (_packed_name(name, _PACKED) for name in modules) if name not in modules]
    renamed = [f"model.{name.partition('.')[2]}" for name in modules if not name.startswith(("model.", "transformer."))]
    return [*modules, *dict.fromkeys(packed), *renamed]


def _packed_name(module: str, packed: Mapping[str, str]) -> str:
    """The name of the packed module if `module` is packed, else `module`."""
    parent, _, own = module.rpartition(".")
    return f"{parent}.{packed[own]}" if own in packed else module


def _runtime_name(mapper: WeightsMapper, module: str) -> str:
    mapped: str | None = mapper.map_name(f"{module}.weight")
    return module if mapped is None else mapped.removesuffix(".weight")
