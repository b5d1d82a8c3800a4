"""Propagation of a change: wait until every running server follows it, and report the servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from vllm_edit.cli.output import age, print_error, print_json, print_line
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from vllm_edit.registry.registry import Registry
    from vllm_edit.registry.servers import Acknowledged


def report_change(registry: Registry, wait_s: float, line: str, record: Mapping[str, object], json: bool) -> None:
    """Print a change, then wait and print which servers follow it. A note names the silent servers.

    Args:
        registry: The changed registry.
        wait_s: Maximum wait in seconds; 0 for none.
        line: The change as text.
        record: The change as JSON.
        json: Print JSON.

    Raises:
        typer.Exit: with 1, if a server does not follow, or the registry cannot be read. The change stays in force.
    """
    if not json:
        print_line(line)
    found, problem = None, ""
    if wait_s:
        try:
            found = registry.servers.wait(registry.generation(), wait_s)
            problem = _problem(found)
        except EditError as error:
            problem = f"the change is made, but it is unknown which servers follow it: {error}"
    if json:
        print_json({**record, "acknowledged": None if found is None else found.as_record()})
    elif found is not None and found.acknowledged and not found.missing:
        print_line(f"{_servers(len(found.acknowledged))} after {_time(found.seconds)}")
    if found is not None and found.silent:
        print_line(_note(found), error=True)
    if problem:
        print_error(problem)
        raise typer.Exit(1)


def _problem(found: Acknowledged) -> str:
    if not found.missing:
        return ""
    return (
        f"the change is made, but after {_time(found.seconds)} {', '.join(found.missing)} "
        f"({len(found.missing)} of {len(found.missing) + len(found.acknowledged)} running servers) did not acknowledge "
        "it; a server follows when it reaches the registry"
    )


def _note(found: Acknowledged) -> str:
    single = len(found.silent) == 1
    it, age_s = "it" if single else "they", age(found.silent_s)
    return (
        f"note: no heartbeat for {age_s if single else f'{age_s} or longer'}: {', '.join(found.silent)}; {it} may have "
        f"died, or still serve an older state (once {it} {'is' if single else 'are'} gone: vllm-edit servers --forget "
        "HOST:PID)"
    )


def _servers(count: int) -> str:
    return "1 server follows" if count == 1 else f"{count} servers follow"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
