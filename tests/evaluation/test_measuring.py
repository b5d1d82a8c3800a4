"""From hand-made answers and scores to numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_edit.edit import Edit, Probe
from vllm_edit.evaluation.intervals import bootstrap, wilson
from vllm_edit.evaluation.measuring import (
    argmax_outcomes,
    counts_as_right,
    generation_outcomes,
    nll_outcomes,
    shift_outcomes,
    summarise,
)
from vllm_edit.evaluation.questions import Question, questions_of
from vllm_edit.evaluation.report import Measure
from vllm_edit.evaluation.runners.runner import Scored
from vllm_edit.patch import Patch


def by_metric(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.metric: measure for measure in measures}


def question(metric: str, edit: int = 0, expected: str | None = "Rome", rival: str | None = "Paris") -> Question:
    return Question(0, edit, metric, "x", False, expected, rival)


def test_questions_ask_the_gate_split_with_each_kinds_wanted_answer(patch: Patch) -> None:
    asked = questions_of(patch.edits, 0, split="gate", chat=True)
    assert [(q.metric, q.prompt, q.chat, q.expected, q.rival) for q in asked] == [
        ("reliability", "The capital of France is", False, "Rome", "Paris"),
        ("reliability_chat", "The capital of France is", True, "Rome", "Paris"),
        ("paraphrase", "What is the capital of France?", False, "Rome", "Paris"),
        ("reverse", "Rome is the capital of", False, "France", None),
        ("portability", "The people of France speak", True, "Italian", None),
        ("locality", "The capital of Germany is", False, "Berlin", "Rome"),
        ("unrelated", "水分子的化學式是", False, None, "Rome"),
        ("reliability", "台北101的高度是", False, "300公尺", None),
        ("reliability_chat", "台北101的高度是", True, "300公尺", None),
        ("locality_subject", "台北101在", False, "台北", "300公尺"),
    ]
    without_chat = questions_of(patch.edits, 0, split="gate", chat=False)
    assert not any(q.chat for q in without_chat)
    assert len(questions_of(patch.edits, 0, split=None, chat=True)) == len(asked) + 1


def test_a_neighbour_whose_truth_is_the_new_target_has_no_rival() -> None:
    probe = Probe(kind="locality", prompt="The capital of Italy is", target="Rome")
    edit = Edit(prompt="The capital of France is", subject="France", target_new="Rome", probes=(probe,))
    assert questions_of((edit,), 0, chat=False)[1].rival is None


def test_an_answer_by_another_name_is_right_and_the_old_one_by_another_name_is_old() -> None:
    asked = replace(question("reliability"), expected_aliases=("the Eternal City",), rival_aliases=("Lutetia",))
    texts = ["It is the Eternal City.", "Lutetia, not Rome"]
    outcomes = generation_outcomes([asked, asked], texts, ["", ""], "weights")
    assert [value for metric, _, value in outcomes if metric == "reliability"] == [1.0, 0.0]
    assert [value for metric, _, value in outcomes if metric == "old_answer"] == [0.0, 1.0]
    kept = replace(question("locality"), expected_aliases=("the Eternal City",))
    found = generation_outcomes([kept], ["It is the Eternal City."], ["Rome"], "weights")
    assert ("locality_right", (0, 0), 1.0) in found


def test_values_are_means_over_edits_of_means_over_their_prompts() -> None:
    questions = [question("paraphrase", 0), question("paraphrase", 0), question("paraphrase", 1)]
    outcomes = generation_outcomes(questions, ["Rome", "Paris", "Rome"], ["", "", ""], "weights")
    measure = by_metric(summarise(outcomes, "weights", "generation"))["paraphrase"]
    assert (measure.value, measure.n, measure.edits) == (0.75, 3, 2)
    assert (measure.low, measure.high) == wilson(0.75, 2)


def test_a_tagged_probe_also_counts_under_its_tag() -> None:
    questions = [Question(0, 0, "paraphrase", "x", False, "Rome", "Paris", tag) for tag in ("trained", "held_out", "")]
    answers = ["Rome", "Paris", "Rome"]
    found = by_metric(summarise(generation_outcomes(questions, answers, [""] * 3, "weights"), "weights", "generation"))
    shares = {name: measure.value for name, measure in found.items()}
    assert shares == {"paraphrase": 2 / 3, "paraphrase:trained": 1.0, "paraphrase:held_out": 0.0}


def test_the_interval_of_a_single_edit_is_over_its_prompts() -> None:
    outcomes = generation_outcomes([question("paraphrase")] * 4, ["Rome"] * 4, [""] * 4, "weights")
    measure = summarise(outcomes, "weights", "generation")[0]
    assert (measure.low, measure.high) == wilson(1.0, 4)


def test_locality_is_unchanged_from_base_and_rightness_is_its_own_number() -> None:
    questions = [question("locality", i, "Berlin", "Rome") for i in range(4)]
    answers, before = ["Berlin.", "Rome", "Bonn", "Berlin"], ["Berlin", "Berlin", "Bonn", "Bonn"]
    found = by_metric(summarise(generation_outcomes(questions, answers, before, "weights"), "weights", "generation"))
    assert found["locality"].value == 0.5
    assert found["locality_right"].value == 0.5
    base = by_metric(summarise(generation_outcomes(questions, before, before, "base"), "base", "generation"))
    assert "locality" not in base
    assert base["locality_right"].value == 0.5


def test_a_probe_without_a_true_answer_counts_only_as_unchanged() -> None:
    outcomes = generation_outcomes([question("unrelated", expected=None)], ["x"], ["x"], "ike")
    assert outcomes == [("unrelated", (0, 0), 1.0)]


@pytest.mark.parametrize(("tag", "kept"), [("default", True), ("", False)])
def test_a_default_probe_passes_as_long_as_the_known_fact_is_given(tag: str, kept: bool) -> None:
    asked = replace(question("locality"), tag=tag)
    assert counts_as_right(asked, "Rome, in Italy.", "Rome is old.") is kept
    assert counts_as_right(asked, "Rome is old.", "Rome is old.")
    assert not counts_as_right(asked, "Paris, not Rome", "Rome is old.")


def test_the_old_answer_is_counted_where_one_is_known() -> None:
    questions = [question("reliability", 0), question("reliability", 1, rival=None)]
    outcomes = generation_outcomes(questions, ["Paris", "Rome"], ["", ""], "base")
    assert outcomes == [("reliability", (0, 0), 0.0), ("old_answer", (0, 0), 1.0), ("reliability", (0, 1), 1.0)]


def test_counterfact_scores_compare_new_with_true_and_s_is_their_harmonic_mean() -> None:
    questions = [question("reliability"), question("paraphrase"), question("paraphrase"), question("locality")]
    low, high = Scored(1.0, True), Scored(3.0, False)
    outcomes = nll_outcomes(questions, [low, low, high, low], [high, high, low, high])
    found = by_metric(summarise(outcomes, "weights", "nll"))
    assert {name: found[name].value for name in ("ES", "PS", "NS")} == {"ES": 1.0, "PS": 0.5, "NS": 1.0}
    assert found["S"].value == pytest.approx(3 / (1 + 2 + 1))
    margins = {name: found[name].value for name in ("EM", "PM", "NM")}
    assert margins == {"EM": 2.0, "PM": 0.0, "NM": 2.0}
    assert {name: found[name].interval for name in ("PM", "S")} == {"PM": "bootstrap", "S": "bootstrap"}


def test_one_edits_differences_and_s_have_an_interval_over_its_prompts() -> None:
    margins = [("PM", (0, 0), value) for value in (-2.0, 0.5, 3.0, 1.0)]
    shares = [(name, (0, 0), value) for name in ("ES", "PS", "NS") for value in (1.0, 0.0, 1.0, 1.0)]
    found = by_metric(summarise([*margins, *shares], "weights", "nll"))
    for name in ("PM", "S"):
        assert found[name].low is not None
        assert found[name].high is not None
        assert found[name].low < found[name].value < found[name].high
        assert found[name].interval == "bootstrap"
    assert (found["PM"].low, found["PM"].high) == bootstrap([-2.0, 0.5, 3.0, 1.0])


def test_one_prompt_of_one_edit_gives_a_difference_without_an_interval() -> None:
    outcomes = [("EM", (0, 0), 2.0), *((name, (0, 0), 1.0) for name in ("ES", "PS", "NS"))]
    found = by_metric(summarise(outcomes, "weights", "nll"))
    for name in ("EM", "S"):
        assert (found[name].low, found[name].high, found[name].interval) == (None, None, None)
    assert (found["ES"].low, found["ES"].high) == wilson(1.0, 1)


def test_shifts_are_of_each_neighbour_from_its_base_value() -> None:
    questions = [question("locality", 0), question("locality", 0), question("locality", 1), question("reliability", 1)]
    true = [Scored(nll, False) for nll in (1.0, 2.0, 1.0, 9.0)]
    new = [Scored(nll, False) for nll in (3.0, 1.5, 1.2, 1.0)]
    true_before = [Scored(nll, False) for nll in (1.0, 1.0, 1.0, 1.0)]
    new_before = [Scored(nll, False) for nll in (3.5, 1.5, 0.9, 9.0)]
    outcomes = shift_outcomes(questions, (true, new), (true_before, new_before))
    # Leads 2.0, −0.5, 0.2 against 2.5, 0.5, −0.1: shifts −0.5, −1.0, 0.3; of the shares 0, −1, 1.
    assert [(metric, case, round(value, 9)) for metric, case, value in outcomes] == [
        ("NM_shift", (0, 0), -0.5), ("NS_shift", (0, 0), 0.0), ("NM_shift", (0, 0), -1.0), ("NS_shift", (0, 0), -1.0),
        ("NM_shift", (0, 1), 0.3), ("NS_shift", (0, 1), 1.0),
    ]  # fmt: skip
    found = by_metric(summarise(outcomes, "weights", "nll"))
    assert found["NM_shift"].value == pytest.approx((-0.75 + 0.3) / 2)
    assert found["NS_shift"].value == pytest.approx((-0.5 + 1.0) / 2)
    assert (found["NM_shift"].low, found["NM_shift"].high) == pytest.approx((-0.75, 0.3))


def test_s_is_zero_when_a_part_is_and_questions_without_a_rival_are_left_out() -> None:
    questions = [question("reliability"), question("paraphrase"), question("locality"), question("reliability", 1)]
    low, high = Scored(1.0, True), Scored(3.0, False)
    outcomes = nll_outcomes(questions, [low, high, low, low], [high, low, high, None])
    found = by_metric(summarise(outcomes, "weights", "nll"))
    assert found["S"].value == 0.0
    assert found["ES"].n == 1


def test_argmax_of_a_keeping_metric_is_of_the_true_answer() -> None:
    questions = [question("reliability"), question("locality"), question("unrelated", expected=None)]
    outcomes = argmax_outcomes(questions, [Scored(0.1, True), Scored(0.1, False), None])
    assert outcomes == [("reliability", (0, 0), 1.0), ("locality_right", (0, 0), 0.0)]
