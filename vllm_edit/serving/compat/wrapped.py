"""Which modules a running engine has really wrapped with LoRA, and their runtime names.

Upstream: an adapter for a module outside `--lora-target-modules` loads "successfully" and does nothing
(vllm-project/vllm issue 55193), so the configuration is not proof. vLLM's endpoint-plugin interface says to pair such
a plugin with a general plugin that "installs the engine side method"; that is `install`. It relies on
`WorkerBase.get_model` and on `BaseLayerWithLoRA` being the class of wrapped layers (0.32). Delete when the engine
client can list wrapped modules.
"""

from __future__ import annotations

from typing import Any

METHOD = "vllm_edit_wrapped_modules"


def install() -> None:
    """Give every worker of this process the method `METHOD`, callable through `collective_rpc`. Idempotent."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, wrapped_modules)


def wrapped_modules(worker: Any) -> list[str]:
    """Runtime names of the modules that this worker wrapped with LoRA, sorted. Runs inside the engine."""
    from vllm.lora.layers import BaseLayerWithLoRA

    return sorted(name for name, module in worker.get_model().named_modules() if isinstance(module, BaseLayerWithLoRA))
