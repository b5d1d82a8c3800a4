"""evaluate end to end on a tiny model: modes side by side, the gate, JSON and the table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.evaluation.conftest import Compile
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.edit import Edit, Probe, ProbeKind, Split
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.evaluation import asking
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate, run_gate
from vllm_edit.evaluation.in_batches import together
from vllm_edit.evaluation.judging import unchanged
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import Measure, Mode, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.evaluation.table import table
from vllm_edit.ike.prefix import build_prefix, wrap
from vllm_edit.models.lengths import read_of
from vllm_edit.patch import Gate, Patch
from vllm_edit.text.prompts import answer_ids


@pytest.fixture(scope="module")
def runner(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> HFRunner:
    return HFRunner(llama, tokenizer)


@pytest.fixture(scope="module")
def report(compiled: CompiledPatch, runner: HFRunner) -> Report:
    return evaluate(compiled, runner, settings=EvaluationSettings(max_tokens=6, latency=2, answers=True))


def test_every_mode_answers_the_same_questions(report: Report) -> None:
    assert report.modes == ("base", "weights", "ike")
    assert report.edits == 2
    assert report.answers is not None
    assert len(report.answers) == 10
    for answer in report.answers:
        assert set(answer.texts) == {"base", "weights", "ike"}
    for mode in ("weights", "ike"):
        for metric in ("reliability", "reliability_chat", "paraphrase", "reverse", "portability", "locality",
                       "locality_subject", "unrelated", "locality_right", "old_answer"):  # fmt: skip
            assert report.find(metric, mode) is not None, metric
    forced = {m.metric for m in report.measures if m.protocol == "nll" and m.mode == "weights"}
    assert forced == {"ES", "PS", "NS", "S", "EM", "PM", "NM", "NM_shift", "NS_shift"}
    assert not any(m.metric.endswith("shift") for m in report.measures if m.mode == "base")


def test_answers_are_the_runners_own(report: Report, compiled: CompiledPatch, runner: HFRunner) -> None:
    assert report.answers is not None
    for answer in report.answers:
        weights = runner.generate([Request(answer.prompt, answer.chat, compiled)], 6)[0]
        assert answer.texts["weights"] == weights
        if answer.metric == "locality":
            assert answer.right["weights"] == unchanged(weights, answer.texts["base"])


def test_ike_costs_the_tokens_of_its_prefix_and_the_other_modes_none(report: Report) -> None:
    added = {cost.mode: cost.tokens_added for cost in report.costs}
    assert added["base"] == added["weights"] == 0
    assert added["ike"] > 20
    assert all(cost.latency_s and cost.latency_n == 2 for cost in report.costs)


class _Counting(HFRunner):
    """Remembers how many tokens it was asked to generate for each prompt."""

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        self.asked = {**getattr(self, "asked", {}), **{request.prompt: max_tokens for request in requests}}
        return super().generate(requests, max_tokens)


def test_seconds_are_those_of_the_answers_that_were_asked_for(
    compiled: CompiledPatch, runner: HFRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, own = [0], runner.generate

    def generate(requests: Sequence[Request], max_tokens: int) -> list[str]:
        clock[0] += len(requests)  # a second an answer
        return own(requests, max_tokens)

    monkeypatch.setattr(runner, "generate", generate)
    monkeypatch.setattr(asking, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    manifest = compiled.manifest.model_copy(update={"scope": "subject", "members": ("a", "b")})
    scoped = replace(compiled, manifest=manifest)
    settings = EvaluationSettings(max_tokens=2, latency=0, teacher_forced=False)
    base, ike = evaluate(scoped, runner, ("base", "ike"), settings).costs
    assert (base.answers, base.asked, base.seconds_per_answer) == (10, 10, 1.0)
    assert (ike.answers, ike.seconds_per_answer) == (10, 1.0)
    assert ike.asked is not None
    assert 0 < ike.asked < 10
    (merged,) = together([ike, ike.model_copy(update={"asked": 0, "seconds_per_answer": 0.0})])
    assert (merged.answers, merged.asked, merged.seconds_per_answer) == (20, ike.asked, 1.0)


def test_a_gate_and_an_evaluation_read_as_many_tokens_as_an_accepted_answer_has(
    compile_random: Compile, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    long, longer = "กรุงเทพมหานคร", "นครราชสีมา กรุงเทพมหานคร"
    edit = Edit(
        prompt="The capital of France is",
        subject="France",
        target_new=long,
        probes=(
            Probe(kind="paraphrase", prompt="France has the capital"),
            Probe(kind="portability", prompt="France is ruled from", target=longer),
            Probe(kind="locality", prompt="The capital of Peru is", target="Lima"),
            Probe(kind="unrelated", prompt="Water is"),
        ),
    )
    compiled = compile_random(Patch(name="long", edits=(edit,)), 3)
    has = {text: len(answer_ids(tokenizer, edit.prompt, text)) for text in (long, longer)}
    assert has[longer] > has[long] > 16
    for ask in (run_gate, lambda patch, runner: evaluate(patch, runner, settings=EvaluationSettings(latency=0))):
        runner = _Counting(llama, tokenizer)
        ask(compiled, runner)
        assert runner.asked["The capital of Peru is"] == runner.asked["Water is"] == 16
        assert runner.asked[edit.prompt] == runner.asked["France has the capital"] == read_of(has[long]) >= has[long]
        assert runner.asked["France is ruled from"] == read_of(has[longer]) >= has[longer]


class _Saying(HFRunner):
    """Answers every prompt with the text, up to the number of tokens read."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        super().__init__(model, tokenizer)
        self._text = text

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        ids = self.tokenizer(self._text, add_special_tokens=False)["input_ids"][:max_tokens]
        return [self.tokenizer.decode(ids)] * len(requests)


MONTHS = "January, February, March, April, May, June, July, August, September, October, November, December"


@pytest.mark.parametrize(
    ("new", "old", "failing"),
    [
        (MONTHS, "Rome", False),
        (MONTHS.replace("December", "Decembre"), "Rome", True),  # it ends otherwise
        ("November", "December", False),
        ("December", "October", True),  # which comes first, and late
        ("December", "May", True),
    ],
)
def test_a_gate_reads_a_long_answer_whole_and_a_rival_late_in_it(
    compile_random: Compile,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    new: str,
    old: str,
    failing: bool,
) -> None:
    edit = Edit(
        prompt="The open months are",
        subject="months",
        target_new=new,
        target_new_aliases=(f"only {MONTHS}",),  # so that as much is read for a short one
        target_true=old,
    )
    assert len(answer_ids(tokenizer, edit.prompt, MONTHS)) > 32
    _, verdict = run_gate(compile_random(Patch(name="long", edits=(edit,)), 3), _Saying(llama, tokenizer, MONTHS))
    assert any(line.startswith("reliability:") for line in verdict.failures) is failing


def test_tokens_to_read_grow_with_the_answer_and_leave_room() -> None:
    assert [read_of(answer, 16) for answer in (0, 1, 16, 17, 24, 25, 40, 41)] == [16, 16, 16, 32, 32, 48, 48, 64]
    assert all(answer <= read_of(answer, least) for answer in range(100) for least in (1, 2, 3, 16, 64))


def test_an_ike_prompt_fits_the_context(compiled: CompiledPatch, runner: HFRunner) -> None:
    prompt = compiled.manifest.edits[0].prompt
    count = len(runner.tokenizer(prompt)["input_ids"])
    prefix = build_prefix(compiled.manifest, compiled.demonstrations, prompt, runner.context - count - 6)
    assert len(runner.tokenizer(wrap(prefix, prompt))["input_ids"]) + 6 <= runner.context


def test_several_patches_are_each_measured_alone(
    patch: Patch, compile_random: Compile, compiled: CompiledPatch, runner: HFRunner
) -> None:
    other = compile_random(patch.model_copy(update={"name": "other"}), 5)
    settings = EvaluationSettings(max_tokens=6, latency=0, teacher_forced=False, answers=True)
    together = evaluate([compiled, other], runner, ("weights",), settings)
    assert together.patches == (compiled.name, other.name)
    for single in (compiled, other):
        alone = evaluate(single, runner, ("weights",), settings)
        assert alone.answers is not None
        assert together.answers is not None
        assert [a.texts for a in together.answers if a.patch == single.name] == [a.texts for a in alone.answers]
    assert together.modes == ("weights",)
    reliability = together.find("reliability", "weights")
    assert reliability is not None
    assert (reliability.n, reliability.edits) == (4, 4)


def test_relations_are_reported_apart_and_add_up(report: Report) -> None:
    assert set(report.relations) == {"capital", "height"}
    whole = report.find("reliability_chat", "weights")
    parts = [
        m for some in report.relations.values() for m in some if m.metric == "reliability_chat" and m.mode == "weights"
    ]
    assert whole is not None
    assert sum(m.value * m.n for m in parts) == pytest.approx(whole.value * whole.n)


def test_a_report_survives_json(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_report_of_an_older_or_newer_version_can_be_read(report: Report) -> None:
    record = report.model_dump(mode="json")
    newer = {name: value for name, value in record.items() if name not in ("sizes", "methods")}
    newer["measures"] = [measure | {"new": 1} for measure in newer["measures"]]
    found = Report.of(newer | {"unknown": [1]})
    assert found == report.model_copy(update={"sizes": {}, "methods": ()})
    with pytest.raises(Corrupt, match=r"expected a Report; got another record \(measures\.0\.value: .*\); remove it"):
        Report.of(record | {"measures": [record["measures"][0] | {"value": "x"}]})


def test_patches_of_several_sizes_are_also_counted_by_size(
    patch: Patch, compiled: CompiledPatch, compile_random: Compile, runner: HFRunner
) -> None:
    first = compile_random(patch.model_copy(update={"name": "first", "edits": patch.edits[:1]}), 5)
    settings = EvaluationSettings(max_tokens=4, latency=0, teacher_forced=False)
    both = evaluate([compiled, first], runner, ("weights",), settings)
    assert (list(both.sizes), both.methods) == ([1, len(patch.edits)], ("rome",))
    alone = evaluate(first, runner, ("weights",), settings)
    assert both.sizes[1] == alone.measures
    assert alone.sizes == {}
    assert evaluate(patch, runner, ("base",), settings).methods == (), "nothing is compiled"


def test_the_table_shows_every_metric_and_mode(report: Report) -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("reliability", "paraphrase", "locality_subject", "base", "weights", "ike", "tokens added", "capital"):
        assert word in text
    measure = report.find("locality", "weights")
    assert measure is not None
    assert f"{measure.value:.3f} [{measure.low:.2f}, {measure.high:.2f}]" in text


def test_a_refused_edit_fails_metrics_that_need_it_and_earns_nothing_for_locality(
    patch: Patch, compile_random: Compile, compiled: CompiledPatch, runner: HFRunner
) -> None:
    refused = Refused(
        patch.model_copy(update={"name": "other"}), "its target does not lead", compiled.demonstrations
    )  # fmt: skip
    settings = EvaluationSettings(max_tokens=6, latency=1, answers=True)
    alone = evaluate(compiled, runner, settings=settings)
    report = evaluate([compiled, refused], runner, settings=settings)
    assert report.refused == {"other": "its target does not lead"}
    for measure in report.measures:
        one = alone.find(measure.metric, measure.mode, measure.protocol)
        assert one is not None
        if measure.mode != "weights":  # base and ike need no adapter: both patches are asked
            assert (measure.refused, measure.n, measure.value) == (0, 2 * one.n, pytest.approx(one.value))
        elif measure.metric.startswith(("reliability", "paraphrase", "reverse", "portability", "ES", "PS")):
            assert (measure.refused, measure.n) == (one.n, 2 * one.n), measure.metric
            assert measure.value == pytest.approx(one.value / 2)
        elif measure.metric != "S":
            assert (measure.refused, measure.n, measure.value) == (0, one.n, one.value), measure.metric
    assert report.answers is not None
    for answer in report.answers:
        assert ("weights" in answer.texts) == ("weights" in answer.right) == (answer.patch == compiled.name)

    console = Console(file=io.StringIO(), width=200)
    console.print(table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "its target does not lead" in text
    assert "2 refused" in text


def test_a_report_counts_the_probes_that_another_edit_of_the_patch_excludes(
    patch: Patch, compile_random: Compile, runner: HFRunner
) -> None:
    first, *others = patch.edits
    probe = Probe(kind="unrelated", prompt=others[0].prompt, target=others[0].target_true)
    crossed = patch.model_copy(update={"edits": (first.model_copy(update={"probes": (probe,)}), *others)})
    report = evaluate(
        compile_random(crossed, 5),
        runner,
        ("weights",),
        EvaluationSettings(max_tokens=4, latency=0, teacher_forced=False),
    )
    assert report.not_asked == {"unrelated": 1}
    console = Console(file=io.StringIO(), width=160)
    console.print(table(report))
    assert "another edit of the patch changes the answer: 1 of unrelated" in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_counts_the_answers_of_each_mode(compiled: CompiledPatch, runner: HFRunner) -> None:
    reported: list[tuple[str, int, int]] = []
    settings = EvaluationSettings(max_tokens=2, latency=0)
    evaluate(compiled, runner, ("base", "weights"), settings, lambda *progress: reported.append(progress))
    assert reported[0] == ("base", 0, 10)
    assert ("weights", 0, 10) in reported
    assert any(what == "weights, teacher forcing" for what, _, _ in reported)


def measured(metric: str, value: float) -> Measure:
    return Measure(mode="weights", metric=metric, protocol="generation", value=value, n=4, edits=4)


def test_the_gate_names_each_metric_below_it_and_skips_metrics_without_a_question() -> None:
    report = Report(
        patches=("p",), engine="e", modes=("weights",), edits=4, split="gate", max_tokens=1,
        measures=(measured("reliability", 1.0), measured("paraphrase", 0.5), measured("locality", 0.75)),
    )  # fmt: skip
    assert report.gate(Gate(reliability=1.0, paraphrase=0.5, locality=0.7, reverse=1.0)) == []
    failures = report.gate(Gate(reliability=1.0, paraphrase=0.6, locality=0.8))
    assert failures == [
        "paraphrase: 0.500 over 4 prompts, the gate asks for 0.6",
        "locality: 0.750 over 4 prompts, the gate asks for 0.8",
    ]


def test_the_gate_does_not_judge_a_mode_that_was_not_measured(compiled: CompiledPatch, runner: HFRunner) -> None:
    report = evaluate(compiled, runner, ["base"], EvaluationSettings(max_tokens=2, latency=0, teacher_forced=False))
    modes: tuple[Mode, ...] = ("weights", "ike")
    for mode in modes:
        with pytest.raises(EditError, match=rf"measured mode \(base\), got '{mode}': evaluate the patch"):
            report.gate(Gate(), mode)


@pytest.mark.parametrize(("modes", "got"), [(["weigths"], "weigths"), (["base", "IKE"], "base, IKE"), ([], "")])
def test_no_mode_and_a_misspelt_one_are_refused(
    modes: list[Mode], got: str, compiled: CompiledPatch, runner: HFRunner
) -> None:
    with pytest.raises(EditError, match=f"^expected modes among base, weights, ike, got '{got}'$"):
        evaluate(compiled, runner, modes)


def test_a_random_delta_fails_its_gate_on_reliability(compiled: CompiledPatch, runner: HFRunner) -> None:
    report, verdict = run_gate(compiled, runner)
    assert any(line.startswith("reliability: 0.000") for line in verdict.failures)
    assert report.answers is not None


def test_a_gate_says_which_edits_it_has_no_probes_for(compile_random: Compile, runner: HFRunner) -> None:
    def edit(subject: str, *kinds: ProbeKind, split: Split = "gate") -> Edit:
        probes = tuple(Probe(kind=kind, prompt=f"{subject} {kind}", split=split) for kind in kinds)
        return Edit(prompt=f"{subject} is in", subject=subject, target_new="Rome", probes=probes)

    edits = (edit("Peru", "locality", "paraphrase"), edit("Chile", "locality", split="tune"), edit("Kenya"))
    gate = Gate(locality=0.9, paraphrase=0.5, locality_subject=0.0, unrelated=0.9)
    compiled = compile_random(Patch(name="some", edits=edits, gate=gate), 3)
    report, verdict = run_gate(compiled, runner)
    assert report.unjudged == {"paraphrase": (1, 2), "locality": (1, 2), "unrelated": (0, 1, 2)}
    assert report.not_judged == "paraphrase of 2 edits (1, 2); locality of 2 edits (1, 2); unrelated"
    assert not any(line.startswith("unrelated") for line in verdict.failures), "said, and no failure"
    added = [(), (), (Probe(kind="locality", prompt="Cuba is in"),)]
    assert run_gate(compiled, runner, added=added)[0].unjudged["locality"] == (1,)
    many = report.model_copy(update={"edits": 100, "unjudged": {"locality": tuple(range(20)), "reverse": (7,)}})
    assert many.not_judged == "locality of 20 edits (0, 1, 2, 3, 4, 5, 6, 7, …); reverse of edit 7"


def test_a_patch_that_is_not_compiled_can_only_be_asked_of_base(patch: Patch, runner: HFRunner) -> None:
    assert evaluate(patch, runner, ("base",), EvaluationSettings(latency=0)).find("reliability", "base") is not None
    with pytest.raises(EditError, match="moves is not compiled"):
        evaluate(patch, runner)
    with pytest.raises(EditError, match="nothing to evaluate"):
        evaluate([], runner)
