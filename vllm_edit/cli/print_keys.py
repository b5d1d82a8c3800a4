"""Print API keys: a new key once in full, existing keys without the secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_edit.cli.output import print_json, print_line, print_table, when
from vllm_edit.cli.propagation import report_change

if TYPE_CHECKING:
    from vllm_edit.registry.api_keys import Key, NewKey
    from vllm_edit.registry.registry import Registry


def print_new_key(made: NewKey, json: bool) -> None:
    """Print the key alone on stdout, for scripts."""
    if json:
        print_json(made.key.as_dict() | {"key": made.presented})
        return
    print_line(made.presented)
    whose = f"tenant {made.key.tenant}" if made.key.tenant else "an administrator"
    print_line(f"key {made.key.id} of {whose} ({', '.join(made.key.rights)}); it is not shown again", error=True)


def print_keys(keys: Sequence[Key], json: bool) -> None:
    if json:
        print_json([key.as_dict() for key in keys])
        return
    rows = [
        (key.id, key.tenant or "", ", ".join(key.rights), key.label, when(key.created_at), key.created_by, _end(key))
        for key in keys
    ]
    print_table(("ID", "TENANT", "RIGHTS", "LABEL", "MADE", "BY", "END"), rows)


def report_revoked(registry: Registry, key: Key, wait_s: float, json: bool) -> None:
    report_change(registry, wait_s, f"key {key.id} revoked", key.as_dict(), json)


def _end(key: Key) -> str:
    if key.revoked_at is not None:
        why = f": {key.revoked_why}" if key.revoked_why else ""
        return f"revoked {when(key.revoked_at)} by {key.revoked_by}{why}"
    return f"expires {when(key.expires_at)}" if key.expires_at is not None else ""
