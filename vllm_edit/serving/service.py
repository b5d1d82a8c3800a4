"""The components of a running server, built once when its engine is up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from tempfile import TemporaryDirectory

from vllm_edit.errors import EditError
from vllm_edit.registry.servers import Acknowledged
from vllm_edit.serving.answer_log import AnswerLog
from vllm_edit.serving.heartbeat import Heartbeat
from vllm_edit.serving.inner_app import InnerApp
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.model_field import Catalogue
from vllm_edit.serving.prefixes import Prefixes
from vllm_edit.serving.request_text import Decode
from vllm_edit.serving.residency import Residency
from vllm_edit.serving.scope import Scopes
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.sessions import Sessions
from vllm_edit.serving.shadow_queue import ShadowQueue
from vllm_edit.serving.spans import Spans
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.watcher import Watcher
from vllm_edit.store.store import Store

logger = logging.getLogger(__name__)


@dataclass
class Service:
    settings: Settings
    store: Store
    watcher: Watcher
    heartbeat: Heartbeat
    residency: Residency
    scopes: Scopes
    prefixes: Prefixes
    answers: AnswerLog
    shadows: ShadowQueue
    metrics: Metrics
    sessions: Sessions  # of the console
    spans: Spans
    decode: Decode
    texts: Threads  # read long bodies
    max_model_len: int
    max_prompts: int  # per request
    started: int
    folder: TemporaryDirectory[str]  # holds the resident adapters; deleted with this object
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, task: asyncio.Task[None]) -> None:
        """Keep a reference to a background task; the event loop does not."""
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task of the router died", exc_info=error)

    def changed(self, catalogue: Catalogue) -> None:
        """Apply a new catalogue: remove the adapters of removed patches, and preload the wanted ones. Drop the shadows
        of rollouts that have none any more."""
        self.residency.follow(catalogue.names)
        self.shadows.follow(catalogue.snapshot.names_shadowing)
        if self.residency.slots:
            self.start(asyncio.create_task(self.preload(catalogue)))

    async def close(self) -> None:
        """Write the queued answers, and sign this server off. The registry may be down."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.answers.close()
        with contextlib.suppress(EditError):
            await self.heartbeat.leave()
        self.store.registry.close()

    async def preload(self, catalogue: Catalogue) -> None:
        """Load the adapters that requests are likely to need, up to the engine's capacity, as many at a time as it has
        slots. Stop when a newer catalogue is in force, which has its own preload.

        For a patch with scope subject, load only the index: its adapters depend on the requests.
        """
        wanted, here = catalogue.wanted(datetime.now(UTC)), self.residency.names
        room = self.residency.capacity - len(here.intersection(wanted))
        missing = [name for name in wanted if name not in here and not self.scopes.indexed(name)][:room]
        at_once = self.residency.slots
        while missing and self.watcher.current is catalogue:
            await asyncio.gather(*(self._ahead(name) for name in missing[:at_once]))
            missing = missing[at_once:]

    async def _ahead(self, name: str) -> None:
        """Prepare a patch ahead of time. Log a failure; a request that needs the patch raises it again."""
        try:
            await self.prepare(name)
        except EditError as error:
            logger.error("%s cannot be served: %s", name, error)
        except Exception:  # catch everything, so that the other patches are still loaded
            logger.exception("%s cannot be served", name)

    async def followed(self, within_s: float) -> Acknowledged:
        """Apply a change of the registry, and wait for the other servers; return those that applied it."""
        catalogue = await self.watcher.refresh()
        return await self.heartbeat.followed(catalogue.generation, within_s)

    async def prepare(self, name: str) -> None:
        """Load everything that serving the patch needs from the store, except adapters of a patch with scope subject.

        Raises:
            Incompatible, Corrupt, NotFound: the patch cannot be served.
        """
        if await self.scopes.index(name) is None:
            await self.residency.ensure(name)


@dataclass
class Holder:
    """Gives the service to the router, which exists before the engine, and vLLM's own routes to the service."""

    service: Service | None = None
    inner: InnerApp | None = None
