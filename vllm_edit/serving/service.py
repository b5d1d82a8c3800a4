"""Everything that one server answers with, built once when its engine is up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any

from vllm_edit.errors import EditError
from vllm_edit.serving.alias import Catalogue
from vllm_edit.serving.answer_log import AnswerLog
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.prefixes import Prefixes
from vllm_edit.serving.presence import Presence
from vllm_edit.serving.residency import Residency
from vllm_edit.serving.scope import Scopes
from vllm_edit.serving.settings import Settings
from vllm_edit.serving.spoken import Decode
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.watcher import Watcher
from vllm_edit.store.store import Store

logger = logging.getLogger(__name__)


@dataclass
class Service:
    settings: Settings
    store: Store
    watcher: Watcher
    presence: Presence
    residency: Residency
    scopes: Scopes
    prefixes: Prefixes
    answers: AnswerLog
    metrics: Metrics
    decode: Decode
    texts: Threads  # in which long bodies are read
    max_model_len: int
    max_prompts: int  # of one request
    started: int
    folder: TemporaryDirectory[str]  # of the resident adapters; it goes when this object does
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, task: asyncio.Task[None]) -> None:
        """Keep a background task alive; the event loop itself would not."""
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task of the router died", exc_info=error)

    def changed(self, catalogue: Catalogue) -> None:
        """Another state of the registry is in force: what was removed leaves, what is wanted comes."""
        self.residency.follow(catalogue.names)
        if self.residency.slots:
            self.start(asyncio.create_task(self.preload(catalogue)))

    async def close(self) -> None:
        """Write what is not written yet, and say that this server has left. The registry may be down."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.answers.close()
        with contextlib.suppress(EditError):
            await self.presence.leave()
        self.store.registry.close()

    async def preload(self, catalogue: Catalogue) -> None:
        """Put what requests are likely to need into the engine ahead of them: no more than it holds, as many at a time
        as it has slots. It ends when another state is in force, for which it begins anew.

        Of a patch with scope subject it is the index: which of its adapters are wanted, only requests tell.
        """
        wanted, here = catalogue.wanted(datetime.now(UTC)), self.residency.names
        room = self.residency.capacity - len(here.intersection(wanted))
        missing = [name for name in wanted if name not in here and name not in self.scopes.indexed][:room]
        at_once = self.residency.slots
        while missing and self.watcher.current is catalogue:
            await asyncio.gather(*(self._ahead(name) for name in missing[:at_once]))
            missing = missing[at_once:]

    async def _ahead(self, name: str) -> None:
        """A failure is logged; the request that needs it gets it raised."""
        try:
            await self.prepare(name)
        except EditError as error:
            logger.error("%s cannot be served: %s", name, error)
        except Exception:  # what nobody thought of must not keep the others from being loaded
            logger.exception("%s cannot be served", name)

    async def followed(self, within_s: float) -> dict[str, Any]:
        """After a change of the registry: which servers follow. This one does when this returns."""
        catalogue = await self.watcher.refresh()
        return (await self.presence.followed(catalogue.generation, within_s)).as_record()

    async def prepare(self, name: str) -> None:
        """Return when the patch can be served without further reading of the store, except for scope's adapters.

        Raises:
            Incompatible, Corrupt, NotFound: it cannot.
        """
        if await self.scopes.index(name) is None:
            await self.residency.ensure(name)


@dataclass
class Holder:
    """Where the router, which exists before the engine, finds the service."""

    service: Service | None = None
