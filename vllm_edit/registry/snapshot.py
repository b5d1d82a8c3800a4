"""The whole state of a registry at one generation: a server holds it in memory and decides requests from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy import Connection

from vllm_edit.registry import api_keys, patches, publications, revision, rollouts, tenants
from vllm_edit.registry.api_keys import ApiKey
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.publications import Publication, served
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.tenants import tenant_state
from vllm_edit.rollout.decision import TenantState
from vllm_edit.rollout.rollout import Rollout


@dataclass(frozen=True)
class Snapshot:
    """A registry's state, read in one transaction.

    Attributes:
        patches: All patches, the last saved first.
        standing: Each tenant's publications that are not rolled back, newest first.
        api_keys: API keys by id, including revoked and expired keys (`api_keys.authenticate`).
        rollouts: The governing rollout by tenant.
        beside: Further governing rollouts of a tenant.
        shadowing: The rollouts of a tenant whose other arm repeats answers.
        token: Token of the revision; None in a state that an earlier version saved.
    """

    generation: int
    patches: tuple[PatchEntry, ...]
    standing: Mapping[str, tuple[Publication, ...]]
    api_keys: Annotated[Mapping[str, ApiKey], Field(alias="keys")]  # files of nodes that saved it call them keys
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    beside: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    shadowing: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    token: str | None = None

    @property
    def revision(self) -> Revision:
        return Revision(self.generation, self.token)

    def governing(self, tenant: str) -> tuple[Rollout, ...]:
        """Return the rollouts that decide what the tenant is served."""
        first = self.rollouts.get(tenant)
        return () if first is None else (first, *self.beside.get(tenant, ()))

    @property
    def all_governing(self) -> list[Rollout]:
        """The rollouts that decide what any tenant is served."""
        return [rollout for tenant in self.rollouts for rollout in self.governing(tenant)]

    @property
    def names_shadowing(self) -> frozenset[str]:
        """The names of all rollouts whose other arm repeats answers."""
        return frozenset(rollout.name for found in self.shadowing.values() for rollout in found)

    def active(self, tenant: str, now: datetime) -> str | None:
        """Return the name published for the tenant, None for the base model; `KeyError` for an unknown tenant."""
        return self.state(tenant, now).active

    def state(self, tenant: str, now: datetime) -> TenantState:
        """Return the state that decides the tenant's requests; `KeyError` for an unknown tenant."""
        state = tenant_state(tenant, self.standing[tenant], self.governing(tenant), now)
        return replace(state, shadowing=self.shadowing.get(tenant, ()))

    def next_end(self, now: datetime) -> datetime | None:
        """Return the next expiry of an active publication: until then, only a new generation changes what is served."""
        active = [served(publications, now) for publications in self.standing.values()]
        return min((entry.valid_until for entry in active if entry and entry.valid_until), default=None)

    @property
    def keyed(self) -> bool:
        """True if an API key was ever created. Revoking the last key does not open the server again."""
        return bool(self.api_keys)

    @property
    def administered(self) -> bool:
        """True if an admin key was ever created."""
        return any("admin" in api_key.rights for api_key in self.api_keys.values())


def read(connection: Connection) -> Snapshot:
    """Read the whole state, in the caller's transaction."""
    at = revision.current(connection)
    entries, standing = tuple(patches.newest_first(connection)), publications.standing(connection)
    governing = rollouts.governing(connection)
    # gc may have removed an expired publication's patch: a server whose clock is behind must not serve it.
    there = {entry.name for entry in entries}
    return Snapshot(
        at.generation,
        entries,
        {
            tenant.name: tuple(
                entry for entry in standing.get(tenant.name, ()) if entry.valid_until is None or entry.name in there
            )
            for tenant in tenants.by_name(connection, governing)
        },
        {api_key.id: api_key for api_key in api_keys.oldest_first(connection)},
        {tenant: found[0] for tenant, found in governing.items()},
        {tenant: found[1:] for tenant, found in governing.items() if len(found) > 1},
        rollouts.shadowing(connection),
        at.token,
    )
