"""Training edits of a model's pool: known facts of the side that nothing is judged on, drawn repeatedly."""

from __future__ import annotations

import pytest

from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Known, Pool, side_of
from vllm_edit.facts.training_edits import known_facts, pool_edits


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts.load(tables_folder())


@pytest.fixture(scope="module")
def pool(facts: Facts) -> Pool:
    """Every third fact of the English tables."""
    english = [fact for fact in facts if fact.relation.language == "en"]
    return Pool(tuple(Known(fact, fact.relation.trained[:1]) for fact in english[::3]), {})


def test_only_known_facts_of_the_side_that_nothing_is_judged_on_are_edited_or_probed(facts: Facts, pool: Pool) -> None:
    edits = pool_edits(pool, facts, 200)
    known = {(known.fact.relation.id, known.fact.subject.name): known.fact for known in pool.side("tune").known}
    judged = {known.fact.subject.name for known in pool.side("held_out").known}
    assert len(edits) == 200
    for edit in edits:
        assert known[edit.relation, edit.subject].object == edit.target_true != edit.target_new
        assert side_of(known[edit.relation, edit.subject]) == "tune"
    asked = {(probe.kind, probe.target) for edit in edits for probe in edit.probes if probe.kind == "locality"}
    assert asked <= {("locality", fact.object) for fact in known.values()}
    assert not judged & {edit.subject for edit in edits}
    assert {probe.kind for edit in edits for probe in edit.probes} >= {"paraphrase", "locality", "unrelated"}


def test_a_fact_is_drawn_repeatedly_with_objects_of_the_whole_tables(facts: Facts, pool: Pool) -> None:
    edits = pool_edits(pool, facts, 600)
    targets: dict[tuple[str, str], set[str]] = {}
    for edit in edits:
        targets.setdefault((edit.relation, edit.subject), set()).add(edit.target_new)
        assert edit.target_new in {fact.object for fact in facts.by_relation[edit.relation]}
    assert max(map(len, targets.values())) > 2
    own = {fact.object for fact in known_facts(pool.side("tune"), facts)}
    assert {edit.target_new for edit in edits} - own


def test_the_seed_decides_the_edits(facts: Facts, pool: Pool) -> None:
    edits = pool_edits(pool, facts, 20, seed=1)
    assert pool_edits(pool, facts, 20, seed=1) == edits != pool_edits(pool, facts, 20, seed=2)


def test_a_model_that_knows_too_little_has_no_edits(facts: Facts, pool: Pool) -> None:
    one = Pool(pool.side("tune").known[:1], {})
    assert pool_edits(one, facts, 20) == []
    few = [known for known in pool.side("tune").known if known.fact.relation.id == "countries.continent"]
    edits = pool_edits(Pool(tuple(few), {}), facts, 20)
    assert {edit.relation for edit in edits} == {"countries.continent"}
