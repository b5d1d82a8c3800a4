"""Which tenants are served a patch."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm


def served_to(registry: Registry) -> Mapping[str, list[str]]:
    """Return, by name, the tenants that are served it, including both arms of a rollout."""
    served: dict[str, list[str]] = {}
    for tenant in registry.tenants():
        treatment = Arm.of(tenant.treatment).name if tenant.treatment else None
        for name in {tenant.active, treatment} - {None}:
            served.setdefault(str(name), []).append(tenant.name)
    return served
