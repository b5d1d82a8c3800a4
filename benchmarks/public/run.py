"""The run: every wanted row of every wanted set, from records or from the model, with its figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import vllm_edit
from benchmarks.public.asking import Asked, Asker, RowProgress
from benchmarks.public.bank import bank_of
from benchmarks.public.compiled import Singles, identity_of
from benchmarks.public.figures import SETTINGS, Figure, figures, text_figures
from benchmarks.public.place import Place
from benchmarks.public.rows import ABLATION, BASE, IKE, METHODS, SUBJECT, Alone, InContext, Many, Row, Unedited, way_of
from vllm_edit.digest import digest_bytes, digest_json
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent

_CODE = ("editing", "composition")
"""Packages whose code decides what an edit is: their digest is part of what a record is of."""


@dataclass
class Run:
    """Where everything comes from.

    folder: of the records, which belong to one base and one site. settings: method → what differs from its defaults.
    """

    base: Base
    place: Place
    folder: Path
    passages: Sequence[str]
    writes: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: Progress = silent

    @cached_property
    def asker(self) -> Asker:
        return Asker(HFRunner(self.base.model, self.base.tokenizer), self.place.site, self.passages, self.writes)

    @cached_property
    def bank(self) -> Bank:
        return bank_of(self.place.given, self.base, self.progress)

    @cached_property
    def site_tensors(self) -> SiteTensors:
        return self.place.site_tensors

    def figures_of(
        self, title: str, name: str, patches: Sequence[Patch], row_progress: RowProgress
    ) -> dict[str, Figure]:
        """The figures of a row of a set."""
        row = self._row(title, name, patches)
        record = self._record(name, title, patches, self._identity(title))
        asked = self.asker.asked(row, patches, record, row_progress)
        return {**figures(asked.sheets, row.mode), **text_figures(asked.written, asked.read), **_costs(asked, row)}

    def _row(self, title: str, name: str, patches: Sequence[Patch]) -> Row:
        many = way_of(title)
        if title == BASE:
            return Unedited()
        if title == IKE:
            return InContext(self.bank, self.base)
        if many is None:
            return Alone(self._singles(title, name, patches), subject=title == SUBJECT)
        way, size = many
        singles = self._singles(_made_as(title), name, patches)
        return Many(way, size, singles, self.base, self.place.site, self.site_tensors, self._settings("r-ROME"))

    def _singles(self, title: str, name: str, patches: Sequence[Patch]) -> Singles:
        """The single edits of a row."""
        method = _method_of(title)
        label = title if title in ABLATION or title == SUBJECT else method
        record = self._record(name, label, patches, self._made_by(title))
        return Singles(method, self._settings(title), self.base, self.place.kept, self.site_tensors, record)

    def _settings(self, title: str) -> dict[str, Any]:
        """What differs from the method's defaults. Of fine-tuning the rank: the benchmark's own store allows more."""
        method = _method_of(title)
        rank = {"rank": self.place.given.site().max_rank} if method == "ft" else {}
        scoped = RomeSettings.scoped if title == SUBJECT else {}
        return {**rank, **scoped, **self.settings.get(method, {}), **ABLATION.get(title, {})}

    def _identity(self, title: str) -> dict[str, Any]:
        """What decides a row's replies besides its edits."""
        edited = title not in (BASE, IKE)
        return {
            "row": title,
            "settings": dict(SETTINGS),
            "writes": self.writes,
            "passages": digest_json(list(self.passages)),
            "made": self._made_by(_made_as(title)) if edited else None,
            "bank": digest_json(self.bank.model_dump(mode="json")) if title == IKE else None,
        }

    def _made_by(self, title: str) -> dict[str, Any]:
        """What decides a row's single edits."""
        return {
            **identity_of(_method_of(title), self._settings(title)),
            "site": self.place.site.digest,
            "code": _code(),
        }

    def _record(self, name: str, title: str, patches: Sequence[Patch], identity: Mapping[str, Any]) -> Record:
        """The record of one thing about a set, in a file whose name holds the digest of what it is of."""
        edits = digest_json([patch.model_dump(mode="json") for patch in patches])
        whole = {"base": self.base.fingerprint.digest, "edits": edits, **identity}
        path = self.folder / f"{name}-{title}-{digest_json(whole)[:12]}.jsonl"
        return Record.open(path, whole)


def _made_as(title: str) -> str:
    """The row whose single edits a row is made of."""
    many = way_of(title)
    if many is None:
        return title
    return SUBJECT if many[0] == "scoped" else "r-ROME"


def _method_of(title: str) -> str:
    """The method of a row's single edits."""
    return METHODS.get(title, "rome")


def _costs(asked: Asked, row: Row) -> dict[str, Figure]:
    """What an edit costs to make, and an answer in prompt tokens."""
    added = [
        reply.tokens_added for sheet in asked.sheets for reply in sheet.replies[row.mode] if reply.text is not None
    ]
    found = {"edits": Figure(asked.edits), "tokens": Figure(sum(added) / max(len(added), 1), n=len(added))}
    if row.mode != "base":
        spent, edits = asked.spent, asked.edits
        found["seconds"] = Figure(spent.seconds / edits, n=edits)
        found["cpu"] = Figure(spent.cpu / edits, n=edits)
        found["missed"] = Figure(spent.missed, n=edits)
    return found


def _code() -> str:
    """Digest of the code that edits are compiled by."""
    root = Path(vllm_edit.__file__).parent
    files = [path for package in _CODE for path in sorted((root / package).rglob("*.py"))]
    return digest_bytes(*(part for path in files for part in (str(path.relative_to(root)).encode(), path.read_bytes())))


def forget(folder: Path) -> None:
    """Remove the records and the benchmark's own store."""
    shutil.rmtree(folder, ignore_errors=True)
