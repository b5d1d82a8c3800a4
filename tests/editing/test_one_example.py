"""Fine-tuning and LoRA on the one example: targets are learnt, the base stays unchanged, the report is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.deltas.random_deltas import logits
from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, Bench, bench, patch_of
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import ExampleSettings, example_rows
from vllm_edit.editing.baselines.finetune import FinetuneSettings, train_update
from vllm_edit.editing.baselines.lora import LoraSettings
from vllm_edit.editing.compile import METHODS, compile_patch, compile_separately
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.models.base import unchanged
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import answer_scores, batches, greedy, run_batch

EDITS = (FRANCE, JAPAN, BRAZIL)
LONG = Edit(prompt="The head office of Nokia is in", subject="Nokia", target_new="Paris, and people")
SETTINGS: dict[str, ExampleSettings] = {
    "ft": FinetuneSettings(steps=100, learning_rate=0.05),
    "lora": LoraSettings(steps=150, learning_rate=0.02),
}
"""A random model needs larger updates than one that knows facts."""
BOTH = pytest.mark.parametrize("method", sorted(SETTINGS))


@pytest.fixture(scope="module")
def llama() -> Bench:
    return bench()


def compiled(setup: Bench, method: str, *edits: Edit, **changes: Any) -> CompiledPatch:
    settings = SETTINGS[method].replace(**changes)
    return compile_patch(
        patch_of(*edits), setup.base, method, site=setup.site, site_tensors=setup.moment, settings=settings
    )


def taught(setup: Bench, *edits: Edit) -> list[bool]:
    """Whether greedy decoding from each edit's prompt gives its target's ids."""
    found = []
    for row in example_rows(edits, setup.base.tokenizer):
        decoded = greedy(setup.base.model, [row], len(row.answer), 4096)[0]
        found.append(decoded.answer == row.answer)
    return found


@BOTH
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_target_of_a_patch_is_learnt_and_only_within_the_delta(method: str, family: str) -> None:
    setup = bench(family)
    before = setup.base.state_digest()
    result = compiled(setup, method, *EDITS, LONG)
    assert setup.base.state_digest() == before
    assert taught(setup, *EDITS, LONG) == [False] * 4
    with result.delta.apply(setup.base.model):
        assert taught(setup, *EDITS, LONG) == [True] * 4
    assert result.manifest.method == method
    assert (result.manifest.modules, result.manifest.factors) == (setup.site.modules, None)
    assert result.report.missed == ()
    assert all(edit.served_margin >= 0.1 for edit in result.report.edits)


@BOTH
def test_a_site_of_several_modules_is_trained_as_a_whole(method: str) -> None:
    layout = bench().base.layout
    setup = bench(modules=layout.down[1:3])
    result = compiled(setup, method, *EDITS)
    assert result.manifest.modules == layout.down[1:3]
    assert all(part.norm() > 0 for part in result.delta.parts.values())
    with result.delta.apply(setup.base.model):
        assert taught(setup, *EDITS) == [True] * 3


@BOTH
def test_the_same_edits_give_the_same_patch_and_other_settings_another(llama: Bench, method: str) -> None:
    first = compiled(llama, method, FRANCE)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert compiled(llama, method, FRANCE, batch_tokens=16, on_missed="report").name == first.name
    assert torch.equal(torch.random.get_rng_state(), state)
    assert compiled(llama, method, FRANCE, steps=50).name != first.name
    assert first.manifest.settings["rank"] == first.manifest.rank == 8


@BOTH
def test_an_exception_inside_training_leaves_the_base_as_it_was(llama: Bench, method: str) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    patch = patch_of(FRANCE)
    with unchanged(llama.base), pytest.raises(KeyboardInterrupt):
        compile_patch(patch, llama.base, method, site=llama.site, site_tensors=llama.moment, progress=stop)
    assert not hasattr(llama.base.model, "peft_config")


@BOTH
def test_a_missed_target_is_refused_by_name_or_reported(llama: Bench, method: str) -> None:
    with unchanged(llama.base), pytest.raises(UnsafeEdit, match=r"edit 0 \('The capital of France is' → 'people'\)"):
        compiled(llama, method, FRANCE, steps=1)
    assert compiled(llama, method, FRANCE, steps=1, on_missed="report").report.missed == (0,)


@BOTH
def test_a_patch_with_scope_subject_is_refused_with_the_missed_targets_of_all_subjects(
    llama: Bench, method: str
) -> None:
    scoped = patch_of(FRANCE, JAPAN).model_copy(update={"scope": "subject"})
    settings = SETTINGS[method].replace(steps=1)
    with unchanged(llama.base), pytest.raises(UnsafeEdit) as refused:
        compile_patch(scoped, llama.base, method, site=llama.site, site_tensors=llama.moment, settings=settings)
    assert all(edit.prompt in str(refused.value) for edit in (FRANCE, JAPAN))


@BOTH
def test_training_stops_below_the_stop_loss_and_not_before(llama: Bench, method: str) -> None:
    early = compiled(llama, method, FRANCE, stop_loss=1.0).report
    full = compiled(llama, method, FRANCE, stop_loss=0.0).report
    assert early.steps < full.steps == SETTINGS[method].steps
    assert full.loss < early.loss < 1.0


@pytest.mark.slow
@BOTH
def test_patches_are_compiled_separately_as_one_after_the_other(llama: Bench, method: str) -> None:
    patches = [patch_of(FRANCE, name="one"), patch_of(JAPAN, BRAZIL, name="two"), patch_of(FRANCE, name="three")]
    place = {"site": llama.site, "site_tensors": llama.moment, "settings": SETTINGS[method]}
    found = compile_separately(patches, llama.base, method, **place)  # type: ignore[arg-type]
    alone = [compile_patch(patch, llama.base, method, **place) for patch in patches]  # type: ignore[arg-type]
    assert [item.name for item in found] == [patch.name for patch in alone]


@BOTH
def test_a_report_without_a_training_step_has_no_loss_and_is_valid_json(llama: Bench, method: str) -> None:
    report = compiled(llama, method, FRANCE, steps=0, on_missed="report").report
    assert (report.steps, report.loss) == (0, None)
    json.dumps(report.as_record(), allow_nan=False)


def test_the_norm_limit_bounds_every_entry_of_the_update(llama: Bench) -> None:
    rows = example_rows(EDITS, llama.base.tokenizer)
    module = llama.site.module
    rms = float(linear_weight(find_module(llama.base.model, module)).detach().square().mean().sqrt())
    free = train_update(llama.base, llama.site, rows, FinetuneSettings()).dense[module]
    limited = train_update(llama.base, llama.site, rows, FinetuneSettings(norm_limit=0.1)).dense[module]
    assert float(free.abs().max()) > 0.2 * rms
    assert float(limited.abs().max()) == pytest.approx(0.1 * rms)


def test_fine_tunings_update_is_full_rank_and_the_energy_after_truncation_is_reported(llama: Bench) -> None:
    settings = FinetuneSettings(rank=2, on_missed="report")
    rows = example_rows(EDITS, llama.base.tokenizer)
    dense = train_update(llama.base, llama.site, rows, settings).dense[llama.site.module].double()
    spectrum = torch.linalg.svdvals(dense)
    assert int((spectrum > 1e-3 * spectrum[0]).sum()) > len(EDITS)
    patch = patch_of(*EDITS)
    result = compile_patch(patch, llama.base, "ft", site=llama.site, site_tensors=llama.moment, settings=settings)
    kept = result.delta.parts[llama.site.module].dense().double()
    expected = float(spectrum[:2].square().sum() / spectrum.square().sum())
    assert result.report.energy_kept == pytest.approx(expected)
    assert float((dense - kept).square().sum()) == pytest.approx(float(spectrum[2:].square().sum()), rel=1e-4)
    margins = [(edit.trained_margin, edit.served_margin) for edit in result.report.edits]
    assert any(abs(trained - served) > 0.01 for trained, served in margins), "checked again after truncation"


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_the_nearest_update_of_a_rank_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(dense.double(), full_matrices=False)
    found, dropped = LowRank.nearest(dense, 3)
    torch.testing.assert_close(found.dense(), U[:, :3] * S[:3] @ Vh[:3])
    assert dropped == pytest.approx(float(S[3:].square().sum()))
    whole, nothing = LowRank.nearest(dense, 12)
    torch.testing.assert_close(whole.dense(), dense.double())
    assert nothing == 0.0


def test_peft_loads_the_adapter_and_answers_as_our_delta_does(llama: Bench, tmp_path: Path) -> None:
    result = compiled(llama, "lora", FRANCE)
    ids = llama.base.tokenizer(FRANCE.prompt)["input_ids"]
    with result.delta.apply(llama.base.model):
        ours = logits(llama.base.model, ids)
    margins = result.report.edits[0]
    assert margins.served_margin == pytest.approx(margins.trained_margin, abs=1e-3), "alpha is folded in"
    folder = result.delta.save_peft(tmp_path / "adapter", base_name="tiny")
    theirs = PeftModel.from_pretrained(bench().base.model, folder)
    torch.testing.assert_close(logits(theirs, ids), ours, rtol=1e-4, atol=1e-4)
    assert Delta.load_peft(folder).digest == result.delta.digest


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_lora_trains_without_the_dropout_of_the_base(family: str) -> None:
    setup = bench(family)
    rows = example_rows(EDITS, setup.base.tokenizer)
    (batch,) = batches(setup.base.model, rows, range(len(rows)), 2048)
    with torch.no_grad():
        nll, _ = answer_scores(run_batch(setup.base.model, batch), batch)
    first = compiled(setup, "lora", *EDITS, steps=1, on_missed="report")
    assert first.report.loss == pytest.approx(float(nll.mean()), abs=1e-5), "B is 0 in the first step"


def test_lora_trains_with_the_dropout_of_the_adapter(llama: Bench) -> None:
    with_dropout, again, without = (
        compiled(llama, "lora", FRANCE, steps=3, dropout=dropout, on_missed="report") for dropout in (0.5, 0.5, 0.0)
    )
    assert with_dropout.delta.digest == again.delta.digest
    assert with_dropout.delta.digest != without.delta.digest


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("ft", {"stride": 1}, "unknown settings stride; settings of ft are .*norm_limit"),
        ("lora", {"norm_limit": 1}, "unknown settings norm_limit; settings of lora are .*dropout"),
        ("ft", {"norm_limit": 0}, "norm_limit must be positive; got 0"),
        (
            "ft",
            {"steps": -1, "learning_rate": 0},
            "steps must not be negative; got -1; learning_rate must be positive; got 0",
        ),
        ("ft", {"steps": "many"}, "settings of ft: "),
        ("ft", {"served_margin": "high"}, "settings of ft: "),
        ("lora", {"served_margin": float("nan")}, "served_margin must be a number; got nan"),
        ("ft", {"served_margin": float("inf")}, "served_margin must be a number; got inf"),
        ("mend", {"served_margin": "high"}, "settings of mend: "),
        ("mend", {"served_margin": float("nan")}, "served_margin must be a number; got nan"),
        ("lora", {"dropout": 1}, "dropout must be between 0 and 1; got 1"),
        ("lora", {"on_missed": "ignore"}, "on_missed must be one of error, report; got 'ignore'"),
    ],
)
def test_invalid_settings_are_refused_with_the_reason(method: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        METHODS[method].settings.of(values)


@BOTH
def test_settings_of_another_method_and_too_high_a_rank_are_refused(llama: Bench, method: str) -> None:
    with pytest.raises(EditError, match=r"expected \w+Settings or a mapping, got RomeSettings"):
        compile_patch(patch_of(FRANCE), llama.base, method, site=llama.site, site_tensors=llama.moment, settings=LOOSE)
    with pytest.raises(EditError, match=r"rank 16 exceeds the site's maximum of 8: use --set rank=8"):
        compiled(llama, method, FRANCE, rank=16)
