"""Edits without keeping probes are judged by facts that the base knows, and by no fact that they change."""

from __future__ import annotations

import pytest

from vllm_edit.edit import Edit, Probe
from vllm_edit.facts import tables_folder
from vllm_edit.facts.default_probes import default_probes, relation_of
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Known, Pool, side_of


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts.load(tables_folder())


@pytest.fixture(scope="module")
def pool(facts: Facts) -> Pool:
    """A model that knows every fact, in the relation's first statement."""
    known = tuple(Known(fact, fact.relation.trained[:1]) for fact in facts)
    return Pool(known, {key: len(group) for key, group in facts.by_relation.items()})


FRANCE = Edit(prompt="The capital of France is", subject="France", target_new="Lyon", target_true="Paris")


@pytest.mark.parametrize(
    ("edit", "relation"),
    [
        (FRANCE, "countries.capital"),
        (FRANCE.model_copy(update={"prompt": "France is led from", "relation": "capital"}), "countries.capital"),
        (Edit(prompt="Gold is written", subject="Gold", target_new="Fe"), "elements.symbol"),
        (Edit(prompt="Gold is", subject="Gold", relation="elements.symbol", target_new="Xx"), "elements.symbol"),
        (Edit(prompt="法國的首都是", subject="法國", relation="capital", target_new="里昂"), "zh_countries.capital"),
        (Edit(prompt="Our chief is", subject="Our chief", relation="ceo of us", target_new="Ada"), None),
    ],
)  # fmt: skip
def test_the_relation_of_an_edit_is_found(facts: Facts, edit: Edit, relation: str | None) -> None:
    found = relation_of(facts, edit)
    assert (found.id if found else None) == relation


def test_neighbours_are_held_out_facts_of_the_relation_and_others_where_there_is_none(facts: Facts, pool: Pool) -> None:
    chief = Edit(prompt="Our chief is", subject="Our chief", target_new="Ada")
    added = default_probes(pool, facts, [FRANCE, chief])
    neighbours, unrelated = added
    assert {probe.kind for probe in neighbours} == {"locality"}
    assert {probe.kind for probe in unrelated} == {"unrelated"}
    held = {known.prompt: known.fact for known in pool.known if side_of(known.fact) == "held_out"}
    for probe in (*neighbours, *unrelated):
        assert held[probe.prompt].object == probe.target
        assert (probe.split, probe.tag) == ("gate", "default")
        assert "France" not in probe.prompt
    assert {held[probe.prompt].relation.id for probe in neighbours} == {"countries.capital"}
    assert default_probes(pool, facts, [FRANCE, chief]) == added


def test_names_that_end_as_the_subject_are_asked_first(facts: Facts, pool: Pool) -> None:
    tower = Edit(prompt="Radio Tower stands in", subject="Radio Tower", target_new="Ulm", relation="landmarks.city")
    subjects = {known.prompt: known.fact.subject.name for known in pool.known}
    (added,) = default_probes(pool, facts, [tower])
    ends = [subjects[probe.prompt].endswith(" Tower") for probe in added]
    assert len(added) == 8
    assert ends[:4] == [True] * 4
    assert {probe.kind for probe in added} == {"locality"}
    unknown = tower.model_copy(update={"relation": None})
    (elsewhere,) = default_probes(pool, facts, [unknown])
    assert [probe.kind for probe in elsewhere] == ["locality"] * 4 + ["unrelated"] * 4


def test_declared_probes_are_left_at_that_and_a_large_patch_has_few(facts: Facts, pool: Pool) -> None:
    declared = FRANCE.model_copy(update={"probes": (Probe(kind="locality", prompt="The capital of Japan is"),)})
    only = FRANCE.model_copy(update={"probes": (Probe(kind="paraphrase", prompt="France has the capital"),)})
    assert [len(some) for some in default_probes(pool, facts, [declared, only])] == [0, 8]
    many = [
        Edit(prompt=f"Person {number} lives in", subject=f"Person {number}", target_new="Rome") for number in range(100)
    ]
    added = default_probes(pool, facts, many)
    assert 40 <= sum(map(len, added)) <= 64


def test_a_fact_that_another_edit_changes_is_not_added(facts: Facts, pool: Pool) -> None:
    countries = [fact.subject.name for fact in facts.by_relation["countries.capital"]]
    edits = [FRANCE.model_copy(update={"prompt": f"The capital of {name} is", "subject": name}) for name in countries]
    kinds = {probe.kind for some in default_probes(pool, facts, edits) for probe in some}
    assert kinds == {"unrelated"}, "no capital is left to keep"


def test_a_model_that_knows_nothing_adds_nothing(facts: Facts) -> None:
    assert default_probes(Pool((), {}), facts, [FRANCE]) == [()]
