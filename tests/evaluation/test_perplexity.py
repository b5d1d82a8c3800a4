"""Ordinary text read by a runner, against a slow reference: one text at a time, one token at a time."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.serving.places import D_IN, D_OUT, MODULE, scoped_patch
from tests.tiny import SENTENCES, tiny_model
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.errors import EditError
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.perplexity import drift_of, perplexity
from vllm_edit.evaluation.report import Drift, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Reading, Request
from vllm_edit.evaluation.table import table
from vllm_edit.patch import Gate

TEXTS = [*SENTENCES[:5], "全世界最帥的人是誰？", "A", ""]


@torch.no_grad()
def losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> list[float]:
    """-log p of every token but the first."""
    ids = tokenizer(text)["input_ids"]
    found = []
    for end in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
        found.append(-torch.log_softmax(logits, dim=-1)[ids[end]].item())
    return found


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    every = [loss for text in texts for loss in losses(model, tokenizer, text)]
    return math.exp(sum(every) / len(every))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_text_is_read_as_it_is_alone(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(family, tokenizer)
    expected = [losses(model, tokenizer, text) for text in TEXTS]
    for rows in (1, 3, 100):
        found = HFRunner(model, tokenizer, batch=rows).read([Request(text) for text in TEXTS])
        assert [reading.tokens for reading in found] == [len(each) for each in expected]
        assert [reading.nll for reading in found] == pytest.approx([sum(each) for each in expected], rel=1e-4)
    assert perplexity(found) == pytest.approx(reference(model, tokenizer, TEXTS), rel=1e-4)


def test_perplexity_weighs_tokens_and_not_texts_and_stays_a_number() -> None:
    assert perplexity([Reading(3.0, 1), Reading(1.0, 3)]) == pytest.approx(math.e)
    assert perplexity([Reading(math.nan, 2)]) == perplexity([Reading(math.inf, 2)]) == math.exp(700)


def test_a_text_longer_than_the_context_is_read_in_pieces(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = " ".join(SENTENCES * 3)
    ids, context = tokenizer(long)["input_ids"], llama.config.max_position_embeddings
    (found,) = HFRunner(llama, tokenizer).read([Request(long)])
    starts = range(0, len(ids), context)
    assert len(starts) > 1
    assert found.tokens == len(ids) - len(starts)
    with torch.no_grad():
        parts = [torch.tensor([ids[start : start + context]]) for start in starts]
        nll = sum(float(llama(input_ids=part, labels=part).loss) * (part.shape[1] - 1) for part in parts)
    assert found.nll == pytest.approx(nll, rel=1e-4)


def test_drift_is_the_relative_change_and_the_model_stays_as_it_was(
    compiled: CompiledPatch, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    found = drift_of(TEXTS, [compiled], HFRunner(llama, tokenizer))
    base = reference(llama, tokenizer, TEXTS)
    with compiled.delta.apply(llama):
        edited = reference(llama, tokenizer, TEXTS)
    assert (found.base, found.edited) == (pytest.approx(base, rel=1e-4), pytest.approx(edited, rel=1e-4))
    assert (found.texts, found.tokens) == (len(TEXTS), sum(len(losses(llama, tokenizer, text)) for text in TEXTS))
    assert found.value == pytest.approx(edited / base - 1, rel=1e-3)
    assert abs(found.value) > 0.01, "a large random delta moves ordinary text"
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_text_without_tokens_to_predict_is_refused(
    compiled: CompiledPatch, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(EditError, match="at least two tokens"):
        drift_of([""], [compiled], HFRunner(llama, tokenizer))


def test_with_scope_subject_a_text_is_read_with_its_subjects_or_refused_as_a_server_would(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    runner, site = HFRunner(llama, tokenizer), _site(max_rank=1)
    scoped = scoped_patch(site, "world", [("France",), ("Japan",)])
    plain, named, both = "Who wrote Hamlet?", "The people of France live there.", "France or Japan?"
    assert drift_of([plain], [scoped], runner, site).value == 0
    found = drift_of([plain, named], [scoped], runner, site)
    with scoped.units[0].delta.apply(llama):
        (edited,) = runner.read([Request(named)])
    base = runner.read([Request(plain), Request(named)])
    assert found.edited == pytest.approx(perplexity([base[0], edited]))
    assert (found.unserved, found.why) == (0, "")
    found = drift_of([plain, both], [scoped], runner, site)
    assert (found.texts, found.tokens, found.unserved) == (2, base[0].tokens, 1)
    assert found.value == pytest.approx(0, abs=1e-6)  # base and patch are read in batches of another size
    assert "one adapter holds 1" in found.why


def test_an_evaluation_has_the_drift_where_it_is_given_text(
    compiled: CompiledPatch, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    runner, settings = HFRunner(llama, tokenizer), EvaluationSettings(max_tokens=2, teacher_forced=False, latency=0)
    report = evaluate(compiled, runner, ("base", "weights"), settings, passages=TEXTS)
    assert report.drift == drift_of(TEXTS, [compiled], runner)
    assert Report.model_validate_json(report.model_dump_json()) == report
    console = Console(file=io.StringIO(), width=200)
    console.print(table(report))
    assert f"perplexity of {len(TEXTS)} passages" in console.file.getvalue()  # type: ignore[attr-defined]
    assert f"drift {report.drift.value:+.2%}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert evaluate(compiled, runner, ("base", "ike"), settings, passages=TEXTS).drift is None
    assert evaluate(compiled, runner, ("base", "weights"), settings).drift is None


DRIFT = Drift(texts=4, tokens=90, base=10.0, edited=10.25, value=0.025)


@pytest.mark.parametrize(
    ("drift", "limit", "expected"),
    [
        (DRIFT, 0.025, []),
        (DRIFT, 0.02, ["perplexity_drift: 0.0250 over 4 passages (10.000 → 10.250), the gate allows 0.02"]),
        (DRIFT, None, []),
        (None, None, []),
        (
            None,
            0.02,
            [
                "perplexity_drift: not measured, since there is no text; the gate allows 0.02; add passages to the "
                "store with `vllm-edit store passages`"
            ],
        ),
        (
            DRIFT.model_copy(update={"unserved": 1, "why": "one adapter holds 1"}),
            1.0,
            ["perplexity_drift: 1 of 4 passages would be refused by a server: one adapter holds 1"],
        ),
    ],
)
def test_the_gate_limits_the_drift_and_fails_where_it_was_not_measured(
    drift: Drift | None, limit: float | None, expected: list[str]
) -> None:
    report = Report(
        patches=("p",),
        engine="e",
        modes=("weights", "ike"),
        edits=1,
        split="gate",
        max_tokens=1,
        measures=(),
        drift=drift,
    )
    gate = Gate(perplexity_drift=limit)
    assert report.gate(gate) == expected
    assert report.gate(gate, "ike") == []


def _site(max_rank: int) -> Site:
    return Site(
        base=Fingerprint(config="c", weights="w", tokenizer="t", chat_template="h"),
        model="tiny",
        modules=(MODULE,),
        layer=1,
        d_in=D_IN,
        d_out=D_OUT,
        contexts=(Context(),),
        second_moment="m",
        second_moment_count=1,
        damping=0.1,
        residual_scale=1.0,
        max_rank=max_rank,
        slots=2,
    )
