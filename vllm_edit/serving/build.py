"""Builds a service from a store and an engine, without starting its background tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vllm_edit.artefacts.site import Site
from vllm_edit.serving.answer_log import AnswerLog
from vllm_edit.serving.heartbeat import Heartbeat
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.model_field import Catalogue
from vllm_edit.serving.prefixes import Prefixes
from vllm_edit.serving.residency import AdapterEngine, Residency, local_folder
from vllm_edit.serving.scope import Scopes
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.service import Service
from vllm_edit.serving.sessions import Sessions
from vllm_edit.serving.shadow_queue import ShadowQueue
from vllm_edit.serving.spans import Spans
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.watcher import SavedState, Watcher
from vllm_edit.store.store import Store


class ServingEngine(AdapterEngine, Protocol):
    """The engine interface that serving needs. slots: maximum adapters per batch. capacity: in the engine."""

    @property
    def base_names(self) -> tuple[str, ...]: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_prompts(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def count_tokens(self, text: str) -> int: ...
    def decode(self, ids: Sequence[int]) -> str: ...


def make_service(
    store: Store,
    site: Site,
    engine: ServingEngine,
    settings: Settings,
    metrics: Metrics,
    saved: SavedState,
    grace_s: float,
    spans: Spans | None = None,
) -> Service:
    """Build the service.

    Args:
        store: the store whose patches are served.
        site: the store's site.
        engine: the running engine.
        settings: the operator's settings.
        metrics: the router's metrics.
        saved: this node's copy of the last known registry state.
        grace_s: seconds for which an adapter stays in the engine after its last request.
        spans: starts the spans of requests; None for no spans.
    """
    folder, texts = local_folder(), Threads(2)

    def changed(catalogue: Catalogue) -> None:
        service.changed(catalogue)

    heartbeat = Heartbeat(store.registry.servers, lambda: residency.drained)
    watcher = Watcher(store.registry, engine.base_names, metrics, saved=saved, on_change=changed, report=heartbeat.beat)
    residency = Residency(
        store,
        engine,
        site,
        Path(folder.name),
        metrics,
        capacity=engine.capacity,
        slots=engine.slots,
        grace_s=grace_s,
    )
    answers = AnswerLog(
        store.registry,
        metrics,
        server=heartbeat.name,
        remembered=settings.max_answers,
        keep_days=settings.log_days,
    )
    service = Service(
        settings=settings,
        store=store,
        watcher=watcher,
        heartbeat=heartbeat,
        residency=residency,
        scopes=Scopes(store, site, engine.max_rank, metrics),
        prefixes=Prefixes(store, engine.max_model_len, engine.count_tokens, texts),
        answers=answers,
        shadows=ShadowQueue(metrics),
        metrics=metrics,
        sessions=Sessions(None if settings.console_secret is None else settings.console_secret.get_secret_value()),
        spans=spans or Spans(),
        decode=engine.decode,
        texts=texts,
        max_model_len=engine.max_model_len,
        max_prompts=engine.max_prompts,
        started=int(time.time()),
        folder=folder,
    )
    return service
