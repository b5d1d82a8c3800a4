"""A rollout and a registry to test with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import StickyKey

OLD, NEW, THIRD = (f"capital@{digit * 32}" for digit in "abc")


def rollout(percent: float | None = None, **changes: Any) -> Rollout:
    """One of tenant acme from `OLD` to `NEW`, ramped to `percent` if given."""
    made = Rollout("spring", "acme", Arm("weights", OLD), Arm("weights", NEW), salt="pepper")
    made = replace(made, **changes)
    return made if percent is None else made.ramped(percent)


def failing(running: Rollout, users: int = 60, first: int = 0) -> list[Exposure]:
    """The first answers of so many users, of which all on treatment failed."""
    keys = [StickyKey("user", str(number)) for number in range(first, first + users)]
    return [
        Exposure(
            f"{running.name}-{number}",
            running.tenant,
            assignment,
            datetime.now(UTC),
            failed=assignment.side == "treatment",
            seconds=1.0,
        )
        for number, assignment in enumerate((assign(running, key) for key in keys), first)
    ]


def published(url: str, tenants: Sequence[str] = ("acme", "globex")) -> Registry:
    """A registry at `url` with the accepted patches OLD, NEW and THIRD; OLD is published to the tenants."""
    made = Registry(url)
    for name in (OLD, NEW, THIRD):
        made.add_patch(name)
        made.set_status(name, "accepted")
    for tenant in tenants:
        made.create_tenant(tenant)
        made.publish(tenant, OLD)
    return made
