"""Adapter source that takes ids from the in-memory snapshot, so adapters load while the registry is down."""

from __future__ import annotations

from pathlib import Path

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.serving.watcher import Watcher
from vllm_edit.store.store import Store


class SnapshotAdapters:
    """An `AdapterStore` that knows the ids of the snapshot's patches."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self._store, self._watcher = store, watcher

    def manifest(self, name: str) -> Manifest:
        return self._store.manifest(name)

    def adapter_folder(self, name: str, cache: Path) -> Path:
        return self._store.adapter_folder(name, cache)

    def adapter_id(self, name: str) -> int:
        known = self._watcher.current.numbers.get(name)
        return self._store.adapter_id(name) if known is None else known
