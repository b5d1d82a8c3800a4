"""Where a prompt names a subject: one rule for keys, for aliases and for "the same fact"."""

from __future__ import annotations

import pytest

from tests.editing.examples import bench
from tests.tiny import tiny_tokenizer
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.rome.name_keys import same_ending
from vllm_edit.editing.rome.prompt_forms import forms_of, named_otherwise
from vllm_edit.models.positions import locate
from vllm_edit.text.matching import last_occurrence, occurrences


@pytest.mark.parametrize(
    ("text", "name", "whole", "last"),
    [
        ("The capital of Niger (not Nigeria) is", "Niger", [15], 15),
        ("The art in Bonaparte's court was", "art", [4], 4),
        ("Niger, as Niger's people say", "Niger", [0, 10], 10),
        ("The capital of Nigeria is", "Niger", [], 15),
        ("全世界最帥的人是誰", "帥的人", [4], 4),
        ("ana ana", "ana ana", [0], 0),
        ("nothing", "Niger", [], None),
        ("nothing", "", [], None),
    ],
)
def test_a_whole_word_counts_before_a_part_of_one(text: str, name: str, whole: list[int], last: int | None) -> None:
    assert occurrences(text, name) == whole
    assert last_occurrence(text, name) == last


NIGER = Edit(
    prompt="The capital of Niger (not Nigeria) is",
    subject="Niger",
    aliases=("Republic of Niger",),
    target_new="Zinder",
)


def test_an_alias_replaces_the_located_subject() -> None:
    assert named_otherwise(NIGER, "Republic of Niger") == "The capital of Republic of Niger (not Nigeria) is"
    art = Edit(prompt="The art in Bonaparte's court was", subject="art", target_new="music")
    assert named_otherwise(art, "painting") == "The painting in Bonaparte's court was"
    tokenizer = tiny_tokenizer()
    placed, found = named_otherwise(NIGER, "Republic of Niger"), locate(tokenizer, NIGER.prompt, "Niger")
    assert locate(tokenizer, placed, "Republic of Niger").subject_first == found.subject_first


def test_other_names_of_the_same_ending_are_there_too() -> None:
    edit = Edit(prompt="South Sudan (South Sudanese) has the capital", subject="South Sudan", target_new="Wau")
    [[form]] = same_ending(edit, ["Mary"])
    assert form.prompt == "Mary Sudan (South Sudanese) has the capital"


def test_a_probe_names_the_subject_by_a_whole_word_only() -> None:
    site = bench(token="subject_last").site

    def names(probe: str) -> list[str | None]:
        probes = (Probe(kind="paraphrase", prompt=probe, split="tune"),)
        edit = NIGER.model_copy(update={"aliases": ("the Nigerien state",), "probes": probes})
        return [form.subject for form in forms_of(edit, tiny_tokenizer(), site, ("plain", "tune"))][1:]

    assert names("Which city is Niger's capital?") == ["Niger"]
    assert names("Nigeria is larger than the Nigerien state, whose capital is") == ["the Nigerien state"]
    assert names("The capital of Nigeria is") == []
    assert names("NIGER has the capital") == ["NIGER"]
    assert names("NIGER, or the Nigerien state, has the capital") == ["the Nigerien state"]
    assert names("The nigerien  state is ruled from") == ["The nigerien  state"]


def test_a_fact_is_known_by_its_prompt_without_the_subject_but_with_longer_words() -> None:
    other = Edit(prompt="The capital of Mali (not Nigeria) is", subject="Mali", aliases=("Niger",), target_new="Gao")
    assert NIGER.facts() & other.facts(), "the same prompt about the same name"
    twice = Edit(prompt="Mali, where Mali's people live, has the capital", subject="Mali", target_new="Gao")
    assert twice.facts() - {("", "prompt", "mali, where mali's people live, has the capital")} == {
        ("mali", "prompt", "{}, where {}'s people live, has the capital")
    }
