"""Demonstrations: ratio, truth of their answers, disjointness from scored prompts, determinism, token counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.ike.conftest import CAPITALS, CHINESE, CURRENCIES, Stored, manifest_of
from vllm_edit.artefacts.compiled import CompiledPatch, Demonstration
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError
from vllm_edit.ike import template
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import (
    build_demonstrations,
    check_disjoint,
    merge_demonstrations,
    with_members_demonstrations,
)
from vllm_edit.patch import Patch


def test_kinds_come_one_three_four_and_every_edit_has_its_fact_and_self_copy(stored: Stored, many: Patch) -> None:
    _, demonstrations = stored(many)
    kinds = Counter(item.kind for item in demonstrations if item.edit is None)
    assert kinds["copy"] >= 1
    assert (kinds["update"], kinds["retain"]) == (3 * kinds["copy"], 4 * kinds["copy"])
    own = [(item.kind, item.edit) for item in demonstrations if item.edit is not None]
    assert own == [(kind, index) for index in range(len(many.edits)) for kind in ("copy", "fact")]


def test_new_facts_are_false_updates_answer_them_and_retains_answer_the_truth(stored: Stored, patch: Patch) -> None:
    truth = {f"The capital of {c} is": city for c, city in CAPITALS.items()}
    truth |= {f"The currency of {c} is": money for c, money in CURRENCIES.items()}
    truth |= {f"{c}的首都是": city for c, city in CHINESE.items()}
    known = {template.fact_text(prompt, answer) for prompt, answer in truth.items()}
    answers = {prompt: answer for prompt, answer in truth.items()}
    for country, city in CAPITALS.items():
        answers[f"What is the capital of {country}?"] = answers[f"{country}'s capital is the city of"] = city
    answers |= {f"In {country} people pay with": money for country, money in CURRENCIES.items()}
    answers |= {f"{country}的首都在哪裡？": city for country, city in CHINESE.items()}

    bank_items = [item for item in stored(patch)[1] if item.edit is None]
    assert bank_items
    for item in bank_items:
        assert item.fact not in known
        if item.kind == "retain":
            assert item.answer == answers[item.prompt]
        else:
            assert item.fact.endswith(item.answer)
            assert item.answer != answers[item.prompt]


def test_no_demonstration_touches_an_edited_subject_an_alias_or_a_probed_subject(stored: Stored, patch: Patch) -> None:
    for item in stored(patch)[1]:
        if item.edit is None:
            text = f"{item.fact} {item.prompt} {item.answer}"
            assert "France" not in text
            assert "Germany" not in text


def test_an_overlapping_demonstration_is_refused(patch: Patch) -> None:
    leak = Demonstration(kind="update", fact="x", prompt="what is the capital of france", answer="Lima", tokens=9)
    with pytest.raises(EditError, match="overlaps with an edit or a probe"):
        check_disjoint(patch.edits, [leak])
    check_disjoint(patch.edits, [leak.model_copy(update={"prompt": "What is the capital of Peru?"})])


def test_the_same_seed_gives_the_same_demonstrations(
    bank: Bank, patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second, other = (build_demonstrations(patch, bank, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_stored_token_counts_are_those_of_the_text(
    stored: Stored, patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    for item in stored(patch)[1]:
        text = template.demonstration(item.fact, item.prompt, item.answer)
        if item.kind == "fact":
            text = f"New Fact: {item.fact}\nPrompt: "
        assert item.tokens == len(tokenizer.tokenize(text))


def test_a_chinese_edit_draws_chinese_demonstrations(bank: Bank, tokenizer: PreTrainedTokenizerFast) -> None:
    edit = Edit(prompt="法國的首都是", subject="法國", relation="zh.capital", target_new="羅馬")
    made = build_demonstrations(Patch(name="zh", edits=(edit,)), bank, tokenizer, limit=8)
    facts = [item.fact for item in made if item.edit is None]
    assert len(facts) == 8
    assert all("的首都是" in fact for fact in facts)


def test_a_bank_too_small_for_eight_gives_only_the_facts_own_blocks(
    bank: Bank, patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = build_demonstrations(patch, Bank(facts=bank.facts[:6]), tokenizer)
    assert [item.kind for item in made] == ["copy", "fact"]


def test_merging_moves_edit_numbers_and_drops_demonstrations_that_another_member_edits_or_probes(
    bank: Bank, patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    probe = Probe(kind="paraphrase", prompt="Kenya's capital is the city of")
    other = Edit(
        prompt="The capital of Kenya is", subject="Kenya", relation="capital", target_new="Oslo", probes=(probe,)
    )
    first = build_demonstrations(patch, bank, tokenizer)
    second = build_demonstrations(Patch(name="kenya", edits=(other,)), bank, tokenizer)
    edits = (*patch.edits, other)
    assert any("Kenya" in item.fact for item in first if item.edit is None)
    merged = merge_demonstrations([(first, {0: 0}), (second, {0: 1})], edits)
    check_disjoint(edits, merged)
    assert [(item.kind, item.edit) for item in merged if item.edit is not None] == [
        ("copy", 0), ("fact", 0), ("copy", 1), ("fact", 1)
    ]  # fmt: skip
    assert len(set(merged)) == len(merged)


def test_a_composition_serves_its_members_facts_under_its_own_numbers(
    stored: Stored, patch: Patch, many: Patch
) -> None:
    delta = Delta({"m": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    members = [CompiledPatch(manifest, delta, None, made) for manifest, made in (stored(patch), stored(many))]
    edits = (*reversed(many.edits), *patch.edits)
    composition = CompiledPatch(manifest_of(patch.model_copy(update={"name": "both", "edits": edits})), delta)
    made = with_members_demonstrations(composition, [*members, members[0]])
    assert made.name != composition.name
    for index, edit in enumerate(edits):
        own = [item for item in made.demonstrations if item.edit == index]
        assert [item.kind for item in own] == ["copy", "fact"]
        assert own[0].prompt == edit.prompt


def test_an_edit_that_a_composition_joined_with_another_members_keeps_its_own_demonstrations(
    stored: Stored, patch: Patch, many: Patch
) -> None:
    delta = Delta({"m": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    members = [CompiledPatch(manifest, delta, None, made) for manifest, made in (stored(patch), stored(many))]
    (edit,) = patch.edits
    joined = edit.joined(edit.model_copy(update={"aliases": ("the Hexagon",), "prompt": "France has the capital"}))
    assert joined != edit
    edits = (*many.edits, joined)
    composition = CompiledPatch(manifest_of(patch.model_copy(update={"name": "both", "edits": edits})), delta)
    made = with_members_demonstrations(composition, members).demonstrations
    assert [item.kind for item in made if item.edit == len(many.edits)] == ["copy", "fact"]


def test_a_bank_of_a_patch_without_relations_never_swaps_objects_of_different_prompts(
    patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    others = {name: CAPITALS[name] for name in CAPITALS if name != "France"}
    edits = [
        Edit(prompt=f"The {kind} of {name} is", subject=name, target_new="Nothing", target_true=object, probes=probes)
        for kind, facts in (("capital", others), ("currency", CURRENCIES))
        for name, object in facts.items()
        for probes in [(Probe(kind="paraphrase", prompt=f"Which {kind} has {name}?"),)]
    ]
    bank = Bank.from_patch(Patch(name="untold", edits=tuple(edits)))
    asked = patch.edits[0].model_copy(update={"probes": ()})
    made = [item for item in build_demonstrations([asked], bank, tokenizer) if item.edit is None]
    assert made
    for item in made:
        objects = CAPITALS if "capital" in item.fact else CURRENCIES
        assert any(item.fact.endswith(f" {object}") for object in objects.values()), item.fact
    record = {"prompt": "Oz is", "subject": "Oz", "relation": "", "object": "far"}
    assert Bank.from_records([record, {**record, "prompt": "Oz has"}]).by_relation.keys() == {"{} is", "{} has"}


def test_a_record_that_is_not_a_fact_is_named() -> None:
    good = {"prompt": "A is", "subject": "A", "relation": "r", "object": "b", "paraphrases": ["x"], "table": "ignored"}
    assert Bank.from_records([good]).facts[0].paraphrases == ("x",)
    with pytest.raises(EditError, match="bank record 1: object"):
        Bank.from_records([good, {"prompt": "A is", "subject": "A", "relation": "r"}])


def test_every_problem_of_a_bank_file_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bank.yaml"
    file.write_text("""
- {prompt: A is, subject: A, relation: r, object: b, paraphases: [x]}
- {prompt: A is, subject: A, relation: r}
- {prompt: A is, subject: A, relation: r, object: b, paraphrases: x}
- A is b
""")
    with pytest.raises(EditError) as refused:
        Bank.load(file)
    assert str(refused.value).splitlines() == [
        f"{file}: line 2: 0.paraphases: Extra inputs are not permitted",
        f"{file}: line 3: 1.object: Field required",
        f"{file}: line 4: 2.paraphrases: expected a list",
        f"{file}: line 5: 3: expected a mapping, with a value for each field",
    ]


@pytest.mark.parametrize(
    "text", ["[]", "name: x\nedits:\n  - {prompt: The capital of France is, subject: France, target_new: Lyon}\n"]
)
def test_a_bank_file_without_a_fact_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bank.yaml"
    file.write_text(text)
    with pytest.raises(EditError, match="it has no fact; expected a list of records with prompt, subject, relation"):
        Bank.load(file)


def test_a_bank_file_is_a_list_of_records_or_a_patch(tmp_path, patch: Patch) -> None:  # type: ignore[no-untyped-def]
    records = tmp_path / "bank.yaml"
    records.write_text("- {prompt: 水的化學式是, subject: 水, relation: formula, object: H2O}\n", encoding="utf-8")
    assert Bank.load(records).facts[0].object == "H2O"
    records.write_text(patch.dump(), encoding="utf-8")
    fact = Bank.load(records).facts[0]
    assert (fact.subject, fact.object) == ("France", "Paris")
    assert fact.paraphrases == ("What is the capital of France?", "France?")
