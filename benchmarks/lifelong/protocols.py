"""Protocols of lifelong editing: how a batch of edits is published after the batches before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.checkpoints import read_checkpoint, write_checkpoint
from vllm_edit.composition.compose import compose
from vllm_edit.deltas.apply import applied
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.memit.edits import compile_at
from vllm_edit.editing.memit.layers import Layer
from vllm_edit.editing.memit.memit_settings import MemitSettings
from vllm_edit.editing.method_settings import MethodSettings
from vllm_edit.editing.rome.factors import measure
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.errors import NotFound
from vllm_edit.models.base import Base, unchanged
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress
from vllm_edit.store.store import Store


class Publisher(Protocol):
    """Publishes batches. A batch that an earlier run published is not compiled again."""

    def publish(self, batch: Patch, progress: Progress) -> int:
        """Publish one more batch. Returns the number of its edits that exceed a limit when they are compiled."""

    @property
    def delta(self) -> Delta:
        """The update of all published batches."""


class Composed:
    """Every batch is compiled from the clean base, and the batches so far are composed: one solve of all factors.

    With `alphaedit` the keys of all batches are columns of that solve, so the keys of earlier batches are kept too.
    """

    def __init__(
        self, base: Base, method: str, store: Store, site_tensors: SiteTensors, settings: MethodSettings
    ) -> None:
        """store: of the compiled batches; its site is used."""
        self._base, self._method, self._store = base, method, store
        self._site_tensors, self._settings = site_tensors, settings
        self._members: list[CompiledPatch] = []

    def publish(self, batch: Patch, progress: Progress) -> int:
        compiled = self._stored(batch) or self._compiled(batch, progress)
        self._members.append(compiled)
        return len(compiled.report.missed)

    @property
    def delta(self) -> Delta:
        return compose(self._members).delta if self._members else Delta({})

    def _stored(self, batch: Patch) -> CompiledPatch | None:
        try:
            return self._store.load(self._store.resolve(batch.name))
        except NotFound:
            return None

    def _compiled(self, batch: Patch, progress: Progress) -> CompiledPatch:
        compiled = compile_patch(
            batch,
            self._base,
            self._method,
            site=self._store.site(),
            site_tensors=self._site_tensors,
            settings=self._settings,
            progress=progress,
        )
        self._store.save(compiled)
        return compiled


class Sequential:
    """AlphaEdit's protocol (arXiv 2410.02355): every batch is compiled on the model that the batches before it edited.

    Keys and residuals are measured under the updates so far. The layers' metric is that of the base, and the keys of
    all earlier batches are kept. As in the reference code, a batch's keys are measured again after it was added.
    Departures from the code: the base's weights stay as they are, the updates are low-rank terms beside them; the
    earlier keys are a matrix, not a sum of size d_in × d_in.
    """

    def __init__(self, base: Base, layers: Sequence[Layer], settings: MemitSettings, path: Path, identity: str) -> None:
        """path: of the checkpoint, written after each batch. identity: what decides the updates (`checkpoints`)."""
        self._base, self._layers, self._settings = base, tuple(layers), settings
        self._path, self._identity = path, identity
        self._parts: dict[str, LowRank] = {}
        self._earlier: dict[str, torch.Tensor] = {}  # module → [m, d_in]
        self._missed: list[int] = []  # of each batch that the checkpoint holds
        self._published = 0
        if saved := read_checkpoint(path, identity, "is of another run"):
            self._parts = {name: LowRank(saved["B"][name], saved["A"][name]) for name in saved["B"]}
            self._earlier, self._missed = saved["earlier"], saved["missed"]

    def publish(self, batch: Patch, progress: Progress) -> int:
        if self._published == len(self._missed):
            self._add(batch.edits, progress)
        self._published += 1
        return self._missed[self._published - 1]

    @property
    def delta(self) -> Delta:
        """The update of all published batches; of an earlier run's, if that came further than the calls of publish."""
        return Delta(self._parts)

    def _add(self, edits: Sequence[Edit], progress: Progress) -> None:
        layers = [replace(layer, earlier=self._earlier.get(layer.module)) for layer in self._layers]
        with unchanged(self._base):
            with applied(self._base.model, self._parts):
                result = compile_at(self._base, layers, edits, self._settings, progress)
            whole = Delta.concatenate([Delta(self._parts), result.delta])
            with applied(self._base.model, whole.parts):
                keys = {layer.module: self._edited_keys(layer, edits) for layer in layers}
        self._parts = dict(whole.parts)
        self._earlier = {
            module: torch.cat([self._earlier[module], new]) if module in self._earlier else new
            for module, new in keys.items()
        }
        self._missed.append(len(result.report.missed))
        self._save()

    def _edited_keys(self, layer: Layer, edits: Sequence[Edit]) -> torch.Tensor:
        """The edits' keys [m, d_in] at a layer of the model as it is now."""
        columns = measure(self._base, layer.site, layer.metric, edits, self._settings).columns
        return columns.keys[[place for place, share in enumerate(columns.shares) if share]]

    def _save(self) -> None:
        factors: Mapping[str, Mapping[str, torch.Tensor]] = {
            "B": {name: part.B for name, part in self._parts.items()},
            "A": {name: part.A for name, part in self._parts.items()},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(self._path, self._identity, {**factors, "earlier": self._earlier, "missed": self._missed})
