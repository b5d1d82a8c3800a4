"""The run: every wanted row of every wanted set, from records or from the model, with its figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import vllm_edit
from benchmarks.common.variants import Variant
from benchmarks.public.asking import Asked, Asker, RowProgress
from benchmarks.public.bank import bank_of
from benchmarks.public.compiled import Singles, identity_of
from benchmarks.public.figures import SETTINGS, Figure, figures, text_figures
from benchmarks.public.place import Place, Places
from benchmarks.public.rows import (
    ABLATIONS,
    BASE,
    IKE,
    METHODS,
    ROME,
    Alone,
    InContext,
    Many,
    Row,
    Title,
    Unedited,
)
from vllm_edit.digest import digest_bytes, digest_json
from vllm_edit.editing.compile import method_of
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress, silent

_CODE = ("composition", "deltas", "editing", "evaluation", "ike", "models", "text")
"""Packages whose code decides edits and replies. Their digest, with the benchmark's own, is part of a record's name."""


@dataclass
class Run:
    """Where everything comes from.

    folder: of the records, which belong to one base and one site. settings: method → what differs from its defaults.
    """

    base: Base
    places: Places
    folder: Path
    passages: Sequence[str]
    writes: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: Progress = silent

    @cached_property
    def asker(self) -> Asker:
        return Asker(HFRunner(self.base.model, self.base.tokenizer), self.passages, self.writes)

    @cached_property
    def bank(self) -> Bank:
        return bank_of(self.places.given, self.base, self.progress)

    def figures_of(
        self, title: str, name: str, patches: Sequence[Patch], row_progress: RowProgress
    ) -> dict[str, Figure]:
        """The figures of a row of a set."""
        row = self._row(title, name, patches)
        record = self._record(name, title, patches, self._identity(title))
        site = self._place(title).site
        asked = self.asker.asked(row, patches, record, row_progress, site)
        return {**figures(asked.sheets, row.mode), **text_figures(asked.written, asked.read), **_costs(asked, row)}

    def _row(self, title: str, name: str, patches: Sequence[Patch]) -> Row:
        if title == BASE:
            return Unedited()
        if title == IKE:
            return InContext(self.bank, self.base)
        parsed = Title.of(title)
        singles = self._singles(title, name, patches)
        if parsed.way is None:
            return Alone(singles, parsed.subject)
        return Many(parsed.way, parsed.size, singles, self._settings(title))

    def _place(self, title: str) -> Place:
        """Where a row's edits are; base and IKE have the given store's site."""
        return self.places.of(METHODS[Title.of(title).entry or ROME], self.progress)

    def _singles(self, title: str, name: str, patches: Sequence[Patch]) -> Singles:
        """The single edits of a row; rows with the same settings have the same edits."""
        settings = self._settings(title)
        method = _variant_of(title).method
        record = self._record(name, f"{method}-edits", patches, self._made_by(title))
        return Singles(method, settings, self.base, self._place(title), record)

    def _settings(self, title: str) -> dict[str, Any]:
        """What differs from the method's defaults. Of fine-tuning the rank: the benchmark's own store allows more."""
        variant = _variant_of(title)
        rank = {"rank": self.places.given.site().max_rank} if variant.method == "ft" else {}
        scoped = method_of(variant.method).settings.scoped if Title.of(title).subject else {}
        return {
            **rank,
            **scoped,
            **variant.settings,
            **self.settings.get(variant.method, {}),
            **ABLATIONS.get(title, {}),
        }

    def _identity(self, title: str) -> dict[str, Any]:
        """What decides a row's replies besides its edits."""
        edited = title not in (BASE, IKE)
        return {
            "row": title,
            "settings": dict(SETTINGS),
            "writes": self.writes,
            "passages": digest_json(list(self.passages)),
            "made": self._made_by(title) if edited else None,
            "bank": digest_json(self.bank.model_dump(mode="json")) if title == IKE else None,
            "code": _code(),
        }

    def _made_by(self, title: str) -> dict[str, Any]:
        """What decides a row's single edits."""
        return {
            **identity_of(_variant_of(title).method, self._settings(title)),
            "site": self._place(title).site.digest,
            "code": _code(),
        }

    def _record(self, name: str, title: str, patches: Sequence[Patch], identity: Mapping[str, Any]) -> Record:
        """The record of one thing about a set, in a file whose name holds the digest of what it is of."""
        edits = digest_json([patch.model_dump(mode="json") for patch in patches])
        whole = {"base": self.base.fingerprint.digest, "edits": edits, **identity}
        path = self.folder / f"{name}-{title}-{digest_json(whole)[:12]}.jsonl"
        return Record.open(path, whole)


def _variant_of(title: str) -> Variant:
    """The method of a row of edits."""
    name = Title.of(title).entry
    assert name is not None, title
    return METHODS[name]


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
    """Digest of the code that edits are compiled by, asked and counted."""
    root, own = Path(vllm_edit.__file__).parent, Path(__file__).parent
    folders = [*(root / package for package in _CODE), own]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return digest_bytes(*(part for path in files for part in (path.name.encode(), path.read_bytes())))


def forget(folder: Path) -> None:
    """Remove the records and the benchmark's own store."""
    shutil.rmtree(folder, ignore_errors=True)
