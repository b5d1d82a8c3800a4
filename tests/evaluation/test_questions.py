"""Questions about a patch: a probe that another edit changes is not asked."""

from __future__ import annotations

import pytest

from vllm_edit.edit import Edit, Probe, ProbeKind
from vllm_edit.evaluation.questions import Question, not_asked, questions_of


def france(kind: ProbeKind, prompt: str, target: str | None = None) -> Edit:
    probe = Probe(kind=kind, prompt=prompt, target=target)
    return Edit(
        prompt="The capital of France is", subject="France", relation="capital", target_new="Lyon", probes=(probe,)
    )


JAPAN = Edit(
    prompt="The capital of Japan is",
    subject="Japan",
    aliases=("Nippon",),
    relation="capital",
    target_new="Osaka",
    target_true="Tokyo",
    probes=(Probe(kind="paraphrase", prompt="The seat of Japan's government is"),),
)


def asked(*edits: Edit) -> list[str]:
    return [question.prompt for question in questions_of(edits, 0, chat=False) if question.keeps]


@pytest.mark.parametrize(
    "edit",
    [
        france("locality", "The capital of Japan is"),
        france("locality", "Nippon's capital city is", "Tokyo"),
        france("unrelated", "The seat of Japan's government is"),
        france("unrelated", "Everyone who has been to Nippon knows the city of", "Tokyo"),
    ],
    ids=["same prompt", "same relation, by an alias", "paraphrase of the other", "the answer that the other replaces"],
)
def test_a_neighbour_that_another_edit_changes_is_no_locality_probe(edit: Edit) -> None:
    assert asked(edit) == [edit.probes[0].prompt]
    assert asked(edit, JAPAN) == []
    assert not_asked((edit, JAPAN), chat=False) == {edit.probes[0].kind: 1}
    assert not not_asked((edit,), chat=False)
    assert not not_asked((edit, JAPAN), split="tune", chat=False)


@pytest.mark.parametrize(
    "edit",
    [
        france("locality", "The capital of Spain is", "Madrid"),
        france("unrelated", "The currency of Japan is", "the yen"),
        france("locality_subject", "France and Japan are members of the", "G7"),
    ],
    ids=["another neighbour", "another fact of the other's subject", "both subjects named"],
)
def test_a_probe_that_no_edit_changes_is_still_asked(edit: Edit) -> None:
    assert asked(edit, JAPAN) == [edit.probes[0].prompt]
    assert not not_asked((edit, JAPAN), chat=False)


def test_a_question_carries_every_name_of_its_answers() -> None:
    probes = (
        Probe(kind="portability", prompt="France's capital lies in", target="Europe", target_aliases=("Eurasia",)),
        Probe(kind="paraphrase", prompt="France is ruled from"),
        Probe(kind="locality_subject", prompt="The rival of France is", target="Lugdunum"),
        Probe(kind="locality", prompt="The capital of Spain is", target="Madrid", target_aliases=("Villa de Madrid",)),
    )
    edit = Edit(
        prompt="The capital of France is",
        subject="France",
        target_new="Lyon",
        target_new_aliases=("Lugdunum",),
        target_true="Paris",
        target_true_aliases=("Lutetia",),
        probes=probes,
    )
    new, old = ("Lyon", "Lugdunum"), ("Paris", "Lutetia")
    assert [(question.accepted, question.rivals) for question in questions_of((edit,), 0, chat=False)] == [
        (new, old),
        (("Europe", "Eurasia"), ()),
        (new, old),
        (("Lugdunum",), ()),  # the new answer by another name: nothing that could leak
        (("Madrid", "Villa de Madrid"), new),
    ]


def test_a_paraphrase_that_names_the_new_answer_is_judged_as_one_that_leaves_it_out() -> None:
    def question(target: str | None, *aliases: str) -> Question:
        probe = Probe(kind="paraphrase", prompt="France is ruled from", target=target, target_aliases=aliases)
        edit = france("paraphrase", "France is ruled from").model_copy(
            update={
                "target_new_aliases": ("Lugdunum",),
                "target_true": "Paris",
                "target_true_aliases": ("Lutetia",),
                "probes": (probe,),
            }
        )
        (_, asked) = questions_of((edit,), 0, chat=False)
        return asked

    default = question(None)
    assert (default.accepted, default.rivals) == (("Lyon", "Lugdunum"), ("Paris", "Lutetia"))
    assert question("Lyon") == default
    assert question("Lugdunum") == default
    assert question("Lyon", "Lugdunum") == default
    more = question("Lyon", "Lyons")
    assert (more.accepted, more.rivals) == (("Lyon", "Lugdunum", "Lyons"), default.rivals)
    other = question("the Rhône")
    assert (other.accepted, other.rivals) == (("the Rhône",), ())


def test_a_fact_that_another_edit_replaces_is_known_by_every_name() -> None:
    japan = JAPAN.model_copy(update={"target_true_aliases": ("Edo",)})
    edit = france("unrelated", "Everyone who has been to Nippon knows the city of", "Edo")
    assert asked(edit, japan) == []
