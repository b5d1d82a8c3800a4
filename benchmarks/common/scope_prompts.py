"""Prompts that try a scope's choice: names in another meaning, subjects that are meant and not named, two at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_edit.composition.scoped import ScopeIndex
from vllm_edit.edit import Edit
from vllm_edit.evaluation.judging import gives, unchanged
from vllm_edit.facts.facts import Facts
from vllm_edit.text.subjects import Subjects

HOMONYMS = (
    "She ate an apple for lunch.|Apple",
    "The Amazon flows through the forest.|Amazon",
    "We had roast turkey for dinner.|Turkey",
    "The plates are made of fine china.|China",
    "My friend Chad likes music.|Chad",
    "Georgia O'Keeffe liked flowers.|Georgia",
    "Michael Jordan played basketball.|Jordan",
    "A puma is a large cat.|Puma",
    "The python is a snake that eats mice.|Python",
    "Java is an island in the sea.|Java",
    "There is rust on the old gate.|Rust",
    "A swift answer is a good answer.|Swift",
    "She wore a ruby on her hand.|Ruby",
    "Go to the door and open it.|Go",
    "We walked over a dune to the sea.|Dune",
    "The worm is a parasite of dogs.|Parasite",
    "Heights give me vertigo.|Vertigo",
    "My aunt Carmen bakes bread.|Carmen",
    "He won the gold medal in the race.|gold",
    "She will lead the team up the hill.|lead",
    "Please iron my shirt before dinner.|iron",
    "Every cloud has a silver lining.|silver",
    "Keep a carbon copy of the letter.|carbon",
    "I water the plants every day.|water",
    "Take that story with a grain of salt.|salt",
    "The neon signs of the street are bright.|neon",
    "Mercury is the planet nearest to the sun.|mercury",
    "The tin drum stood in the corner.|tin",
    "Have a nice day.|Nice",
    "She bought a bottle of cologne.|Cologne",
    "A meta question is a question about questions.|Meta",
    "The police had good intel on the thief.|Intel",
)
"""sentence|the name in it that means something else. Only those whose name is an edited subject's are asked."""


@dataclass(frozen=True)
class Probe:
    """A prompt, the edit that it is about, and what the edit makes its answer."""

    prompt: str
    edit: int
    expected: str


@dataclass(frozen=True)
class Arms:
    """Three ways of answering prompts: the base, the scoped patch through the server, and adapters held on anyway."""

    base: Callable[[Sequence[str]], list[str]]
    scoped: Callable[[Sequence[str]], list[str]]
    held: Callable[[Sequence[tuple[str, int]]], list[str]]
    """(prompt, edit) → answer with the adapter of the edit's subject, whatever the prompt says."""


def false_activation(index: ScopeIndex, arms: Arms) -> dict[str, Any]:
    """Names of edited subjects in an unrelated meaning: how many get the adapter, and how many answers it changes."""
    asked = [line.partition("|") for line in HOMONYMS]
    names = Subjects([[unit.subject] for unit in index.units])
    prompts = [sentence for sentence, _, name in asked if names.mentioned([name])]
    if not prompts:
        return {"prompts": 0}
    activated = [prompt for prompt in prompts if index.mentioned([prompt])]
    answers = zip(arms.scoped(activated), arms.base(activated), strict=True)
    changed = sum(not unchanged(text, before) for text, before in answers)
    return {"prompts": len(prompts), "activated": len(activated), "changed": changed}


def aliases(index: ScopeIndex, edits: Sequence[Edit]) -> dict[str, Any]:
    """Prompts by another name: in scope as declared, and how many were if no alias had been declared."""
    owner = {edit: number for number, unit in enumerate(index.units) for edit in unit.edits}
    bare = Subjects([[unit.subject] for unit in index.units])
    asked = [
        (owner[number], probe.prompt)
        for number, edit in enumerate(edits)
        for probe in edit.probes
        if (probe.kind, probe.tag) == ("portability", "alias")
    ]
    declared = sum(number in index.mentioned([prompt]) for number, prompt in asked)
    undeclared = sum(number in bare.mentioned([prompt]) for number, prompt in asked)
    return {"prompts": len(asked), "declared": declared, "undeclared": undeclared}


def multi_hop(facts: Facts, index: ScopeIndex, edits: Sequence[Edit], arms: Arms, seed: int) -> dict[str, Any]:
    """Two-step questions about an edited fact that never name its subject: the landmark for its city's country."""
    owner = {edit: number for number, unit in enumerate(index.units) for edit in unit.edits}
    by_fact = {(edit.relation, edit.subject): number for number, edit in enumerate(edits)}
    rng = random.Random(f"hops:{seed}")
    probes: list[Probe] = []
    for hop in facts.hops:
        for fact in facts.by_relation[hop.first.id]:
            number = by_fact.get((hop.then.id, fact.object))
            first = by_fact.get((hop.first.id, fact.subject.name))
            if number is not None and first is None:
                prompt = rng.choice(hop.forms).fill(fact.subject.name)
                if owner[number] not in index.mentioned([prompt]):  # "Leaning Tower of Pisa" names Pisa
                    probes.append(Probe(prompt, number, edits[number].target_new))
    probes = rng.sample(probes, k=min(200, len(probes)))
    if not probes:
        return {"prompts": 0}
    prompts = [probe.prompt for probe in probes]
    held = arms.held([(probe.prompt, probe.edit) for probe in probes])
    return {
        "prompts": len(probes),
        "scoped": _right(arms.scoped(prompts), probes),
        "held": _right(held, probes),
        "base": _right(arms.base(prompts), probes),
    }


def brought_up(index: ScopeIndex, prompts: Sequence[str], arms: Arms) -> dict[str, Any]:
    """Answers of the scoped patch that mention an edited subject which their prompt did not."""
    answers = arms.scoped(prompts)
    both = zip(prompts, answers, strict=True)
    new = [set(index.mentioned([text])) - set(index.mentioned([prompt])) for prompt, text in both]
    return {"prompts": len(prompts), "brought_up": sum(map(bool, new))}


def two_subjects(index: ScopeIndex, edits: Sequence[Edit], count: int, seed: int) -> list[Probe]:
    """An edit's prompt after another edited subject's name."""
    rng = random.Random(f"pairs:{seed}")
    probes: list[Probe] = []
    for _ in range(20 * count):  # names within names leave some pairs out
        one, other = rng.sample(range(len(index.units)), k=2)
        number = rng.choice(index.units[one].edits)
        prompt = f"{index.units[other].subject}. {edits[number].prompt}"
        if len(probes) < count and index.mentioned([prompt]) == tuple(sorted((one, other))):
            probes.append(Probe(prompt, number, edits[number].target_new))
    return probes


def share_right(answers: Sequence[str], probes: Sequence[Probe]) -> float:
    return _right(answers, probes) / len(probes)


def _right(answers: Sequence[str], probes: Sequence[Probe]) -> int:
    return sum(gives(text, probe.expected) for text, probe in zip(answers, probes, strict=True))
