"""Which modules a running engine has really wrapped with LoRA, and their runtime names.

Upstream: an adapter for a module outside `--lora-target-modules` loads "successfully" and does nothing
(vllm-project/vllm issue 55193), so the configuration is not proof. vLLM's endpoint-plugin interface says to pair such
a plugin with a general plugin that "installs the engine side method"; that is `install`. It relies on
`WorkerBase.get_model` and on `BaseLayerWithLoRA` being the class of wrapped layers (0.32). Delete when the engine
client can list wrapped modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

METHOD = "vllm_edit_wrapped_modules"


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
    expected = site if mapper is None else [_runtime_name(mapper.get_rename_mapper(), name) for name in site]
    return {"wrapped": sorted(found), "expected": sorted(expected)}


def candidates(modules: Sequence[str]) -> list[str]:
    """Names for `--lora-target-modules`: the modules, and what vLLM's Transformers backend calls them.

    That backend (GPT-NeoX and others) renames a base model's own prefix to `model`; the engine ignores a name that no
    module has, and the start-up check compares what was wrapped with what should be.
    """
    renamed = [f"model.{name.partition('.')[2]}" for name in modules if not name.startswith(("model.", "transformer."))]
    return [*modules, *renamed]


def _runtime_name(mapper: Any, module: str) -> str:
    mapped: str | None = mapper.map_name(f"{module}.weight")
    return module if mapped is None else mapped.removesuffix(".weight")
