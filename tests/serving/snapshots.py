"""Registry snapshots made by hand, for tests of a server's decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from vllm_edit.registry.api_keys import ApiKey
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.publications import Publication
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.rollout import Rollout

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def snapshot(
    newest_first: Sequence[str] = (),
    tenants: Mapping[str, Sequence[Publication]] | None = None,
    keys: Sequence[ApiKey] = (),
    rollouts: Sequence[Rollout] = (),
) -> Snapshot:
    patches = tuple(
        PatchEntry(name, name.partition("@")[0], name.partition("@")[2], number, NOW, "accepted", "")
        for number, name in enumerate(newest_first, 1)
    )
    standing = {tenant: tuple(publications) for tenant, publications in (tenants or {}).items()}
    return Snapshot(
        1, patches, standing, {key.id: key for key in keys}, {rollout.tenant: rollout for rollout in rollouts}
    )


def publication(tenant: str, name: str, valid_until: datetime | None = None) -> Publication:
    return Publication(tenant, name, NOW, "ann", "", False, None, None, None, valid_until)
