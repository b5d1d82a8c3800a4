"""Which edits: facts of CounterFact that the model knows, seeded draws of CounterFact, KnowEdit and zsRE."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_edit.datasets import read_edits
from vllm_edit.digest import digest_json
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request, Runner
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress
from vllm_edit.text.matching import normalise

COUNTERFACT = "counterfact/counterfact-2000.json"
_OTHERS = {
    "knowedit-zsre": "knowedit/ZsRE-test-650.json",
    "wiki_counterfact": "knowedit/wiki_counterfact-700.json",
    "wiki_recent": "knowedit/wiki_recent-300.json",
    "zsre": "zsre/zsre_mend-500.json",
}
MEANINGS: Mapping[str, str] = {
    "known": "all facts of CounterFact's 2,000 that the model knows: its greedy 8 tokens begin with the true object; "
    "r-ROME's default step length was kept because of its figures here",
    "ranked": "a seeded draw of CounterFact's facts that the model knows, or ranks first: s(true) < s(new)",
    "near": "a seeded draw of CounterFact's facts that the model prefers by 1 to 10 nats and does not answer with; "
    "settings are chosen on these facts and on those of `nearby`; no other set has them",
    "nearby": "120 other such facts, for settings that `near` cannot tell apart; no other set has them",
    "many": "a seeded draw of 300 of CounterFact's facts, for rows of many edits at once",
    "counterfact": "a seeded draw of all of CounterFact's facts",
    "knowedit-zsre": "a seeded draw of KnowEdit's ZsRE",
    "wiki_counterfact": "a seeded draw of KnowEdit's wiki_counterfact",
    "wiki_recent": "a seeded draw of KnowEdit's wiki_recent",
    "zsre": "a seeded draw of zsRE in MEND's form",
}
"""Name of a set → what is in it."""
NEAR = "near"
"""The set that settings are chosen on."""
NEARBY = "nearby"
MANY = "many"
SETS = tuple(name for name in MEANINGS if name not in (NEAR, NEARBY, MANY))
"""The sets that are measured unless others are chosen."""
_JUDGING: Mapping[str, int] = {"ranked": 200, "counterfact": 200, MANY: 300}
"""Sets drawn from CounterFact's facts that judge settings → number of edits. None has an edit of `near` or `nearby`."""
_DRAW, _NEAR_DRAW, _NEARBY_DRAW = 100, 32, 120
_NEAR_NATS = (1.0, 10.0)
_ANSWER, _PART = 8, 200


@dataclass(frozen=True)
class Knowledge:
    """What the base makes of one fact: its answer, and the mean token NLL of the true and of the new object."""

    answer: str
    true: float
    new: float

    def knows(self, edit: Edit) -> bool:
        """True if the answer begins with the edit's true object, by any of its names."""
        return any(begins_with(self.answer, old) for old in edit.old_answers)

    @property
    def ranks(self) -> bool:
        """True if the true object is likelier than the new one."""
        return self.true < self.new


def drawn_sets(
    names: Sequence[str], folder: Path, knowledge: Sequence[Knowledge], seed: int, limit: int | None
) -> dict[str, list[Patch]]:
    """Name → its edits, each in a patch of its own, none of a subject that another one edits; at most `limit` of them.

    knowledge: of CounterFact's facts, in the file's order; empty where no set asks for it.
    """
    found: dict[str, list[Patch]] = {}
    for name in names:
        edits = read_edits(folder / (_OTHERS.get(name) or COUNTERFACT))
        chosen = _chosen(name, edits, knowledge, seed)[:limit]
        found[name] = [Patch(name=f"{name}-{number:03d}", edits=(edit,)) for number, edit in enumerate(chosen)]
    return found


def _chosen(name: str, edits: Sequence[Edit], knowledge: Sequence[Knowledge], seed: int) -> list[Edit]:
    """The edits of a set. edits: all edits of its file. knowledge: what the base makes of them, or nothing."""
    if name == "known":
        return apart([edit for edit, known in zip(edits, knowledge, strict=True) if known.knows(edit)])
    if name in (NEAR, NEARBY):
        return _for_settings(edits, knowledge, seed)[name]
    if name not in _JUDGING:
        return _drawn(edits, _DRAW, f"{name}:{seed}")
    used = {edit.prompt for some in _for_settings(edits, knowledge, seed).values() for edit in some}
    drawn = _judging_order(name, edits, knowledge, seed)
    return [edit for edit in drawn if edit.prompt not in used][: _JUDGING[name]]


def _for_settings(edits: Sequence[Edit], knowledge: Sequence[Knowledge], seed: int) -> dict[str, list[Edit]]:
    """The two sets that settings are chosen on. `nearby` was drawn after `near` and the first draws that judge."""
    least, most = _NEAR_NATS
    near = [
        edit
        for edit, known in zip(edits, knowledge, strict=True)
        if least < known.new - known.true < most and not known.knows(edit)
    ]
    drawn = _drawn(near, len(near), f"{NEAR}:{seed}")
    judging = {
        edit.prompt for name, count in _JUDGING.items() for edit in _judging_order(name, edits, knowledge, seed)[:count]
    }
    later = [edit for edit in drawn[_NEAR_DRAW:] if edit.prompt not in judging]
    return {NEAR: drawn[:_NEAR_DRAW], NEARBY: later[:_NEARBY_DRAW]}


def _judging_order(name: str, edits: Sequence[Edit], knowledge: Sequence[Knowledge], seed: int) -> list[Edit]:
    """All edits that may be in a judging set of CounterFact's facts, in drawn order."""
    if name == "ranked":
        edits = [edit for edit, known in zip(edits, knowledge, strict=True) if known.knows(edit) or known.ranks]
    return _drawn(edits, len(edits), f"{name}:{seed}")


def needs_knowledge(names: Sequence[str]) -> bool:
    return bool({"known", NEAR, NEARBY, *_JUDGING} & set(names))


def counterfact_knowledge(edits: Sequence[Edit], runner: Runner, record: Record, progress: Progress) -> list[Knowledge]:
    """What the base makes of every edit's fact. record: keeps it, and brings what an earlier run found."""
    earlier: Sequence[Mapping[str, Any]] = record.entries
    found = [Knowledge(*known) for entry in earlier for known in entry["knowledge"]]
    while len(found) < len(edits):
        progress("asking what the base knows", len(found), len(edits))
        part = edits[len(found) : len(found) + _PART]
        requests = [Request(edit.prompt) for edit in part]
        answers = runner.generate(requests, _ANSWER)
        pairs = [
            (request, answer or "")
            for request, edit in zip(requests, part, strict=True)
            for answer in (edit.target_true, edit.target_new)
        ]
        nlls = [scored.nll for scored in runner.score(pairs)]
        asked = list(zip(answers, nlls[::2], nlls[1::2], strict=True))
        record.add({"knowledge": asked})
        found += [Knowledge(*answer) for answer in asked]
    return found


def stored_knowledge(base: Base, data: Path, folder: Path, progress: Progress) -> list[Knowledge]:
    """What the base makes of CounterFact's facts. folder: of the record with earlier answers.

    Raises:
        EditError: the data are not there.
    """
    facts = read_counterfact(data)
    edits = digest_json([edit.model_dump(mode="json") for edit in facts])
    identity = {"base": base.fingerprint.digest, "facts": edits}
    record = Record.open(folder / f"knowledge-{digest_json(identity)[:12]}.jsonl", identity)
    return counterfact_knowledge(facts, HFRunner(base.model, base.tokenizer), record, progress)


def begins_with(answer: str, expected: str) -> bool:
    """True if the answer begins with the expected one, whatever the case. An article before it is another beginning."""
    return bool(expected) and answer.strip().casefold().startswith(expected.strip().casefold())


def _drawn(edits: Sequence[Edit], count: int, seed: str) -> list[Edit]:
    """`count` edits of different subjects (all, where there are fewer), in drawn order."""
    return apart(random.Random(seed).sample(list(edits), k=len(edits)))[:count]


def apart(edits: Sequence[Edit]) -> list[Edit]:
    """The first edit of each subject."""
    first: dict[str, Edit] = {}
    for edit in edits:
        first.setdefault(normalise(edit.subject), edit)
    return list(first.values())


def read_counterfact(folder: Path) -> list[Edit]:
    """CounterFact's edits.

    Raises:
        EditError: the data are not there.
    """
    if not (folder / COUNTERFACT).is_file():
        raise EditError(f"{folder} holds no {COUNTERFACT}: name the folder of the public editing data with --data")
    return read_edits(folder / COUNTERFACT)
