"""What the `model` field of a request may say, and which adapter and mode it means.

    acme             tenant's active patch            acme:ike, acme:base     the same tenant, other mode
    capital@4f1c…    that compiled patch, by a unique beginning (≥ 4 characters) of its digest
    capital          the newest compiled patch of that name
    atlas, nothing   the base model, by one of its served names

Aliases exist only here: the engine knows full names. A tenant's name goes before a patch's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from vllm_edit.errors import EditError, NotFound
from vllm_edit.store import names

Mode = Literal["weights", "ike", "base"]
MODES: tuple[Mode, ...] = ("weights", "ike", "base")
MAX_LENGTH = 160
NO_SUBJECT = "NO_SUBJECT"

_MODE_SUFFIX = re.compile(r"(?P<reference>[^:]*)(?::(?P<mode>weights|ike|base))?")


@dataclass(frozen=True)
class Choice:
    """What answers a request. `adapter` is a compiled patch's full name, `None` for base.

    reason is OpenFeature's: STATIC (the request named it), TARGETING_MATCH (the tenant's), DEFAULT (base, because
    nothing was asked or nothing is published); and ours NO_SUBJECT (base, because the request mentions no subject of a
    patch with scope subject), which is known after the choice.
    """

    mode: Mode
    adapter: str | None = None
    tenant: str | None = None
    reason: str = "STATIC"
    arm: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """What can be asked for at one moment: an immutable copy of the registry, so that no request waits for it.

    bases: served names of the base model, the first is the main one. tenants: tenant → active full name or None.
    newest_first: every compiled patch's full name, the one saved last first.
    """

    bases: tuple[str, ...]
    tenants: Mapping[str, str | None] = field(default_factory=dict)
    newest_first: tuple[str, ...] = ()
    generation: int = -1

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.newest_first)

    def resolve(self, model: str | None) -> Choice:
        """Which adapter and mode a `model` field means.

        Raises:
            EditError: not a possible alias (too long, control characters), or a digest's beginning that fits several.
            NotFound: nobody of that name; `nearest` holds the closest.
        """
        if not model or model in self.bases:
            return Choice("base", reason="DEFAULT")
        if len(model) > MAX_LENGTH or not model.isprintable():
            raise EditError(
                f"model is not an alias: expected at most {MAX_LENGTH} printable characters, got {names.shown(model)} "
                f"({len(model)}); use a tenant, a patch, patch@digest or one of those with :ike, :weights or :base"
            )
        match = _MODE_SUFFIX.fullmatch(model)
        if match is None:
            raise self._unknown(model)
        reference = match["reference"]
        mode: Mode = next((mode for mode in MODES if mode == match["mode"]), "weights")
        if reference in self.bases and mode == "base":
            return Choice("base", reason="DEFAULT")
        if reference in self.tenants:
            adapter, tenant, reason = self.tenants[reference], reference, "TARGETING_MATCH"
        else:
            adapter, tenant, reason = self._compiled(reference), None, "STATIC"
        if adapter is None:
            return Choice("base", tenant=tenant, reason="DEFAULT")
        return Choice(mode, adapter if mode != "base" else None, tenant, reason)

    def listed(self) -> list[str]:
        """Names a client may ask for: the base's main name (others may be paths), tenants, compiled patches."""
        return [*self.bases[:1], *sorted(self.tenants), *self.newest_first]

    def _compiled(self, reference: str) -> str:
        if reference in self.names:
            return reference
        try:
            return names.resolve(reference, list(self.newest_first))
        except NotFound:
            raise self._unknown(reference) from None

    def _unknown(self, asked: str) -> NotFound:
        known = [*self.bases, *self.tenants, *self.newest_first]
        return NotFound(f"the model {names.shown(asked)} does not exist", names.nearest(asked, known))
