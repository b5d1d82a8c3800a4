"""One row's edits asked, portion by portion, into a record: replies, what was written and read, and what it took."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from benchmarks.public.compiled import Spent
from benchmarks.public.figures import SETTINGS
from benchmarks.public.memory import Memory
from benchmarks.public.rows import Portion, Row, portions
from benchmarks.public.text import TOKENS, Read, Written, entropies
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.errors import EditError
from vllm_edit.evaluation.asking import ask
from vllm_edit.evaluation.questions import RELIABILITY, Question
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.requests import requests_of
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.evaluation.sheet import Sheet
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress


class RowProgress(Protocol):
    """Receives the progress of a row."""

    def __call__(self, what: str, edits: int) -> None:
        """What is being done, and how many of the row's edits are finished."""

    def recorded(self, edits: int) -> None:
        """So many edits of the row were in its record."""


_PASSAGES = 2
"""Passages read for each edit; every edit begins with another one."""
_ENTROPY = "entropy"


@dataclass
class Asked:
    """Everything that was found of a row, of `edits` edits."""

    sheets: list[Sheet] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    read: list[Read] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    edits: int = 0


class Asker:
    """Asks rows of one model. passages: ordinary text to read. writes: edits of a set whose fluency is measured."""

    def __init__(self, runner: HFRunner, passages: Sequence[str], writes: int) -> None:
        self._runner, self._memory = runner, Memory(runner)
        self._passages, self._writes = passages, writes

    def asked(self, row: Row, patches: Sequence[Patch], record: Record, row_progress: RowProgress, site: Site) -> Asked:
        """The whole row, whose edits are at `site`; what the record holds is not asked again."""
        found = Asked()
        done: set[str] = set()
        earlier: Sequence[Mapping[str, Any]] = record.entries
        for entry in earlier:
            if done.issuperset(entry["patches"]):
                continue  # two processes wrote this record at once
            self._take(entry, row, found)
            done |= set(entry["patches"])
        row_progress.recorded(found.edits)
        writing = {patch.name for patch in patches[: self._writes]}
        for declared in portions(row, patches):
            if done.issuperset(patch.name for patch in declared):
                continue
            row_progress("compile", found.edits)
            portion = row.made(declared, partial(_report, row_progress, found.edits, "compile, "))
            record.add(self._entry(row, portion, writing, partial(_report, row_progress, found.edits, ""), site))
            self._take(record.entries[-1], row, found)
        return found

    def _take(self, entry: Mapping[str, Any], row: Row, found: Asked) -> None:
        """Add a record's entry to what was found, and remember its answers for other rows."""
        sheets = [Sheet.of_record(sheet) for sheet in entry["sheets"]]
        for sheet, adapter in zip(sheets, entry["adapters"], strict=True):
            self._memory.learn(sheet, "base", None, SETTINGS.max_tokens)
            if adapter is not None:
                self._memory.learn(sheet, row.mode, adapter, SETTINGS.max_tokens)
        written = [Written(**item) for item in entry["written"]]
        for text in written:
            self._memory.know(_ENTROPY, (text.prompt, False, None), text.entropy_base)
            if text.adapter is not None:
                self._memory.know(_ENTROPY, (text.prompt, False, text.adapter), text.entropy)
        found.sheets += sheets
        found.written += written
        found.read += [Read(**reading) for reading in entry["read"]]
        found.spent += Spent(**entry["spent"])
        found.edits += len(entry["patches"])

    def _entry(self, row: Row, portion: Portion, writing: set[str], progress: Progress, site: Site) -> dict[str, Any]:
        """What a portion's patches answer, write and read, JSON-able.

        adapters: of each patch the digest of the one adapter that all of its prompts ran under, None where there is no
        such one.
        """
        sheets, _ = ask(portion.made, self._memory, (row.mode,), SETTINGS, progress, site)
        progress("writing", 0, 1)
        written = self._written(row, portion, writing, site)
        progress("reading", 0, 1)
        return {
            "patches": [patch.name for patch in portion.declared],
            "sheets": [sheet.as_record() for sheet in sheets],
            "adapters": [
                patch.manifest.adapter if isinstance(patch, CompiledPatch) and row.mode == "weights" else None
                for patch in portion.made
            ],
            "written": [asdict(text) for text in written],
            "read": [asdict(reading) for reading in self._read(row, portion, site)],
            "spent": asdict(portion.spent),
        }

    def _written(self, row: Row, portion: Portion, writing: set[str], site: Site) -> list[Written]:
        """The texts with which the model continues each chosen edit's own prompt.

        Prompts that a server would refuse are left out.
        """
        questions = [
            Question(portion.owner(number), 0, RELIABILITY, edit.prompt, False, edit.target_new, edit.target_true)
            for number, patch in enumerate(portion.declared)
            if patch.name in writing
            for edit in patch.edits
        ]
        made = requests_of(questions, portion.made, row.mode, self._memory, TOKENS, site)
        served = [
            (question.prompt, patch)
            for question, patch in zip(questions, made, strict=True)
            if isinstance(patch, Request)
        ]
        own = {request.prompt: prompt for prompt, request in served}
        write = partial(entropies, self._runner, own)
        before = self._memory.remembered([Request(prompt) for prompt, _ in served], _ENTROPY, write)
        after = self._memory.remembered([request for _, request in served], _ENTROPY, write)
        return [
            Written(prompt, request.patch.manifest.adapter if request.patch else None, entropy, entropy_base)
            for (prompt, request), entropy, entropy_base in zip(served, after, before, strict=True)
        ]

    def _read(self, row: Row, portion: Portion, site: Site) -> list[Read]:
        """Ordinary text read with each compiled patch; what a server would refuse as a prompt is left out."""
        found: list[Read] = []
        after, before, counts = list[Request](), list[Request](), list[int]()
        for number, item in enumerate(portion.made):
            if not isinstance(item, CompiledPatch) or row.mode != "weights":
                continue
            own = [patch for place, patch in enumerate(portion.declared) if portion.owner(place) == number]
            narrowing, start = Narrowing(item, site), len(after)
            for text in self._of(own):
                try:
                    after.append(Request(text, patch=narrowing.of(text)))
                except EditError:
                    continue
                before.append(Request(text))
            counts.append(len(after) - start)
        readings, readings_base = self._memory.read(after), self._memory.read(before)
        for count in counts:
            found.append(Read.of(readings[:count], readings_base[:count]))
            readings, readings_base = readings[count:], readings_base[count:]
        return found

    def _of(self, patches: Sequence[Patch]) -> list[str]:
        """The passages that are read for these edits, each once."""
        count = len(self._passages)
        starts = [zlib.crc32(patch.name.encode()) for patch in patches]
        chosen = {(start + step) % count for start in starts for step in range(_PASSAGES)} if count else set()
        return [self._passages[place] for place in sorted(chosen)]


def _report(row_progress: RowProgress, edits: int, before: str, what: str, done: int, total: int) -> None:
    row_progress(f"{before}{what}", edits)
