"""Resolves the `model` field of a request to an adapter and a mode, for a given caller.

    acme             tenant's active patch            acme:ike, acme:base     the same tenant, other mode
    capital@4f1c…    that compiled patch, by a unique prefix (≥ 4 characters) of its digest
    capital          the newest compiled patch of that name
    atlas, nothing   the base model, by one of its served names

Aliases exist only here: the engine knows full names. A tenant's name takes precedence over a patch's. A caller who is
bound to a tenant (by a key or a gateway) reaches only that tenant's compositions, and no response reveals others; for
such a caller, a missing `model` means its tenant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import get_args

from vllm_edit import names
from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.json_value import JSONValue
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.arm import Arm, Mode
from vllm_edit.rollout.decision import Choice, decide
from vllm_edit.serving.caller import Caller

MODES: tuple[Mode, ...] = get_args(Mode)
MAX_LENGTH = 160
NO_SUBJECT = "NO_SUBJECT"
"""Reason of an answer by the base model because the request mentions no subject of a patch with scope subject. It is
known only after the choice."""

NOTHING = Snapshot(-1, (), {}, {})
"""The snapshot before the registry is first read."""

_MODE_SUFFIX = re.compile(r"(?P<reference>[^:]*)(?::(?P<mode>weights|ike|base))?")


@dataclass(frozen=True)
class Asking:
    """The caller, and the parts of the request that may decide a rollout's arm (`Stickiness.sticky_key`)."""

    caller: Caller
    now: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, JSONValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue:
    """The names that requests can use: an immutable copy of the registry, so that no request waits for it.

    bases: served names of the base model, the main name first.
    """

    bases: tuple[str, ...]
    snapshot: Snapshot

    @property
    def generation(self) -> int:
        return self.snapshot.generation

    @cached_property
    def newest_first(self) -> tuple[str, ...]:
        """Every compiled patch's full name, newest first."""
        return tuple(entry.name for entry in self.snapshot.patches)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.newest_first)

    @cached_property
    def ambiguous(self) -> tuple[str, ...]:
        """Tenants that have one of the base model's served names."""
        return tuple(sorted(set(self.snapshot.standing).intersection(self.bases)))

    def served(self, now: datetime) -> dict[str, Arm]:
        """Tenant → its arm for requests that name no user: its rollout's, else its active publication."""
        return {tenant: self.snapshot.state(tenant, now).served(now) for tenant in self.snapshot.standing}

    def wanted(self, now: datetime) -> list[str]:
        """Full names that requests are likely to need: the active publications and both arms of the rollouts."""
        arms = [arm for rollout in self.snapshot.all_governing for arm in (rollout.control, rollout.treatment)]
        rolled = [arm.name for arm in arms if arm.mode == "weights" and not arm.ended(now)]
        published = [self.snapshot.active(tenant, now) for tenant in self.snapshot.standing]
        return list(dict.fromkeys(name for name in (*published, *rolled) if name is not None))

    def resolve(self, model: str | None, asking: Asking) -> Choice:
        """Resolve a `model` field to an adapter and a mode.

        Raises:
            EditError: an invalid alias (too long, control characters), or an ambiguous prefix of a digest.
            NotFound: the caller can reach nothing of that name; `nearest` holds the closest names.
            Forbidden: the caller asks for the base model without that right.
            Incompatible: the name is the base model's, and a tenant's that the caller can reach.
        """
        tenant = asking.caller.tenant
        if not model and tenant is not None:
            return self._tenant(tenant, None, asking)
        if not model:
            return Choice("base", reason="DEFAULT")
        reference, mode = _parsed(model)
        if model in self.ambiguous and tenant in (None, model):
            raise Incompatible(
                f"{names.shown(model)} is both a tenant and the base model; ask for {model}:weights, {model}:ike or "
                f"{model}:base, or have the operator serve the base under another name (--served-model-name NAME)"
            )
        if model in self.bases or (reference in self.bases and mode == "base"):
            asking.caller.require("base", "ask for the base model")
            return Choice("base", tenant=tenant, reason="DEFAULT")
        if reference is None:
            raise self._unknown(model, asking)
        if mode == "base":
            asking.caller.require("base", "ask for the base model")
        if reference == tenant or (tenant is None and reference in self.snapshot.standing):
            return self._tenant(reference, mode, asking)
        adapter = self._compiled(reference, asking)
        return Choice(mode or "weights", adapter if mode != "base" else None, tenant, "STATIC")

    def listed(self, asking: Asking) -> list[str]:
        """Names that the caller may request: the base's main name (others may be paths), tenants, compiled patches."""
        bases = self.bases[:1] if asking.caller.may("base") else ()
        tenant = asking.caller.tenant
        tenants = sorted(self.snapshot.standing) if tenant is None else [tenant]
        return [*bases, *tenants, *self._reachable(asking)]

    def _tenant(self, tenant: str, mode: Mode | None, asking: Asking) -> Choice:
        """The tenant's choice: its rollout's arm, else its active publication."""
        state = self.snapshot.state(tenant, asking.now)
        return decide(state, asking.headers, asking.body, asking.now, asking.caller.api_key_id, mode)

    def _reachable(self, asking: Asking) -> tuple[str, ...]:
        """Compiled patches that the caller may name: without a tenant all, else its tenant's current and earlier
        publications. Publications that were rolled back or have ended, and a rollout's treatment, are excluded."""
        if asking.caller.tenant is None:
            return self.newest_first
        standing = self.snapshot.standing[asking.caller.tenant]
        return tuple(dict.fromkeys(publication.name for publication in standing if not publication.ended(asking.now)))

    def _compiled(self, reference: str, asking: Asking) -> str:
        reachable = self._reachable(asking)
        if reference in (self.names if asking.caller.tenant is None else reachable):
            return reference
        try:
            return names.resolve(reference, list(reachable))
        except NotFound:
            raise self._unknown(reference, asking) from None

    def _unknown(self, asked: str, asking: Asking) -> NotFound:
        # The message must not reveal that other tenants' names exist.
        return NotFound(f"the model {names.shown(asked)} does not exist", names.nearest(asked, self.listed(asking)))


def _parsed(model: str) -> tuple[str | None, Mode | None]:
    """(reference, mode) of a `model` field; the reference is None if the field has an invalid form."""
    if len(model) > MAX_LENGTH or not model.isprintable():
        raise EditError(
            f"model is not a valid name: expected at most {MAX_LENGTH} printable characters, got {names.shown(model)} "
            f"({len(model)}); use a tenant, a patch, patch@digest or one of those with :ike, :weights or :base"
        )
    match = _MODE_SUFFIX.fullmatch(model)
    if match is None:
        return None, None
    mode: Mode | None = next((mode for mode in MODES if mode == match["mode"]), None)
    return match["reference"], mode
