"""The pool holds the facts that a model knows: nearly all of the tables for atlas, none for a random model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.tiny import save_tiny
from vllm_edit.edit import LOCALITY_KINDS, Edit
from vllm_edit.facts import known_edits, pooling, recall, tables_folder
from vllm_edit.facts.counterfactual_edits import sweep_edits
from vllm_edit.facts.facts import Facts, Form
from vllm_edit.facts.known_edits import chosen_edits, judged_edits
from vllm_edit.facts.pool import Pool, bank_records, side_of
from vllm_edit.facts.pooling import ask_pool
from vllm_edit.facts.recall import Question, right
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.models.short_answers import Enough
from vllm_edit.patch import Patch


@pytest.fixture(scope="module")
def facts() -> Facts:
    """Two tables, so that asking for all of it takes seconds."""
    whole, tables = Facts.load(tables_folder()), ("elements", "zh_countries")
    return Facts(
        tuple(subject for subject in whole.subjects if subject.table in tables),
        tuple(relation for relation in whole.relations if relation.table in tables),
        (),
    )


@pytest.fixture(scope="module")
def atlas() -> Base:
    return Base.load("atlas")


@pytest.fixture(scope="module")
def pool(atlas: Base, facts: Facts) -> Pool:
    return ask_pool(atlas, facts)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.load(save_tiny("llama", tmp_path_factory.mktemp("models") / "llama"))


def test_atlas_knows_the_facts_that_it_was_trained_on(pool: Pool, facts: Facts) -> None:
    everything = list(facts)
    assert len(pool.known) >= 0.95 * len(everything)
    assert sum(pool.asked.values()) == len(everything)
    assert sum(pool.sizes.values()) == len(pool.known)
    assert set(pool.sizes) == {relation.id for relation in facts.relations}


def test_a_random_model_knows_nothing_and_is_asked_little(random_model: Base, facts: Facts) -> None:
    seen: list[tuple[str, int, int]] = []
    pool = ask_pool(random_model, facts, lambda *step: seen.append(step))
    assert pool.known == ()
    assert set(pool.sizes.values()) == {0}
    assert {what for what, _, _ in seen} == {"languages tried"}
    assert all(0 < asked <= 6 for asked in pool.asked.values())
    assert chosen_edits(pool, facts, random_model) == []
    assert judged_edits(pool, facts, random_model, 10) == []


def test_facts_are_asked_in_the_statement_that_does_best(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows one wording of symbols, two wordings of atomic numbers, and no Chinese."""
    symbols, numbers = (facts.by_relation[f"elements.{name}"][0].relation.trained for name in ("symbol", "number"))
    asked: list[Question] = []

    def answered(base: Base, questions: list[Question], *others: object) -> list[bool]:
        asked.extend(questions)
        odd = {fact.subject.name for fact in facts.by_relation["elements.number"][::2]}
        return [
            question.form == symbols[2]
            or (question.form == numbers[0] and question.fact.subject.name not in odd)
            or (question.form == numbers[3] and question.fact.subject.name in odd)
            for question in questions
        ]

    monkeypatch.setattr(pooling, "right", answered)
    monkeypatch.setattr(pooling, "has_units", lambda: False)
    pool = ask_pool(None, facts)  # type: ignore[arg-type]
    assert {item.forms for item in pool.by_relation["elements.symbol"]} == {(symbols[2],)}
    assert pool.sizes["elements.symbol"] == len(facts.by_relation["elements.symbol"])
    assert {item.forms[0] for item in pool.by_relation["elements.number"]} == {numbers[0], numbers[3]}
    assert pool.sizes["elements.number"] == pool.asked["elements.number"] == len(facts.by_relation["elements.number"])
    assert len(asked) == len({(question.fact, question.form) for question in asked}), "nothing is asked twice"
    assert pool.sizes["elements.state"] == 0
    assert pool.asked["elements.state"] == 4 * 6, (
        "a relation of which nothing is given when it is tried is left at that"
    )
    assert {question.form for question in asked if question.fact.relation.language == "zh"} == {
        relation.trained[0] for relation in facts.relations if relation.language == "zh"
    }, "and so is a language"


def test_if_bfloat16_is_faster_the_models_own_precision_still_decides_which_facts_are_known(
    random_model: Base, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Question]] = []

    def answered(base: Base, questions: list[Question], *others: object) -> list[bool]:
        asked.append(list(questions))
        return [number % 2 == 0 for number in range(len(questions))]

    monkeypatch.setattr(pooling, "right", answered)
    monkeypatch.setattr(pooling, "has_units", lambda: True)
    pool = ask_pool(random_model, facts)
    first, again = asked[:2]
    assert again == first[::2]
    confirmed = {
        (question.fact, question.form) for number in range(1, len(asked), 2) for question in asked[number][::2]
    }
    assert pool.known
    assert {(known.fact, form) for known in pool.known for form in known.forms} <= confirmed


def test_a_pool_is_read_back_from_its_record(pool: Pool, facts: Facts) -> None:
    record = pool.as_record()
    assert Pool.from_record(record, facts) == pool
    first, *others = record["known"]
    changed = record | {"known": [first | {"object": "another"}, *others]}
    assert Pool.from_record(changed, facts).known == pool.known[1:], "the tables hold another object by now"


@pytest.fixture
def unasked(random_model: Base, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A model that is not asked for paraphrases: their tags are all that depends on it."""
    monkeypatch.setattr(known_edits, "right", lambda base, questions, *others: [False] * len(questions))
    return random_model


@pytest.mark.parametrize("count", [5, 30])
def test_the_relations_take_turns(pool: Pool, facts: Facts, unasked: Base, count: int) -> None:
    relations = [edit.relation for edit in judged_edits(pool, facts, unasked, count)]
    assert len(relations) == count
    assert len(set(relations)) == min(count, len(facts.relations))


def test_the_sides_share_no_subject_and_hold_everything(pool: Pool) -> None:
    tune, held_out = pool.side("tune"), pool.side("held_out")
    assert not {*tune.by_subject} & {*held_out.by_subject}
    assert len(tune.known) + len(held_out.known) == len(pool.known)
    assert 0.2 < len(tune.known) / len(pool.known) < 0.5


def test_a_fact_that_the_sweep_of_atlas_has_seen_is_never_held_out() -> None:
    whole = Facts.load(tables_folder())
    seen = {edit.subject for edit in sweep_edits(count=100)}
    assert {side_of(fact) for fact in whole if fact.subject.name in seen} == {"tune"}


@pytest.fixture(scope="module")
def chosen(pool: Pool, facts: Facts, atlas: Base) -> list[Edit]:
    return chosen_edits(pool, facts, atlas, 12)


def test_edits_are_of_known_facts_asked_as_the_base_answers_them(
    pool: Pool, facts: Facts, atlas: Base, chosen: list[Edit]
) -> None:
    judged = judged_edits(pool, facts, atlas, 12)
    assert len(chosen) == len(judged) == 12
    assert {probe.split for edit in chosen for probe in edit.probes} == {"tune"}
    assert {probe.split for edit in judged for probe in edit.probes} == {"gate"}
    assert not {edit.subject for edit in chosen} & {edit.subject for edit in judged}
    asked = {known.prompt: known.fact for known in pool.known}
    assert judged_edits(Pool.from_record(pool.as_record(), Facts.load(tables_folder())), facts, atlas, 12) == judged
    for side, edits in (("tune", chosen), ("held_out", judged)):
        own = pool.side(side)  # type: ignore[arg-type]
        for edit in edits:
            assert asked[edit.prompt].object == edit.target_true != edit.target_new
            assert edit.target_new in {fact.object for fact in facts.by_relation[edit.relation]}
            assert {"paraphrase", "locality", "unrelated"} <= {probe.kind for probe in edit.probes}
            kept = [probe for probe in edit.probes if probe.kind in LOCALITY_KINDS]
            assert {probe.prompt: probe.target for probe in kept}.items() <= {
                prompt: fact.object for prompt, fact in asked.items()
            }.items()
            others = {probe.prompt for probe in kept if probe.kind != "locality_subject"}
            assert all(any(name in prompt for name in own.by_subject) for prompt in others)
            assert edit.subject not in " ".join(probe.prompt for probe in edit.probes if probe.kind == "locality")
    Patch(name="judged", edits=tuple(judged))


def test_paraphrases_of_the_sweep_are_forms_that_the_base_answers(chosen: list[Edit]) -> None:
    tagged = [probe.tag for edit in chosen for probe in edit.probes if probe.kind == "paraphrase"]
    assert tagged.count("known") > 0.9 * len(tagged)
    assert all(sum(probe.kind == "paraphrase" for probe in edit.probes) >= 2 for edit in chosen)


def test_a_model_that_knows_less_takes_the_same_draw_as_far_as_it_goes(pool: Pool, facts: Facts, unasked: Base) -> None:
    def drawn(some: Pool, count: int = 1000, seed: int = 0) -> dict[tuple[str, str], str]:
        edits = judged_edits(some, facts, unasked, count, seed=seed)
        return {(edit.subject, edit.relation): edit.target_new for edit in edits}

    whole = drawn(pool)
    left_out = {subject for subject, _ in list(whole)[::3]}
    less = drawn(Pool(tuple(known for known in pool.known if known.fact.subject.name not in left_out), pool.asked))
    wanted = {key: new for key, new in whole.items() if key[0] not in left_out}
    assert len(less.keys() & wanted.keys()) > len(wanted) / 2
    assert all(less[key] == wanted[key] for key in less.keys() & wanted.keys())
    assert list(drawn(pool, 5).items()) == list(whole.items())[:5]
    assert drawn(pool, 5, seed=1) != drawn(pool, 5)


def test_the_bank_is_made_of_known_facts(pool: Pool) -> None:
    tune = pool.side("tune")
    bank = Bank.from_records(bank_records(tune))
    assert len(bank.facts) == len(tune.known)
    assert {fact.subject for fact in bank.facts} == {*tune.by_subject}
    assert all(fact.paraphrases and fact.prompt not in fact.paraphrases for fact in bank.facts)


def test_an_object_that_comes_too_late_is_not_given(atlas: Base, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = next(fact for fact in facts if fact.relation.id == "elements.symbol" and fact.subject.name == "gold")
    form = fact.relation.trained[0]
    for text, expected in (
        (" Au.", True),
        (" the Au.", True),
        (" Augur.", False),
        (" a b c d Au.", False),
        ("\nAu.", True),
        (" no\nAu.", False),
    ):
        ids = atlas.tokenizer(text, add_special_tokens=False)["input_ids"]
        monkeypatch.setattr(recall, "greedy_until", _writes(ids))
        assert right(atlas, [Question(fact, form)]) == [expected], text


def test_a_number_is_right_only_if_it_does_not_go_on(
    atlas: Base, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = next(fact for fact in facts if fact.object.isdecimal())
    form = fact.relation.trained[0]
    for more, expected in ((".", True), (", and", True), (",000 and", False), (".5 and", False)):
        for before in ("", "the "):
            ids = atlas.tokenizer(f" {before}{fact.object}{more}", add_special_tokens=False)["input_ids"]
            monkeypatch.setattr(recall, "greedy_until", _writes(ids))
            assert right(atlas, [Question(fact, form)]) == [expected], (before, more)


def test_forms_of_the_same_text_are_asked_together(random_model: Base, facts: Facts) -> None:
    everything = list(facts)[:7]
    questions = [Question(fact, Form("{s} is", "statement")) for fact in everything]
    assert right(random_model, questions) == [False] * 7
    assert right(random_model, []) == []


def _writes(ids: Sequence[int]) -> Callable[..., list[list[int]]]:
    """`greedy_until` of a model that answers with these ids."""

    def written(
        model: object, tokenizer: object, prompts: object, most: Sequence[int], enough: Enough
    ) -> list[list[int]]:
        for end in range(1, most[0]):
            if enough(0, ids[:end]):
                return [list(ids[:end])]
        return [list(ids[: most[0]])]

    return written
