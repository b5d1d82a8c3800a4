"""`vllm-edit servers`: which servers run, and how far each follows the registry."""

from __future__ import annotations

from vllm_edit.cli.output import JsonOption, StoreOption, print_json, print_table


def servers(store: StoreOption = None, json: JsonOption = False) -> None:
    """List running servers: how many changes of the registry each is behind, and when it was last heard of."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    generation = registry.generation()
    told = [
        {
            "server": one.name,
            "generation": one.generation,
            "behind": max(0, generation - one.generation),
            "drained": one.drained,
            "seen_ago_s": round(one.seen_ago_s, 3),
        }
        for one in registry.servers.live()
    ]
    if json:
        print_json(told)
        return
    rows = [(one["server"], one["generation"], one["behind"], f"{one['seen_ago_s']:.1f} s ago") for one in told]
    print_table(("SERVER", "GENERATION", "BEHIND", "SEEN"), rows)
