"""The whole state of a registry at one generation, as values: what a server keeps in memory and decides from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vllm_edit.registry.entries import PatchEntry, Publication, served, tenant_state
from vllm_edit.registry.keys import Key
from vllm_edit.rollout.decision import TenantState
from vllm_edit.rollout.rollout import Rollout


@dataclass(frozen=True)
class Snapshot:
    """Read in one transaction.

    patches: the one saved last first. standing: each tenant's publications that are not rolled back, newest first.
    keys: by id, revoked and expired ones too (`keys.authenticate`). rollouts: by tenant, those that decide for it.
    """

    generation: int
    patches: tuple[PatchEntry, ...]
    standing: Mapping[str, tuple[Publication, ...]]
    keys: Mapping[str, Key]
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)

    def active(self, tenant: str, now: datetime) -> str | None:
        """The name that is published for the tenant, None for the base model; `KeyError` for an unknown tenant."""
        return self.state(tenant, now).active

    def state(self, tenant: str, now: datetime) -> TenantState:
        """What decides the tenant's requests; `KeyError` for an unknown tenant."""
        return tenant_state(tenant, self.standing[tenant], self.rollouts.get(tenant), now)

    def next_end(self, now: datetime) -> datetime | None:
        """When what some tenant is served ends by itself: until then, nothing changes but by a new generation."""
        active = [served(publications, now) for publications in self.standing.values()]
        return min((one.valid_until for one in active if one is not None and one.valid_until is not None), default=None)

    @property
    def keyed(self) -> bool:
        """Somebody made a key once. Revoking the last one does not open the server again."""
        return bool(self.keys)

    @property
    def administered(self) -> bool:
        """Somebody made an admin key once."""
        return any("admin" in key.rights for key in self.keys.values())
