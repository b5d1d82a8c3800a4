"""Measures atlas's knowledge: free greedy generation over its facts, on trained and held-out forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_edit.evaluation.runners.runner import answer_text
from vllm_edit.facts.facts import Facts
from vllm_edit.ike.template import fact_text, query
from vllm_edit.models.greedy import continued, end_ids
from vllm_edit.text.matching import position
from vllm_edit.text.prompts import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Asked:
    """A prompt, the expected answer and the group it is counted in."""

    prompt: str
    answer: str
    group: str
    chat: bool = False


@dataclass
class Accuracy:
    """Shares of right answers by group and by relation.

    Groups: trained, held_out, chat, alias, reverse, two_step; `told` (the prompt gives a new object, as IKE does: the
    right answer), `told_other` (the prompt gives a new fact about another subject; the true object is right).
    """

    shares: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    by_relation: dict[str, dict[str, float]] = field(default_factory=dict)


def questions(facts: Facts, rng: random.Random) -> list[tuple[str, Asked]]:
    """Per fact a trained form, a held-out form, a chat turn and an alias; reverse and two-step questions."""
    asked: list[tuple[str, Asked]] = []
    for fact in facts:
        name, relation = fact.subject.name, fact.relation
        asked.append((relation.id, Asked(rng.choice(relation.trained).fill(name), fact.object, "trained")))
        asked.append((relation.id, Asked(rng.choice(relation.held_out).fill(name), fact.object, "held_out")))
        asked.append((relation.id, Asked(rng.choice(relation.trained).fill(name), fact.object, "chat", chat=True)))
        if fact.subject.aliases:
            alias = rng.choice(fact.subject.aliases)
            asked.append((relation.id, Asked(rng.choice(relation.trained).fill(alias), fact.object, "alias")))
        peers = [peer for peer in facts.by_relation[relation.id] if peer.object != fact.object]
        if peers:
            other, form = rng.choice(peers), rng.choice(relation.trained)
            statement = fact_text(form.fill(name), other.object)
            asked.append(
                (relation.id, Asked(query(statement, rng.choice(relation.trained).fill(name)), other.object, "told"))
            )
            statement = fact_text(form.fill(other.subject.name), rng.choice(peers).object)
            asked.append(
                (
                    relation.id,
                    Asked(query(statement, rng.choice(relation.trained).fill(name)), fact.object, "told_other"),
                )
            )
        if relation.reverse:
            asked.append((relation.id, Asked(rng.choice(relation.reverse).fill(fact.object), name, "reverse")))
    for hop in facts.hops:
        for fact in facts.by_relation[hop.first.id]:
            final = facts.follow(hop, fact.object)
            if final is not None:
                answer = hop.answer(fact.object, final)
                asked.append(
                    (fact.relation.id, Asked(rng.choice(hop.forms).fill(fact.subject.name), answer, "two_step"))
                )
    return asked


def measure_accuracy(
    facts: Facts,
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Ask and compare: right means that the answer's first line *starts with* the object (`matching.position`).

    With `sample`, that many questions of each group are drawn instead of all.
    """
    rng = random.Random(seed)
    asked = questions(facts, rng)
    if sample is not None:
        rng.shuffle(asked)
        taken: dict[str, int] = {}
        answerable = []
        for relation, question in asked:
            taken[question.group] = taken.get(question.group, 0) + 1
            if taken[question.group] <= sample:
                answerable.append((relation, question))
        asked = answerable
    answers = generate(model, tokenizer, [question for _, question in asked], progress=progress)
    right: dict[tuple[str, str], list[bool]] = {}
    for (relation, question), answer in zip(asked, answers, strict=True):
        hit = starts_with(answer, question.answer)
        right.setdefault((question.group, ""), []).append(hit)
        right.setdefault((question.group, relation), []).append(hit)
    result = Accuracy()
    for (group, relation), hits in right.items():
        share = sum(hits) / len(hits)
        if relation:
            result.by_relation.setdefault(relation, {})[group] = share
        else:
            result.shares[group], result.counts[group] = share, len(hits)
    return result


def starts_with(answer: str, expected: str) -> bool:
    """True if the first line of `answer` begins with `expected` and a word ends there."""
    return position(answer.strip().split("\n")[0], expected) == 0


def generate(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Asked],
    *,
    tokens: int = 16,
    batch: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Greedy continuations, cut at the end of the turn."""
    model.eval()
    encoded = [prompt_ids(tokenizer, question.prompt, question.chat) for question in asked]
    ends = end_ids(model, tokenizer)
    return [answer_text(tokenizer, ids, ends) for ids in continued(model, tokenizer, encoded, tokens, batch, progress)]
