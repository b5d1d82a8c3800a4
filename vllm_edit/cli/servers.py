"""`vllm-edit servers`: which servers run, and how far each follows the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_edit.cli.output import JsonOption, StoreOption, WhoOption, WhyOption, age, print_json, print_line, print_table


def servers(
    forget: Annotated[
        str | None, typer.Option(metavar="HOST:PID", help="Say that a silent server has died; no change names it then.")
    ] = None,
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List servers: how many changes of the registry each is behind, and when it was last heard of.

    A silent one did not leave and is not heard of: it died, or serves on by an older state. It is listed for a day.
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
    generation = registry.generation()
    known = registry.servers.known()
    if json:
        told = [
            {
                "server": one.name,
                "generation": one.generation,
                "behind": max(0, generation - one.generation),
                "drained": one.drained,
                "seen_ago_s": round(one.seen_ago_s, 3),
                "silent": one.silent,
            }
            for one in known
        ]
        print_json(told)
        return
    rows = [
        (
            one.name,
            one.generation,
            max(0, generation - one.generation),
            f"silent for {age(abs(one.seen_ago_s))}" if one.silent else f"{one.seen_ago_s:.1f} s ago",
        )
        for one in known
    ]
    print_table(("SERVER", "GENERATION", "BEHIND", "SEEN"), rows)
