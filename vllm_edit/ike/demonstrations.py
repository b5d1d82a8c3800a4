"""Copy, update and retain demonstrations of a patch, made once when it is compiled (arXiv 2305.12740 §3.2).

Departures from the paper's code: the bank replaces CounterFact's training half; retain demonstrations ask not only
same-relation neighbours but also other relations of the subject and unrelated facts, because locality is measured on
all three.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration
from vllm_edit.artefacts.folder import demonstrations_digest
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.ike import template
from vllm_edit.ike.bank import Bank, Fact
from vllm_edit.ike.prefix import PATTERN
from vllm_edit.ike.retrieval import nearest_first
from vllm_edit.ike.stored_words import StoredWords
from vllm_edit.patch import Patch
from vllm_edit.text.matching import is_said, normalise
from vllm_edit.text.quoting import quoted
from vllm_edit.text.scripts import is_spaceless

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

MAX_STORED = 256


def build_demonstrations(
    patch: Patch | Sequence[Edit],
    bank: Bank,
    tokenizer: PreTrainedTokenizerFast,
    limit: int = 32,
    seed: int = 0,
) -> tuple[Demonstration, ...]:
    """Make a patch's demonstrations, with their token counts, from the bank and from each edited fact.

    `limit` demonstrations per edit (at most `MAX_STORED` per patch) use the bank facts nearest to the edits, with
    copy : update : retain = 1 : 3 : 4. Bank facts that overlap with the patch's edits or probes are left out. Each edit
    i adds two demonstrations with `edit=i`: its self-copy (kind `copy`), and kind `fact`, whose token count is that of
    the last block up to the prompt. With an empty bank there are no others.
    """
    edits = patch.edits if isinstance(patch, Patch) else patch
    usable = bank.without(edits)
    if len(usable.facts) < len(bank.facts):
        log.info("%d bank facts overlap with edits or probes", len(bank.facts) - len(usable.facts))
    made = _from_bank(edits, usable, min(limit * len(edits), MAX_STORED), random.Random(seed))
    if bank.facts and not made:
        log.warning("no usable demonstrations in a bank of %d facts", len(bank.facts))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    counted = [
        Demonstration(kind=kind, fact=fact, prompt=prompt, answer=answer, tokens=count(text))
        for kind, fact, prompt, answer in made
        for text in [template.demonstration(fact, prompt, answer)]
    ]
    for index, edit in enumerate(edits):
        fact = template.fact_text(edit.prompt, edit.target_new)
        whole, start = template.demonstration(fact, edit.prompt, edit.target_new), template.query(fact, "")
        copy = Demonstration(
            kind="copy", fact=fact, prompt=edit.prompt, answer=edit.target_new, tokens=count(whole), edit=index
        )
        counted += [copy, Demonstration(kind="fact", fact=fact, prompt="", answer="", tokens=count(start), edit=index)]
    check_disjoint(edits, counted)
    return tuple(counted)


def with_demonstrations(compiled: CompiledPatch, bank: Bank, tokenizer: PreTrainedTokenizerFast) -> CompiledPatch:
    """`compiled` with the demonstrations of its edits; they are part of its identity, so its name changes."""
    manifest = compiled.manifest
    made = build_demonstrations(manifest.edits, bank, tokenizer)
    stated = manifest.model_copy(update={"demonstrations": demonstrations_digest(made)})
    return replace(compiled, manifest=stated, demonstrations=made)


def with_members_demonstrations(composition: CompiledPatch, members: Sequence[CompiledPatch]) -> CompiledPatch:
    """`composition` with its members' demonstrations, numbered by its own edits; its name changes."""
    edits = composition.manifest.edits
    # An edit's own demonstrations depend on these fields alone; others are joined from several members' declarations.
    places = {_stated(edit): index for index, edit in enumerate(edits)}
    parts = [
        (
            member.demonstrations,
            {old: places[_stated(edit)] for old, edit in enumerate(member.manifest.edits) if _stated(edit) in places},
        )
        for member in members
    ]
    made = merge_demonstrations(parts, edits)
    stated = composition.manifest.model_copy(update={"demonstrations": demonstrations_digest(made)})
    return replace(composition, manifest=stated, demonstrations=made)


def _stated(edit: Edit) -> tuple[str, str, str]:
    """The fields of an edit that its own demonstrations state, and its subject."""
    return edit.prompt, edit.subject, edit.target_new


def merge_demonstrations(
    parts: Sequence[tuple[Sequence[Demonstration], Mapping[int, int]]], edits: Sequence[Edit]
) -> tuple[Demonstration, ...]:
    """Demonstrations of a composition of `edits`, from its members': each part with old edit index → new edit index.

    Bank demonstrations that overlap with another member's edits or probes are left out, as are duplicates.
    """
    probes = {normalise(probe.prompt) for edit in edits for probe in edit.probes}
    merged = dict.fromkeys(
        item
        for part, _ in parts
        for item in part
        if item.edit is None and not _mentioned(edits, item) and normalise(item.prompt) not in probes
    )
    own = dict.fromkeys(
        item.model_copy(update={"edit": moved[item.edit]})
        for part, moved in parts
        for item in part
        if item.edit is not None and item.edit in moved
    )
    return (*merged, *own)


def check_disjoint(edits: Sequence[Edit], demonstrations: Sequence[Demonstration]) -> None:
    """Refuse bank demonstrations that name an edited subject or repeat a probe: they would invalidate the scores.

    Raises:
        EditError: a demonstration overlaps; the message names the first.
    """
    asked = {normalise(prompt) for edit in edits for prompt in (edit.prompt, *(p.prompt for p in edit.probes))}
    for item in demonstrations:
        if item.edit is None and (normalise(item.prompt) in asked or _mentioned(edits, item)):
            raise EditError(
                f"IKE demonstration overlaps with an edit or a probe: {quoted(item.fact)} / {quoted(item.prompt)}"
            )


def _mentioned(edits: Sequence[Edit], item: Demonstration) -> bool:
    text = normalise(f"{item.fact} / {item.prompt} / {item.answer}")
    names = (name for edit in edits for name in (edit.subject, *edit.aliases))
    return any(normalise(name) in text and is_said(text, name) for name in names)


def _from_bank(edits: Sequence[Edit], bank: Bank, limit: int, rng: random.Random) -> list[tuple[str, str, str, str]]:
    """(kind, fact, prompt, answer) in `PATTERN`'s ratio; within each eight the kinds are shuffled, as in the paper."""
    names = [name for edit in edits for name in (edit.subject, *edit.aliases)]
    replacements = {
        relation: sorted({fact.object for fact in facts if not any(is_said(fact.object, name) for name in names)})
        for relation, facts in bank.by_relation.items()
    }
    asked_of = {relation: {fact.subject for fact in facts} for relation, facts in bank.by_relation.items()}
    waiting = [
        fact
        for fact in _nearest_facts(edits, bank)
        if len(replacements[fact.relation]) > 1 and len(asked_of[fact.relation]) > 1
    ]
    made: list[tuple[str, str, str, str]] = []
    while len(made) + len(PATTERN) <= limit:
        eight: list[tuple[str, str, str, str]] = []
        for kind in rng.sample(PATTERN, len(PATTERN)):
            found = next((fact for fact in waiting if kind != "update" or fact.paraphrases), None)
            if found is None:
                return made
            waiting.remove(found)
            new = rng.choice([other for other in replacements[found.relation] if other != found.object])
            prompt, answer = _question(kind, found, new, bank, rng)
            eight.append((kind, template.fact_text(found.prompt, new), prompt, answer))
        made += eight
    return made


def _nearest_facts(edits: Sequence[Edit], bank: Bank) -> list[Fact]:
    """Bank facts by similarity to the edits, interleaved over the edits; each fact once."""
    texts, read = [template.fact_text(fact.prompt, fact.object) for fact in bank.facts], StoredWords().of
    rankings = [
        nearest_first(template.fact_text(edit.prompt, edit.target_new), texts, read)[:MAX_STORED]
        for edit in edits[:MAX_STORED]
    ]
    turns = chain.from_iterable(zip_longest(*rankings))
    return [bank.facts[rank] for rank in dict.fromkeys(turns) if rank is not None]


def _question(kind: str, fact: Fact, new: str, bank: Bank, rng: random.Random) -> tuple[str, str]:
    """A demonstration's prompt about the counterfactual `fact` (its object replaced by `new`), and its answer."""
    if kind == "copy":
        return fact.prompt, new
    if kind == "update":
        return rng.choice(fact.paraphrases), new
    neighbours = [other for other in bank.by_relation[fact.relation] if other.subject != fact.subject]
    same_subject = [other for other in bank.by_subject[fact.subject] if other.relation != fact.relation]
    spaceless = any(map(is_spaceless, fact.prompt))
    unrelated = [
        other
        for other in bank.facts
        if other.relation != fact.relation
        and other.subject != fact.subject
        and any(map(is_spaceless, other.prompt)) == spaceless
    ]
    # Half have the same relation: the paper's neighbours, which an edit affects most easily.
    other = rng.choice(rng.choice([neighbours, neighbours, same_subject or neighbours, unrelated or neighbours]))
    return rng.choice((other.prompt, *other.paraphrases)), other.object
