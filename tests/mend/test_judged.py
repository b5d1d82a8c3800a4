"""What training leaves out: subjects and prompts that an evaluation judges."""

from __future__ import annotations

from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.hypernetworks.judged import Judged


def edit(subject: str, *probes: Probe, aliases: tuple[str, ...] = ()) -> Edit:
    prompt = f"The capital of {subject} is"
    return Edit(prompt=prompt, subject=subject, target_new="Lyon", aliases=aliases, probes=probes)


def locality(prompt: str) -> Probe:
    return Probe(kind="locality", prompt=prompt)


def test_edits_about_a_judged_subject_are_left_out_by_any_of_its_names() -> None:
    judged = Judged([edit("the Netherlands", aliases=("Holland",))], names=["Peru"])
    edits = [edit("Netherlands"), edit("Spain", aliases=("holland",)), edit("peru"), edit("Chile")]
    assert [own.subject for own in judged.apart(edits)] == ["Chile"]
    assert [own.subject for own in judged.shared(edits)] == ["Netherlands", "Spain", "peru"]


def test_probes_that_ask_a_judged_prompt_or_mention_a_judged_subject_are_left_out() -> None:
    judged = Judged([edit("Spain", locality("The capital of Italy is"))], names=["Peru"])
    kept = locality("The capital of Peru is")  # Peru may be edited, but no judged edit is about it
    own = edit("Chile", locality("the capital of Italy is"), locality("Madrid is in Spain"), kept)
    (apart,) = judged.apart([own])
    assert apart.probes == (kept,)
    assert apart.subject == "Chile"


def test_without_anything_judged_edits_are_the_same() -> None:
    edits = [edit("Chile", locality("Madrid is in Spain"))]
    assert Judged().apart(edits) == edits
    assert Judged().shared(edits) == []


def test_texts_in_which_a_judged_prompt_occurs_are_left_out() -> None:
    judged = Judged([edit("Spain", locality("Where is Italy?"))])
    texts = ["Italy has a capital.", "I ask: where is Italy?\nIn Europe.", "Where it is"]
    assert list(judged.without(texts)) == [texts[0], texts[2]]
    assert list(Judged().without(texts)) == texts
