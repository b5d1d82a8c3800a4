"""Print API keys: a new key once in full, existing keys without the secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from vllm_edit.cli.output import print_json, print_line, print_table, when
from vllm_edit.cli.propagation import report_change

if TYPE_CHECKING:
    from vllm_edit.registry.api_keys import ApiKey, NewApiKey
    from vllm_edit.registry.registry import Registry


def print_new_api_key(made: NewApiKey, json: bool) -> None:
    """Print the key alone on stdout, for scripts."""
    if json:
        print_json(asdict(made.api_key.info) | {"key": made.presented})
        return
    print_line(made.presented)
    whose = f"tenant {made.api_key.tenant}" if made.api_key.tenant else "an administrator"
    print_line(
        f"key {made.api_key.id} of {whose} ({', '.join(made.api_key.rights)}); it is not shown again", error=True
    )


def print_api_keys(api_keys: Sequence[ApiKey], json: bool) -> None:
    if json:
        print_json([api_key.info for api_key in api_keys])
        return
    rows = [
        (
            api_key.id,
            api_key.tenant or "",
            ", ".join(api_key.rights),
            api_key.label,
            when(api_key.created_at),
            api_key.created_by,
            _end(api_key),
        )
        for api_key in api_keys
    ]
    print_table(("ID", "TENANT", "RIGHTS", "LABEL", "MADE", "BY", "END"), rows)


def report_revoked(registry: Registry, revoked: ApiKey, wait_s: float, json: bool) -> None:
    report_change(registry, wait_s, f"key {revoked.id} revoked", asdict(revoked.info), json)


def _end(api_key: ApiKey) -> str:
    if api_key.revoked_at is not None:
        why = f": {api_key.revoked_why}" if api_key.revoked_why else ""
        return f"revoked {when(api_key.revoked_at)} by {api_key.revoked_by}{why}"
    return f"expires {when(api_key.expires_at)}" if api_key.expires_at is not None else ""
