"""The operator's settings, read from the environment: vLLM's plugin interface passes nothing else to every process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from vllm_edit.errors import EditError

STORE = "VLLM_EDIT_STORE"
EXPOSE = "VLLM_EDIT_EXPOSE"
ALLOW_OPEN = "VLLM_EDIT_ALLOW_OPEN"
TENANT_HEADER = "VLLM_EDIT_TENANT_HEADER"
TRUSTED_PEERS = "VLLM_EDIT_TRUSTED_PEERS"
FORWARDED = "FORWARDED_ALLOW_IPS"
"""uvicorn's list of peers whose X-Forwarded-For replaces a connection's address; by default anyone on this machine."""
LOG_DAYS = "VLLM_EDIT_LOG_DAYS"
LOG_PROMPTS = "VLLM_EDIT_LOG_PROMPTS"
ALLOWED_FIELDS = "VLLM_EDIT_ALLOWED_FIELDS"
MAX_BODY = "VLLM_EDIT_MAX_BODY_MIB"

Network = IPv4Network | IPv6Network
_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_LEAST_BODY_BYTES = 8 * 2**20  # pictures in base64, and long lists of tools, take bytes and few tokens
_BYTES_OF_A_TOKEN = 64  # more than any text has on average: escaped in JSON, some bytes a character
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Settings:
    """store: the store's URL; without it the plugin only fixes the CPU defect.
    expose: answer headers also say adapter, mode and IKE tokens (not in a blinded test).
    allow_open: serve without keys on an address that is not loopback.
    tenant_header, trusted_peers: the header in which a gateway names the tenant, and the gateways' addresses.
    log_days: days after which logged answers are deleted; 0 keeps them for ever. log_prompts: log the prompts' text.
    allowed_fields: fields of a request that tenants may send besides those of `fields.ALLOWED`.
    max_body_bytes: maximum bytes of a request's body; None derives it from the model's context (`body_bytes`).
    """

    store: str | None = None
    expose: bool = False
    allow_open: bool = False
    tenant_header: str | None = None
    trusted_peers: tuple[Network, ...] = ()
    log_days: float = 30.0
    log_prompts: bool = False
    allowed_fields: frozenset[str] = frozenset()
    max_body_bytes: int | None = None
    max_answers: int = 10_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Raises `EditError` with every value that cannot be read."""
        env = os.environ if environment is None else environment
        problems: list[str] = []
        header, peers = _gateway(env, problems)
        days = _days(env.get(LOG_DAYS) or "30", problems)
        mebibytes = _mebibytes(env.get(MAX_BODY) or "", problems)
        fields = _fields(env.get(ALLOWED_FIELDS) or "", problems)
        expose, allow_open, log_prompts = (_switch(env, name, problems) for name in (EXPOSE, ALLOW_OPEN, LOG_PROMPTS))
        if problems:
            raise EditError("\n".join(problems))
        return cls(
            store=env.get(STORE) or None,
            expose=expose,
            allow_open=allow_open,
            tenant_header=header,
            trusted_peers=peers,
            log_days=days,
            log_prompts=log_prompts,
            allowed_fields=fields,
            max_body_bytes=mebibytes and mebibytes * 2**20,
        )

    def body_bytes(self, context: int) -> int:
        """Maximum bytes of a request's body. By default it exceeds any prompt of `context` tokens. The limit
        exists because parsing a body blocks all other requests."""
        return self.max_body_bytes or max(_LEAST_BODY_BYTES, context * _BYTES_OF_A_TOKEN)


def _switch(env: Mapping[str, str], name: str, problems: list[str]) -> bool:
    said = (env.get(name) or "0").strip()
    if said not in ("0", "1"):
        problems.append(f"{name}: expected 1 (on) or 0 (off), got {said[:80]!r}")
    return said == "1"


def _gateway(env: Mapping[str, str], problems: list[str]) -> tuple[str | None, tuple[Network, ...]]:
    header = (env.get(TENANT_HEADER) or "").strip().lower() or None
    if header is not None and (_HEADER.fullmatch(header) is None or header.startswith("x-vllm-edit-")):
        problems.append(f"{TENANT_HEADER}: expected a header's name like x-tenant, got {header[:80]!r}")
    peers = []
    for said in (env.get(TRUSTED_PEERS) or "").split(","):
        try:
            peers += [ip_network(said.strip())] if said.strip() else []
        except ValueError:
            shown = repr(said.strip()[:80])
            problems.append(f"{TRUSTED_PEERS}: expected addresses or networks like 10.0.0.0/8, got {shown}")
    if (header is None) != (not peers):
        problems.append(f"{TENANT_HEADER} and {TRUSTED_PEERS} go together: a header counts only from named gateways")
    return header, tuple(peers)


def _days(said: str, problems: list[str]) -> float:
    try:
        days = float(said)
    except ValueError:
        days = -1.0
    if not 0 <= days < 36_500:
        problems.append(f"{LOG_DAYS}: expected a number of days, 0 for ever, got {said[:80]!r}")
    return days


def _mebibytes(said: str, problems: list[str]) -> int | None:
    if not said.strip():
        return None
    if not (said.strip().isascii() and said.strip().isdigit() and 1 <= int(said[:9]) <= 4096):
        problems.append(f"{MAX_BODY}: expected a whole number of MiB from 1 to 4096, got {said[:80]!r}")
        return None
    return int(said)


def _fields(said: str, problems: list[str]) -> frozenset[str]:
    names = frozenset(name.strip() for name in said.split(",") if name.strip())
    if wrong := sorted(name for name in names if _FIELD.fullmatch(name) is None):
        shown = ", ".join(repr(name[:80]) for name in wrong)
        problems.append(f"{ALLOWED_FIELDS}: expected names of fields with commas, like documents,priority, got {shown}")
    return names
