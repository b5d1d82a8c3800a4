"""The common parts of the benchmarks: rows of tables, marked places in pages, draws of an exact number of edits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.arguments import numbers
from benchmarks.common.caching_runner import CachingRunner
from benchmarks.common.percentiles import percentile
from benchmarks.common.report_rows import row
from benchmarks.common.results_page import write_marked
from benchmarks.faults import Ran, merged
from benchmarks.faults import table as faults_table
from benchmarks.many_edits import WAYS, chosen_ways, first_edits, sampled, with_earlier, without_preserved
from benchmarks.methods import Costs, details, joined, table, with_seconds
from tests.tiny import tiny_model, tiny_tokenizer
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError
from vllm_edit.evaluation.intervals import wilson
from vllm_edit.evaluation.report import Answer, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.patch import Patch


def patch(name: str, count: int) -> Patch:
    probe = Probe(kind="paraphrase", prompt=f"What is {name}?")
    edits = [
        Edit(prompt=f"{name} has the {n}", subject=name, relation=str(n), target_new="x", probes=(probe,))
        for n in range(count)
    ]
    return Patch(name=name, edits=tuple(edits))


def compiled(declared: Patch) -> CompiledPatch:
    manifest = Manifest(
        patch=declared.name, method="ft", base="b", site="s", modules=(), edits=declared.edits, rank=0, adapter="a"
    )
    return CompiledPatch(manifest, Delta({}))


def answer(edit: int, metric: str, tag: str, right: bool) -> Answer:
    return Answer(
        patch="p",
        edit=edit,
        subject="s",
        relation="r",
        metric=metric,
        tag=tag,
        prompt="q",
        chat=False,
        expected="x",
        texts={"weights": "x"},
        right={"weights": right},
    )


def report(answers: Sequence[Answer]) -> Report:
    return Report(
        patches=("p",),
        engine="e",
        modes=("weights",),
        edits=2,
        split="gate",
        max_tokens=8,
        measures=(),
        answers=answers,
    )


def test_numbers_on_a_command_line_are_positive_and_between_commas() -> None:
    assert numbers(int)("1,10") == [1, 10]
    assert numbers(float)("0.5") == [0.5]
    for wrong in ("", "1,", "1;2", "0,1", "-1", "1.5", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="between commas"):
            numbers(int)(wrong)
    for wrong in ("nan", "inf", "1,-0.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="between commas"):
            numbers(float)(wrong)


def test_a_row_takes_each_tag_apart_and_averages_over_the_probes_of_an_edit_then_over_edits() -> None:
    answers = [answer(0, "locality", "", True), answer(0, "locality", "", False), answer(1, "locality", "", True)]
    found = row(report([*answers, answer(1, "locality", "same_object", False)]), "weights")
    assert set(found) == {"locality", "locality same_object"}
    low, high = wilson(0.75, 2)
    assert found["locality"] == {"share": 0.75, "low": low, "high": high, "n": 3}  # (1/2 + 1) / 2


def test_tables_show_every_row_with_its_costs_and_missing_measurements() -> None:
    share = {"share": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    rows: dict[str, Any] = {
        "base": {"reliability": share, "costs": vars(Costs())},
        "ROME": {"reliability": share, "costs": vars(Costs(0.25, True, 4000.0, 1.0, 0.0, 2))},
        "IKE": {"reliability": share, "costs": vars(Costs(0.125, tokens=431.0))},
    }
    data = {"edits": 9, "engine": "hf", "machine": "Machine.", "rows": rows}
    shown = [line.split(" | ") for line in table(data, "R.md").splitlines() if line.startswith("| ")]
    assert {len(cells) for cells in shown} == {14}
    assert shown[2][-3:] == ["0.250", "4,000", "0 |"]
    assert shown[3][-3:] == ["0.125", "–", "431 |"]
    assert shown[4][:2] == ["| questions", "9"]
    assert "in one batch for ROME; one edit after the other for IKE" in table(data, "R.md")
    assert "| ROME | 0.500 [0.25, 0.75] |" in details(data)


def test_marked_text_is_replaced_and_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- methods -->\nold\n<!-- /methods -->\nafter\n")
    write_marked(page, "methods", "new")
    write_marked(page, "methods", "newer")
    assert page.read_text() == "before\n<!-- methods -->\nnewer\n<!-- /methods -->\nafter\n"
    with pytest.raises(ValueError, match="has no marks for quality"):
        write_marked(page, "quality", "new")


def test_rows_of_other_ways_and_sizes_are_kept_and_measured_ones_replaced() -> None:
    def data(asked: int, **rows: float) -> dict[str, Any]:
        named = [{"edits": int(name.split("_")[1]), "way": name.split("_")[0], "x": x} for name, x in rows.items()]
        return {"documents": 1, "engine": "hf", "asked": asked, "rows": named}

    found = with_earlier(data(60, joint_100=0.1, KE_10=0.2), data(60, joint_100=0.3, sum_100=0.4))
    assert [(item["edits"], item["way"], item["x"]) for item in found["rows"]] == [
        (10, "KE", 0.2),
        (100, "sum", 0.4),
        (100, "joint", 0.3),
    ]
    with pytest.raises(EditError, match="other asked"):
        with_earlier(data(60), data(100))


def test_some_ways_of_many_edits_can_be_chosen_and_others_do_not_exist() -> None:
    assert chosen_ways("joint,MEMIT") == ("joint", "MEMIT")
    assert chosen_ways(",".join(WAYS)) == WAYS
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected ways among sum, joint, .*, got 'stacked'"):
        chosen_ways("joint,stacked")


def test_the_first_edits_are_exactly_as_many_as_asked_for() -> None:
    subjects = [patch("a", 2), patch("b", 2), patch("c", 1)]
    assert first_edits(subjects, 4) == subjects[:2]
    cut = first_edits(subjects, 3)
    assert [item.name for item in cut] == ["a", "b-1"]
    assert cut[1].edits == subjects[1].edits[:1]
    assert first_edits(subjects, 5) == subjects
    with pytest.raises(EditError, match="asked for 6 edits, these subjects give 5"):
        first_edits(subjects, 6)


def test_probes_of_a_sample_are_asked_and_every_edit_stays() -> None:
    whole = compiled(patch("a", 5))
    shown = sampled(whole, 2, seed=1).manifest.edits
    assert [edit.prompt for edit in shown] == [edit.prompt for edit in whole.manifest.edits]
    assert sum(bool(edit.probes) for edit in shown) == 2
    turned = compiled(Patch(name="a", edits=whole.manifest.edits[::-1]))
    assert sampled(turned, 2, seed=1).manifest.edits == shown[::-1], "whatever the order"
    assert sampled(whole, 9, seed=1).manifest.edits == whole.manifest.edits


class Counting(HFRunner):
    """Counts its questions."""

    asked = 0

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        self.asked += len(requests)
        return super().generate(requests, max_tokens)


def test_the_base_is_asked_each_question_once_and_a_patch_every_time() -> None:
    tokenizer = tiny_tokenizer()
    counting = Counting(tiny_model("llama", tokenizer), tokenizer)
    runner = CachingRunner(counting)
    requests = [Request("Paris is"), Request("Paris is", patch=compiled(patch("a", 1))), Request("Who is", chat=True)]
    first = runner.generate(requests, 4)
    assert counting.asked == 3
    assert runner.generate(requests[::-1], 4) == first[::-1]
    assert counting.asked == 4
    assert first == counting.generate(requests, 4)


def test_faults_are_added_up_by_test_and_skipped_tests_give_the_reason() -> None:
    ran = [
        Ran("test_it_is_whole", "sqlite", 1.4, {"killed": 900, "instants": [1]}),
        Ran("test_it_is_whole", "postgresql", 2.0, {"killed": 200}),
        Ran("test_a_disk", "", 0.0, skipped="nobody may mount one"),
    ]
    assert faults_table(ran).splitlines()[2:] == [
        "| it is whole | sqlite, postgresql | 1,100 killed | 3 |",
        "| a disk |  | skipped: nobody may mount one | 0 |",
    ]


def test_faults_that_did_not_run_again_stay_as_they_ran_last() -> None:
    last = [
        Ran("test_it_is_whole", "sqlite", 1.4),
        Ran("test_it_is_whole", "postgresql", 2.0),
        Ran("test_a_disk", "", 3),
    ]
    again, new = Ran("test_it_is_whole", "sqlite", 9.0), Ran("test_churn", "", 5.0)
    assert merged(last, [again, new]) == [again, *last[1:], new]


def test_beside_other_programs_rows_keep_the_seconds_of_an_earlier_run() -> None:
    def rows(**seconds: float | None) -> dict[str, Any]:
        return {"rows": {name: {"n": 1, "costs": {"seconds": found, "rank": 1}} for name, found in seconds.items()}}

    found = with_seconds(rows(ROME=0.5, KE=None), rows(ROME=None, KE=None, MEND=None))
    assert [row["costs"]["seconds"] for row in found["rows"].values()] == [0.5, None, None]
    assert found["timed_before"] == ["ROME"]


def test_rows_that_were_measured_alone_join_those_of_the_same_edits_in_the_order_of_the_table() -> None:
    earlier = {"edits": 2, "engine": "e", "machine": "m", "rows": {"base": {"n": 1}, "ROME": {"n": 2}, "IKE": {"n": 3}}}
    found = joined(earlier, {**earlier, "rows": {"base": {"n": 1}, "KE": {"n": 5}, "ROME": {"n": 4}}})
    assert list(found["rows"].items()) == [("base", {"n": 1}), ("ROME", {"n": 4}), ("KE", {"n": 5}), ("IKE", {"n": 3})]
    assert found["alone"] == ["ROME", "KE"]
    again = joined(found, {**earlier, "rows": {"base": {"n": 1}, "MEND": {"n": 6}}})
    assert again["alone"] == ["ROME", "MEND", "KE"]
    for other in ({"edits": 3}, {"engine": "f"}, {"rows": {"base": {"n": 2}}}):
        with pytest.raises(SystemExit, match="measure all rows"):
            joined(earlier, {**earlier, "rows": {"base": {"n": 1}}, **other})


def test_questions_about_a_fact_that_a_patch_preserves_do_not_judge_it() -> None:
    def probe(kind: str, prompt: str, split: str) -> Probe:
        return Probe(kind=kind, prompt=prompt, target="x", split=split)

    kept = probe("locality", "The capital of Peru is", "tune")
    other = probe("locality", "Peru has its capital in", "gate")
    far, reworded = probe("unrelated", "The moon orbits the", "gate"), probe("paraphrase", "Peru's capital:", "gate")
    edit = Edit(prompt="a b", subject="a", target_new="c", probes=(far, other, reworded))
    preserving = Edit(prompt="d e", subject="d", target_new="f", probes=(kept,))
    facts = {one.prompt: ("capital", "Peru") for one in (kept, other, reworded)}
    assert without_preserved([edit, preserving], facts) == (
        edit.model_copy(update={"probes": (far, reworded)}),
        preserving,
    )


def test_a_percentile_is_one_of_the_values_and_never_above_the_greatest() -> None:
    assert [percentile(list(range(1, 31)), percent) for percent in (50, 90, 99)] == [15, 27, 30]
    assert percentile([3.0], 99) == 3.0
    assert percentile(list(range(1, 1001)), 99) == 990
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)
