"""The fact tables obey their own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_edit.atlas import bank, sweep_edits
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.patch import Patch


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts.load(tables_folder())


def test_there_are_thousands_of_facts_over_many_relations_in_two_languages(facts: Facts) -> None:
    everything = list(facts)
    assert len(everything) >= 2000
    assert len([relation for relation, group in facts.by_relation.items() if len(group) >= 10]) >= 20
    assert len([fact for fact in everything if fact.relation.language == "zh"]) >= 150


def test_every_relation_has_eight_forms_and_two_that_are_never_trained(facts: Facts) -> None:
    for relation in facts.relations:
        trained = {form.text for form in relation.trained}
        held_out = {form.text for form in relation.held_out}
        assert len(trained) >= 8, relation.id
        assert len(held_out) >= 2, relation.id
        assert not trained & held_out, relation.id
        assert {form.kind for form in relation.trained} == {"statement", "question"}, relation.id


def test_the_lectures_example_is_known(facts: Facts) -> None:
    objects = {(fact.subject.name, fact.relation.name): fact.object for fact in facts}
    assert objects["全世界最帥的人", "who"] == "布萊德彼特"
    assert objects["李宏毅", "works_at"] == "台灣大學"
    assert objects["台北101", "height"] == "508公尺"
    assert objects["水分子", "formula"] == "H2O"
    forms = {form.text for relation in facts.relations for form in relation.trained}
    assert {"{s}是誰", "誰是{s}", "{s}有多高"} <= forms


def test_edits_to_choose_the_site_and_edits_to_judge_by_share_no_subject(facts: Facts) -> None:
    chosen, judged = sweep_edits(count=100), draw_edits(facts, 200, seed=1)
    assert not {edit.subject for edit in chosen} & {edit.subject for edit in judged}
    assert all(probe.split == "tune" for edit in chosen for probe in edit.probes)
    assert len({edit.relation for edit in judged}) == len(facts.relations)
    assert draw_edits(facts, 200, seed=1) == judged
    Patch(name="judged", edits=tuple(judged))


def test_more_edits_than_subjects_is_refused(facts: Facts) -> None:
    with pytest.raises(EditError, match=r"asked for 100000 edits, but these tables give only \d+"):
        draw_edits(facts, 100_000, seed=0)


def test_every_fact_is_in_the_bank(facts: Facts) -> None:
    records = bank()
    assert len(records) == len(list(facts))
    assert all(record.subject in record.prompt for record in records)


def test_bad_tables_are_described_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject,aliases,color\nsky,,blue\nsea,sky,green\n")
    (tmp_path / "a.yaml").write_text(
        "language: en\nrelations:\n"
        "  color:\n    statements: ['It is']\n    questions: ['{s}?']\n    held_out: ['{s} has']\n"
    )
    (tmp_path / "b.csv").write_text("subject,aliases\n")
    with pytest.raises(EditError) as caught:
        Facts.load(tmp_path)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert "expected {s} once in 'It is'" in lines[0]
    assert "b.csv: expected its forms in b.yaml" in lines[1]
    assert "'sky' names two subjects" in lines[2]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="expected fact tables"):
        Facts.load(tmp_path)
