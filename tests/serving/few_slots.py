"""A real server over a tiny model with fewer places for adapters than there are patches, so that they come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.serving import places
from tests.serving.without_engine import bearer
from vllm_edit.demo.server import LocalServer
from vllm_edit.store.store import Store

SLOTS = 3
"""Adapters in one batch."""
PLACES = 4
"""Adapters in the engine, those in slots included."""
FLAGS = ("--max-loras", str(SLOTS), "--max-cpu-loras", str(PLACES), "--max-num-seqs", "32")
PATIENCE_S = 900  # for a busy machine


@dataclass(frozen=True)
class FewSlots:
    """A running server with keys. admin: the headers of an administrator."""

    server: LocalServer
    store: Store
    model: Path
    admin: dict[str, str]

    def create_tenant(self, name: str, patch: str) -> dict[str, str]:
        """The headers of a new tenant, which is served the patch as soon as the server has read so."""
        registry = self.store.registry
        registry.create_tenant(name)
        registry.publish(name, patch)
        made = bearer(registry.create_api_key(name).presented)
        followed = registry.servers.wait(registry.generation(), 60)
        assert (len(followed.acknowledged), followed.missing) == (1, ())
        return made


@contextmanager
def few_slots_server(folder: Path) -> Iterator[FewSlots]:
    """The server, in a process of its own; its store has no patch yet."""
    model = places.make_model(folder / "tiny")
    store = places.make_store(folder / "store", places.make_site(model))
    admin = bearer(store.registry.create_api_key(None).presented)
    state = {"VLLM_EDIT_STATE": str(folder / "state")}
    flags = (*FLAGS, "--uvicorn-log-level", "warning")
    with LocalServer(store.url, folder / "log", *flags, patience=PATIENCE_S, environment=state) as server:
        yield FewSlots(server, store, model, admin)
