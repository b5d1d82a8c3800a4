"""`vllm-edit servers`: the running servers, and the generation of the registry that each follows."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption, WhoOption, WhyOption
from vllm_edit.cli.output import age, print_json, print_line, print_table


def servers(
    forget: Annotated[
        str | None, typer.Option(metavar="HOST:PID", help="Remove a silent server that has died from the list.")
    ] = None,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List servers: how many changes of the registry each is behind, and the age of its last heartbeat.

    A silent server sends no heartbeats but did not leave: it died, or still serves an older state. It is listed for a
    day.
    """
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    if forget is not None:
        registry.servers.forget(forget, why=why, by=who)
        if json:
            print_json({"forgotten": forget})
        else:
            print_line(f"server {forget}: forgotten")
        return
    known, newest = registry.servers.known(), registry.revision()
    if json:
        records = [
            {
                "server": entry.name,
                "generation": entry.generation,
                "behind": entry.revision.behind(newest),
                "drained": entry.drained,
                "seen_ago_s": round(entry.seen_ago_s, 3),
                "silent": entry.silent,
            }
            for entry in known
        ]
        print_json(records)
        return
    rows = [
        (
            entry.name,
            entry.generation,
            entry.revision.behind(newest),
            f"silent for {age(abs(entry.seen_ago_s))}" if entry.silent else f"{entry.seen_ago_s:.1f} s ago",
        )
        for entry in known
    ]
    print_table(("SERVER", "GENERATION", "BEHIND", "SEEN"), rows)
