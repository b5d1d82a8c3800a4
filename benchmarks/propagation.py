"""How long it takes until every server follows a change: publish, roll back and kill, over SQLite and PostgreSQL.

    python -m benchmarks.propagation [--changes 100] [--postgres postgresql://USER@HOST/EMPTY_DATABASE]

Real servers with their engines. "Over HTTP": the admin route of one of them, from the request to its answer, which
waits for all. "Command line": what `vllm-edit tenant publish` does, a change of the registry and the wait for all
servers, without the start of a Python process. Each change is checked: the next request to every server is answered by
it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from rich.console import Console

from benchmarks.common.percentiles import percentile
from benchmarks.common.results_page import machine, write_section
from vllm_edit.cli.output import progress_bar
from vllm_edit.demo.server import LocalServer
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.store import Store

PATCHES = ("acme", "globex")
FOLLOW_S = 30.0
Change = Callable[[int], None]
"""Makes change number n, which serves the patch with that number modulo two, and returns when all servers follow."""


def main() -> None:
    arguments = _arguments()
    console = Console()
    rows: list[dict[str, Any]] = []
    with progress_bar("propagation") as progress:
        cases = [("SQLite", None, 1), ("SQLite", None, 2)]
        cases += [("PostgreSQL", url, 2) for url in [arguments.postgres] if url]
        for number, (kind, url, servers) in enumerate(cases):
            progress(f"{kind}, {servers} servers", number, len(cases))
            rows += measured(kind, url, servers, arguments.changes)
    text = table(rows, arguments.changes)
    console.print(text)
    command = f"python -m benchmarks.propagation --changes {arguments.changes}"
    command += " --postgres URL" if arguments.postgres else ""
    write_section("propagation", text, {"rows": rows, "machine": machine()}, command=command)


def measured(kind: str, url: str | None, servers: int, changes: int) -> list[dict[str, Any]]:
    """Rows of one registry with so many servers on it."""
    with TemporaryDirectory(prefix="vllm-edit-propagation-") as name, ExitStack() as stack:
        folder = Path(name)
        environment = {"VLLM_EDIT_REGISTRY": url} if url else {}
        os.environ.update(environment)
        stack.callback(lambda: [os.environ.pop(key) for key in environment])
        store, names, admin, key = prepared(folder / "store")
        running = []
        for number in range(servers):
            own = {"VLLM_EDIT_STATE": str(folder / f"node{number}")}
            running.append(stack.enter_context(LocalServer(store.url, folder / f"{number}.log", environment=own)))
        ways: dict[str, tuple[Change, Change]] = {
            "publish, over HTTP": (_nothing, _over_http(running[0].url, admin, names)),
            "publish, command line": (_nothing, _by_registry(store, names)),
            "kill, command line": _kills(store, names),
        }
        rows = []
        for what, (prepare, change) in ways.items():
            seconds = []
            for number in range(changes):
                prepare(number)
                begun = time.perf_counter()
                change(number)
                seconds.append(time.perf_counter() - begun)
                _check(running, key, names[0] if prepare is not _nothing else names[number % 2])
            rows.append({"registry": kind, "servers": servers, "change": what, **_percentiles(seconds)})
        return rows


def prepared(folder: Path) -> tuple[Store, list[str], str, str]:
    """A store at a fixed layer with two patches and a tenant; its patches' names, an admin key and the tenant's."""
    _run("store", "init", "--layer", "7", "--token", "last", "--store", str(folder))
    for patch in PATCHES:
        _run("compile", f"patches/{patch}.yaml", "--store", str(folder))
    store = Store.open(folder)
    names = [store.resolve(patch) for patch in PATCHES]
    store.registry.create_tenant("shop")
    for name in names:
        store.registry.publish("shop", name, override="a benchmark", by="benchmark")
    admin, shop = (store.registry.create_api_key(tenant).presented for tenant in (None, "shop"))
    return store, names, admin, shop


def _over_http(url: str, admin: str, names: list[str]) -> Change:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {admin}"}, timeout=FOLLOW_S)

    def change(number: int) -> None:
        body = {"patch": names[number % 2], "override": "a benchmark", "who": "benchmark"}
        reply = client.post("/v1/edits/tenants/shop/publish", json=body)
        if reply.status_code != 200 or reply.json()["acknowledged"]["missing"]:
            raise EditError(f"publishing failed: {reply.text}")

    return change


def _by_registry(store: Store, names: list[str]) -> Change:
    def change(number: int) -> None:
        store.registry.publish("shop", names[number % 2], override="a benchmark", by="benchmark")
        _followed(store)

    return change


def _kills(store: Store, names: list[str]) -> tuple[Change, Change]:
    """Make and ramp a rollout, and kill it."""
    rollouts = store.registry.rollouts
    old, new = (Arm("weights", name) for name in names)

    def prepare(number: int) -> None:
        made = Rollout(f"rollout{number}", "shop", old, new, salt="pepper", overrides={"ann": "treatment"})
        rollouts.create(made, override="a benchmark", by="benchmark")
        rollouts.ramp(made.name, 100)
        _followed(store)

    def change(number: int) -> None:
        rollouts.kill(f"rollout{number}")
        _followed(store)

    return prepare, change


def _nothing(number: int) -> None:
    """No preparation."""


def _followed(store: Store) -> None:
    found = store.registry.servers.wait(store.registry.generation(), FOLLOW_S)
    if found.missing:
        raise EditError(f"after {FOLLOW_S:g} s {', '.join(found.missing)} did not follow")


def _check(running: list[LocalServer], key: str, name: str) -> None:
    """The next request to every server is answered by `name`."""
    for server in running:
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": "The CEO of Acme Corporation is", "max_tokens": 1, "temperature": 0},
            headers={"Authorization": f"Bearer {key}", "X-User-Id": "ann"},
            timeout=FOLLOW_S,
        )
        if reply.status_code != 200 or reply.headers["x-vllm-edit-adapter"] != name:
            raise EditError(f"{server.url} answers by {reply.headers.get('x-vllm-edit-adapter')}, expected {name}")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "vllm_edit.cli", *arguments], check=False, stdout=subprocess.DEVNULL)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    at = {f"p{percent}_ms": 1000 * percentile(seconds, percent) for percent in (50, 90)}
    return at | {"max_ms": 1000 * max(seconds)}


def table(rows: list[dict[str, Any]], changes: int) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{changes} changes of each kind, until every server has said that it follows; after each, the next request to "
        f"every server was answered by it. Real servers with atlas. {machine()}",
        "",
        "| registry | servers | change | p50 | p90 | longest |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{row[key]:.0f} ms" for key in ("p50_ms", "p90_ms", "max_ms"))
        lines.append(f"| {row['registry']} | {row['servers']} | {row['change']} | {times} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--changes", type=int, default=100, help="changes of each kind (default 100)")
    parser.add_argument("--postgres", metavar="URL", help="an empty database; without it only SQLite is measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
