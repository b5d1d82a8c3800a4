"""Residuals are trained through the served forward: a batch equals single edits, training stops at the margin, δ is
clamped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, Bench, bench, leads_alone, trained
from tests.tiny import FAMILIES
from vllm_edit.deltas.delta import LowRank
from vllm_edit.deltas.forward import low_rank_forward
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.rome.factors import Part, passes_over, prepare, together
from vllm_edit.editing.rome.passes import Passes
from vllm_edit.editing.rome.residuals import Trained, train_residuals
from vllm_edit.editing.rome.served import served_leads
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row, greedy, leads
from vllm_edit.models.suffixes import Suffixes
from vllm_edit.progress import Progress

EDITS = (FRANCE, JAPAN, BRAZIL)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_batch_of_edits_gives_each_the_residual_it_gets_alone(family: str) -> None:
    setup = bench(family)
    settings = LOOSE.replace(steps=8, batch_tokens=40)
    together = trained(setup, EDITS, settings)
    for index, edit in enumerate(EDITS):
        alone = trained(setup, [edit], settings)
        assert alone.trained.steps == (together.trained.steps[index],)
        # float32 products of other shapes round differently; eight steps of Adam amplify that a little
        torch.testing.assert_close(alone.factors.residuals[0], together.factors.residuals[index], rtol=2e-3, atol=2e-3)


def test_training_stops_at_the_margin_and_greedy_decoding_then_gives_the_target() -> None:
    setup = bench()
    computed = trained(setup, EDITS, LOOSE)
    assert computed.trained.reached == (True, True, True)
    assert all(0 < steps < LOOSE.steps for steps in computed.trained.steps)
    rows = computed.prepared.taught
    torch.testing.assert_close(leads_alone(setup, computed, rows).amin(), torch.tensor(min(computed.trained.margins)))
    module = find_module(setup.base.model, setup.site.module)
    for row in rows:
        before = greedy(setup.base.model, [row], 1, LOOSE.batch_tokens)[0].answer
        A, B = computed.A[[row.group]].float(), computed.factors.residuals[[row.group]].T
        with low_rank_forward(module, A, B):
            after = greedy(setup.base.model, [row], 1, LOOSE.batch_tokens)[0].answer
        assert (before != row.answer, after) == (True, row.answer)


def test_a_trained_residual_is_shortened_until_a_margin_is_just_kept() -> None:
    setup = bench()
    long = LOOSE.replace(learning_rate=0.5, margin=3.0)
    before, after = (trained(setup, EDITS, long.replace(shortening=count)) for count in (0, 5))
    assert before.trained.steps == after.trained.steps
    assert after.trained.reached == (True, True, True)
    factors = after.factors.residuals.norm(dim=1) / before.factors.residuals.norm(dim=1)
    assert all(0.5 < factor < 0.99 for factor in factors.tolist())
    torch.testing.assert_close(after.factors.residuals, factors[:, None] * before.factors.residuals)
    # The reported margins are those of the shortened residuals. A bisection shorter, a row would miss its margin.
    leads_now = leads_alone(setup, after, after.prepared.taught)
    torch.testing.assert_close(leads_now.amin(), torch.tensor(min(after.trained.margins)))
    shorter = replace(after.trained, residuals=after.factors.residuals * (1 - 2**-6 / factors[:, None]))
    missing = leads_alone(setup, replace(after, trained=shorter), after.prepared.taught) < 3.0
    assert {row.group for row, missed in zip(after.prepared.taught, missing.tolist(), strict=True) if missed} == {
        0,
        1,
        2,
    }


def test_a_residual_that_misses_its_margin_is_not_shortened() -> None:
    setup = bench()
    beyond = LOOSE.replace(margin=1e6, steps=4)
    found = [trained(setup, [FRANCE], beyond.replace(shortening=count)) for count in (0, 3)]
    assert found[0].trained.reached == (False,)
    assert torch.equal(found[0].factors.residuals, found[1].factors.residuals)


def test_a_residual_never_leaves_the_ball_around_zero() -> None:
    setup = bench()
    settings = LOOSE.replace(clamp=0.2, margin=50.0, steps=20)
    residuals = trained(setup, [FRANCE], settings).factors.residuals
    limit = 0.2 * setup.site.residual_scale * 64**0.5
    torch.testing.assert_close(residuals.norm(), torch.tensor(limit), rtol=1e-4, atol=0.0)


def test_training_takes_no_step_where_the_base_already_answers_so() -> None:
    setup = bench()
    untrained = trained(setup, [FRANCE], LOOSE.replace(steps=0))
    answer = greedy(setup.base.model, untrained.prepared.taught, 1, LOOSE.batch_tokens)
    lead = float(leads(setup.base.model, answer, LOOSE.batch_tokens))
    module = find_module(setup.base.model, setup.site.module)
    passes = Passes(setup.base.model, module, answer, torch.ones(1, 96), setup.base.layout.layers[:2], 8192)
    found = train_residuals(passes, {0: lead / 2}, 2.0, LOOSE, torch.zeros(1, 64))
    assert (found.steps, found.reached) == ((0,), (True,))
    assert not found.residuals.any()


def test_preservation_keeps_the_answer_to_a_locality_probe_nearer_to_the_base() -> None:
    setup = bench()
    probe = Probe(kind="locality", prompt="The capital of Germany is", split="tune")
    edit = FRANCE.model_copy(update={"probes": (probe,)})
    divergences = []
    for factor in (1e-9, 50.0):
        # The solve does not preserve the probe's key: else the divergence would have no effect.
        settings = LOOSE.replace(kl_factor=factor, steps=20, margin=50.0, norm_penalty=0.0, most_kept=0)
        computed = trained(setup, [edit], settings)
        (kept,) = [row for row in computed.prepared.rows if not row.answer]
        assert setup.base.tokenizer.decode(kept.ids, skip_special_tokens=True) == probe.prompt
        module, ids = find_module(setup.base.model, setup.site.module), torch.tensor([kept.ids])
        with torch.no_grad():
            base = setup.base.model(ids).logits[0, -1].log_softmax(-1)
            with low_rank_forward(module, computed.A.float(), computed.factors.residuals.T):
                edited = setup.base.model(ids).logits[0, -1].log_softmax(-1)
        divergences.append(float((base.exp() * (base - edited)).sum()))
    assert divergences[1] < 0.5 * divergences[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2", "opt", "gptj"])
def test_running_the_blocks_below_the_site_once_changes_nothing(family: str) -> None:
    setup = bench(family)
    runs = [_steps(setup, below, whole=True) for below in ((), setup.base.layout.layers[:2])]
    assert runs[0].residuals.any()
    torch.testing.assert_close(runs[0].residuals, runs[1].residuals, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_leak_running_only_changed_tokens_gives_the_same_residuals(family: str) -> None:
    setup = bench(family, token="subject_last")
    # The prompts begin with the site's token: no earlier token could leak.
    edits = [edit.model_copy(update={"prompt": f"{edit.subject} is the", "subject": edit.subject}) for edit in EDITS]
    runs = [_steps(setup, setup.base.layout.layers[:2], whole=whole, edits=edits) for whole in (True, False)]
    assert runs[0].residuals.any()
    torch.testing.assert_close(runs[0].residuals, runs[1].residuals, rtol=1e-3, atol=1e-3)


def test_the_states_of_many_edits_are_not_stored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = bench()
    at_once = _steps(setup, setup.base.layout.layers[:2], whole=False)
    stored, most = set[int](), list[set[int]]()
    keep, release = Suffixes.keep, Suffixes.release

    def kept(suffixes: Suffixes, indices: Iterable[int]) -> dict[int, torch.Tensor] | None:
        rows = list(indices)
        stored.update(suffixes.rows[row].group for row in rows)
        most.append(set(stored))
        return keep(suffixes, rows)

    def released(suffixes: Suffixes) -> None:
        stored.clear()
        release(suffixes)

    monkeypatch.setattr(Suffixes, "keep", kept)
    monkeypatch.setattr(Suffixes, "release", released)
    seen: list[tuple[str, int, int]] = []
    in_portions = _steps(
        setup, setup.base.layout.layers[:2], whole=False, batch_tokens=1, progress=lambda *step: seen.append(step)
    )
    assert most == [{0}, {1}, {2}]
    assert stored == set()
    assert {total for _, _, total in seen} == {3}
    torch.testing.assert_close(in_portions.residuals, at_once.residuals, rtol=1e-4, atol=1e-4)
    assert (in_portions.steps, in_portions.reached) == (at_once.steps, at_once.reached)


def test_a_portion_has_all_rows_of_its_edits() -> None:
    setup = bench()
    rows = [Row(group, group, "plain", tuple(range(8)), 3) for group in (0, 1, 2, 0, 1, 2)]
    module, A = find_module(setup.base.model, setup.site.module), torch.ones(3, 96)
    # A portion has at most 16 tokens for each token of a pass; each edit has 16.
    for tokens, expected in ((1, [[0, 3], [1, 4], [2, 5]]), (2, [[0, 1, 3, 4], [2, 5]]), (4, [list(range(6))])):
        assert Passes(setup.base.model, module, rows, A, (), tokens).portions(range(6)) == expected
    joint = Passes(setup.base.model, module, rows, A, (), 1, whole=True, together=[[1, 2], [0]])
    assert joint.portions(range(6)) == [[0, 3], [1, 2, 4, 5]]


def test_a_pass_over_edits_served_together_scores_the_joint_update_and_trains_each_by_its_own_rows() -> None:
    setup, parts = bench(), [range(2), range(2, 3)]
    prepared = prepare(setup.base, setup.site, setup.moment, EDITS, LOOSE)
    joint = [Part.of(prepared, own, 0.1) for own in parts]
    A = together(prepared, joint)
    residuals = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    passes = passes_over(setup.base, setup.site, prepared, A, LOOSE, joint)
    passes.prepare(range(len(prepared.rows)))
    for scored in passes.run(range(len(prepared.rows)), residuals):
        taught = [row for row in scored.rows.tolist() if prepared.rows[row].answer]
        places = [scored.rows.tolist().index(row) for row in taught]
        rows = [prepared.rows[row] for row in taught]
        updates = [LowRank(residuals.detach()[own].T.double(), A[own]) for own in ([0, 1], [2])]
        served = served_leads(setup.base, setup.site, rows, updates, [int(row.group == 2) for row in rows], 8192)
        torch.testing.assert_close(scored.lead[places], served, rtol=1e-4, atol=1e-4)
        assert len(scored.rows) == len(prepared.rows)
        own = [place for place, row in enumerate(scored.rows.tolist()) if prepared.rows[row].group == 0]
        scored.nll[own].sum().backward()
    assert residuals.grad is not None
    assert residuals.grad[0].any()
    assert not residuals.grad[1:].any()


def _steps(
    setup: Bench,
    below: Sequence[str],
    *,
    whole: bool,
    edits: Sequence[Edit] = EDITS,
    batch_tokens: int = 2048,
    progress: Progress | None = None,
) -> Trained:
    """Three steps with a random A for each edit."""
    settings = LOOSE.replace(steps=3, margin=50.0, batch_tokens=batch_tokens)
    prepared = prepare(setup.base, setup.site, setup.moment, edits, settings)
    A = torch.randn(len(edits), 96, generator=torch.Generator().manual_seed(0)) / 96
    module = find_module(setup.base.model, setup.site.module)
    passes = Passes(setup.base.model, module, prepared.rows, A, below, settings.batch_tokens, whole=whole)
    wanted = dict.fromkeys(range(len(prepared.rows)), 50.0)
    return train_residuals(passes, wanted, 2.0, settings, torch.zeros(len(edits), 64), progress=progress)
