"""MEMIT over several layers of a tiny model: spread, corrected, composed, scoped, and the base untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench, patch_of
from tests.memit.examples import ALPHAEDIT, MEMIT, TEXTS, Layered, layered
from tests.mend.network_sites import site_for
from tests.mend.test_mend import network_for
from vllm_edit.artefacts.site import Context, Token
from vllm_edit.composition.checks import vouch
from vllm_edit.composition.compose import compose
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.deltas.apply import applied
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.memit import corrections
from vllm_edit.editing.memit.edits import compile_at, compile_edits
from vllm_edit.editing.memit.layers import layers_of
from vllm_edit.editing.memit.memit_settings import MemitSettings
from vllm_edit.editing.memit.null_space import NullSpace
from vllm_edit.editing.memit.spread import spread, updates_of
from vllm_edit.editing.rome.factors import prepare
from vllm_edit.editing.rome.health import EditHealth
from vllm_edit.editing.rome.keys import measure_inputs
from vllm_edit.editing.second_moment import SecondMoment, second_moments
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site.sites import MadeSite, over_layers
from vllm_edit.editing.site_tensors import site_tensors_of
from vllm_edit.errors import EditError, Incompatible, UnsafeEdit
from vllm_edit.models.hooks import capture_outputs
from vllm_edit.models.rows import Row
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

EDITS = (FRANCE, JAPAN, BRAZIL)


@pytest.fixture(scope="module")
def llama() -> Layered:
    return layered()


def answer(setup: Layered, edit: Edit) -> str:
    """The word that follows the edit's prompt by greedy decoding."""
    ids = torch.tensor([setup.base.tokenizer(edit.prompt)["input_ids"]])
    with torch.no_grad():
        return str(setup.base.tokenizer.decode(setup.base.model(ids).logits[0, -1].argmax())).strip()


def stream(setup: Layered, edit: Edit) -> torch.Tensor:
    """The output of the last block at the prompt's last token."""
    name = setup.base.layout.layers[-1]
    with torch.no_grad(), capture_outputs(setup.base.model, [name]) as captured:
        setup.base.model(torch.tensor([setup.base.tokenizer(edit.prompt)["input_ids"]]))
    return captured[name][0, -1]


@pytest.mark.parametrize(
    ("family", "token", "last"), [("llama", "last", 2), ("gpt2", "last", 2), ("llama", "subject_last", 1)]
)
def test_every_target_is_given_with_an_update_at_each_layer_and_the_base_stays_bit_identical(
    family: str, token: Token, last: int
) -> None:
    setup = layered(family, token, last)
    before = setup.base.state_digest(), [answer(setup, edit) for edit in EDITS]
    result = setup.compiled(*EDITS)
    assert list(result.delta.parts) == list(setup.site.modules)
    assert [part.rank for part in result.delta.parts.values()] == [3, 3]
    with result.delta.apply(setup.base.model):
        assert [answer(setup, edit) for edit in EDITS] == [edit.target_new for edit in EDITS]
    assert (setup.base.state_digest(), [answer(setup, edit) for edit in EDITS]) == before
    assert result.report.missed == ()


def test_the_layers_share_the_residual_and_together_make_all_of_it(llama: Layered) -> None:
    settings = MEMIT.replace(damping=0.0, spreads=1)
    layers = layers_of(llama.base, llama.site, llama.moments, lambda moment: moment)
    prepared = prepare(llama.base, layers[-1].site, layers[-1].metric, [FRANCE], settings)
    wanted = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    before = stream(llama, FRANCE)
    found = updates_of(spread(llama.base, layers, prepared, [FRANCE], wanted, 0.0, settings))
    first, last = (layer.module for layer in layers)
    inputs = prepared.rows[:1]
    (key,) = measure_inputs(llama.base.model, first, inputs, 4096)
    torch.testing.assert_close(found[first].dense() @ key, wanted[0] / 2, rtol=1e-3, atol=1e-4)
    with applied(llama.base.model, found):
        torch.testing.assert_close(stream(llama, FRANCE) - before, wanted[0], rtol=1e-2, atol=1e-2)
    with applied(llama.base.model, {first: found[first]}):
        (moved,) = measure_inputs(llama.base.model, last, inputs, 4096)
        missing = wanted[0] - (stream(llama, FRANCE) - before)
    torch.testing.assert_close(found[last].dense() @ moved, missing, rtol=1e-3, atol=1e-3)
    assert (missing - wanted[0] / 2).norm() > 0.01 * wanted.norm(), "the block between must matter"


def test_blocks_that_scale_their_mlps_output_share_the_residual_and_do_not_overshoot() -> None:
    granite = layered("granite")
    assert granite.base.layout.gain == pytest.approx([0.22] * 3)
    layers = layers_of(granite.base, granite.site, granite.moments, lambda moment: moment)
    settings = MEMIT.replace(damping=0.0, spreads=1)
    prepared = prepare(granite.base, layers[-1].site, layers[-1].metric, [FRANCE], settings)
    wanted = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    before = stream(granite, FRANCE)
    found = updates_of(spread(granite.base, layers, prepared, [FRANCE], wanted, 0.0, settings))
    (key,) = measure_inputs(granite.base.model, layers[0].module, prepared.rows[:1], 4096)
    torch.testing.assert_close(found[layers[0].module].dense() @ key, wanted[0] / 2, rtol=1e-3, atol=1e-4)
    with applied(granite.base.model, found):
        torch.testing.assert_close(stream(granite, FRANCE) - before, 0.22 * wanted[0], rtol=1e-2, atol=1e-2)


def test_a_second_pass_adds_what_damping_left_missing(llama: Layered) -> None:
    layers = layers_of(llama.base, llama.site, llama.moments, lambda moment: moment)
    prepared = prepare(llama.base, layers[-1].site, layers[-1].metric, EDITS, MEMIT)
    wanted = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    before = torch.stack([stream(llama, edit) for edit in EDITS])
    left = []
    for passes in (1, 2):
        settings = MEMIT.replace(damping=0.5, spreads=passes)
        found = spread(llama.base, layers, prepared, EDITS, wanted, 0.5, settings)
        with applied(llama.base.model, updates_of(found)):
            moved = torch.stack([stream(llama, edit) for edit in EDITS]) - before
        left.append(float((wanted - moved).norm() / wanted.norm()))
    assert left[0] > 0.2
    assert left[1] < 0.7 * left[0]


def test_two_patches_about_one_subject_at_its_token_are_refused_and_one_patch_of_both_is_not() -> None:
    setup = layered("llama", "subject_last", 1)
    speech = Edit(prompt="Japan and its people speak", subject="Japan", relation="language", target_new="Italy")
    home = Edit(prompt="Japan is home to the", subject="Japan", relation="people", target_new="Paris")
    found = MEMIT.replace(on_missed="report")
    apart = [setup.compiled(edit, settings=found, name=f"patch-{edit.relation}") for edit in (home, speech)]
    with pytest.raises(Incompatible, match=r"edit one subject, Japan: .* compile these edits in one patch"):
        compose(apart)
    together = setup.compiled(home, speech, settings=found)
    assert [len(group.edits) for group in together.manifest.groups] == [2]
    brazil = setup.compiled(BRAZIL, settings=found, name="brazil")
    assert compose([together, brazil]).manifest.rank == 2


def test_rows_that_fail_under_the_whole_update_are_corrected_at_the_last_layer(llama: Layered) -> None:
    strict = MEMIT.replace(damping=1.0, spreads=1, margin=0.11, served_margin=0.2, learning_rate=0.02)
    with pytest.raises(UnsafeEdit, match="the target leads by"):
        llama.compiled(*EDITS, settings=strict.replace(rounds=1))
    corrected = llama.compiled(*EDITS, settings=strict)
    assert min(line.served_margin for line in corrected.report.edits) >= strict.served_margin
    uncorrected = llama.compiled(*EDITS, settings=strict.replace(rounds=1, on_missed="report"))
    first, last = llama.site.modules
    assert torch.equal(corrected.delta.parts[first].A, uncorrected.delta.parts[first].A)
    assert not torch.equal(corrected.delta.parts[last].B, uncorrected.delta.parts[last].B)


def test_a_correction_that_makes_more_rows_fail_is_not_taken(llama: Layered, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = list[int]()
    served = corrections.leads

    def worsening(model: object, rows: list[Row], *rest: object) -> torch.Tensor:
        checks.append(len(rows))
        failing = torch.arange(len(rows)) < len(checks)  # one row at first, one more after each correction
        return torch.where(failing, -1.0, served(model, rows, *rest))  # type: ignore[arg-type]

    monkeypatch.setattr(corrections, "leads", worsening)
    settings = MEMIT.replace(rounds=3, on_missed="report")
    result = llama.compiled(*EDITS, settings=settings)
    assert len(checks) == 3
    assert [line.served_margin >= settings.served_margin for line in result.report.edits] == [False, True, True]
    monkeypatch.undo()
    uncorrected = llama.compiled(*EDITS, settings=settings.replace(rounds=1))
    assert result.delta.digest == uncorrected.delta.digest


def test_rows_under_contexts_are_checked_only_if_that_is_asked_for() -> None:
    setup = layered(contexts=(Context(), Context(prefix="Because. "), Context(chat=True)))
    loose = MEMIT.replace(on_missed="report", forms=("plain", "chat"), rounds=1)
    (bare,) = setup.compiled(FRANCE, settings=loose).report.edits
    (every,) = setup.compiled(FRANCE, settings=loose.replace(checked_rows="all")).report.edits
    assert isinstance(bare, EditHealth)
    assert isinstance(every, EditHealth)
    assert (bare.rows, every.rows) == (2, 3)
    assert MemitSettings.of({}, "subject").checked_rows == "all"


@pytest.mark.parametrize("settings", [MEMIT, ALPHAEDIT])
def test_the_stored_factors_give_the_update_again(llama: Layered, settings: MemitSettings) -> None:
    result = llama.compiled(*EDITS, settings=settings.replace(on_missed="report"))
    again = compose([result])
    for module, part in result.delta.parts.items():
        assert (again.delta.parts[module].dense() - part.dense()).norm() < 1e-4 * part.norm()
    assert vouch(again) == []


def test_patches_compiled_apart_are_composed_from_their_factors_and_both_answer(llama: Layered) -> None:
    exact = MEMIT.replace(damping=0.0)
    members = [llama.compiled(edit, settings=exact, name=f"of-{edit.subject.lower()}") for edit in EDITS]
    composed = compose(members, site=llama.site)
    assert composed.manifest.rank == 3
    assert composed.algebra is not None
    assert composed.algebra.constraint_error == pytest.approx(0.0, abs=1e-3)
    for edit, member in zip(EDITS, members, strict=True):
        before = stream(llama, edit)
        with member.delta.apply(llama.base.model):
            own = stream(llama, edit) - before
        with composed.delta.apply(llama.base.model):
            assert answer(llama, edit) == edit.target_new
            # The keys at the second layer are those that the member measured; only leaks to earlier tokens differ.
            assert (stream(llama, edit) - before - own).norm() < 0.25 * own.norm()


@pytest.mark.parametrize("settings", [MEMIT, ALPHAEDIT])
def test_patches_compiled_in_one_batch_are_those_compiled_one_by_one(llama: Layered, settings: MemitSettings) -> None:
    patches = [patch_of(FRANCE), Patch(name="both", edits=(JAPAN, BRAZIL))]
    place = {"site": llama.site, "site_tensors": llama.moments}
    batched = compile_separately(patches, llama.base, settings.title, settings=settings, **place)
    for patch, one in zip(patches, batched, strict=True):
        alone = compile_patch(patch, llama.base, settings.title, settings=settings, **place)
        assert (one.manifest.groups, one.manifest.columns) == (alone.manifest.groups, alone.manifest.columns)
        for module, part in alone.delta.parts.items():
            assert (one.delta.parts[module].dense() - part.dense()).norm() < 1e-3 * part.norm()


def test_a_batch_names_the_missed_edits_of_all_its_patches_and_refuses_a_subject_in_two(llama: Layered) -> None:
    place = {"site": llama.site, "site_tensors": llama.moments, "settings": MEMIT.replace(served_margin=1000.0)}
    patches = [Patch(name=edit.subject.lower(), edits=(edit,)) for edit in EDITS]
    with pytest.raises(UnsafeEdit) as refused:
        compile_separately(patches, llama.base, "memit", **place)
    assert [edit.subject in str(refused.value) for edit in EDITS] == [True] * 3
    again = Patch(name="again", edits=(FRANCE,))
    with pytest.raises(EditError, match="france and again both edit 'France'; compile them one after the other"):
        compile_separately([*patches, again], llama.base, "memit", **place)


def test_a_conflict_is_refused_and_decided_as_at_one_module(llama: Layered) -> None:
    other = FRANCE.model_copy(update={"target_new": "French"})
    members = [llama.compiled(FRANCE, name="first"), llama.compiled(other, JAPAN, name="second")]
    with pytest.raises(EditError, match="conflict: "):
        compose(members)
    decided = compose(members, policy="first")
    assert sorted(edit.target_new for edit in decided.manifest.edits) == sorted((FRANCE.target_new, JAPAN.target_new))
    with decided.delta.apply(llama.base.model):
        assert answer(llama, FRANCE) == FRANCE.target_new


def test_with_scope_subject_each_subject_is_a_unit_and_two_are_solved_together(llama: Layered, tmp_path: Path) -> None:
    loose = MEMIT.replace(damping=0.0)
    world = llama.compiled(*EDITS, settings=loose, name="world", scope="subject")
    assert [unit.manifest.rank for unit in world.units] == [1, 1, 1]
    narrowing = Narrowing(world, llama.site)
    alone, pair = narrowing.of(FRANCE.prompt), narrowing.of(f"{FRANCE.prompt} and {JAPAN.prompt}")
    assert alone is world.units[0]
    assert pair is not None
    assert (list(pair.delta.parts), pair.manifest.rank) == (list(llama.site.modules), 2)
    store = Store.create(tmp_path / "store", llama.site, llama.moments.tensors())
    read = store.load(store.save(world))
    assert [unit.delta.digest for unit in read.units] == [unit.delta.digest for unit in world.units]
    assert problems_of(store) == []


def test_alphaedit_changes_nothing_that_ordinary_text_uses(llama: Layered) -> None:
    result = llama.compiled(*EDITS, settings=ALPHAEDIT.replace(on_missed="report"))
    plain = llama.compiled(*EDITS, settings=MEMIT.replace(on_missed="report"))
    assert result.manifest.null_space == ALPHAEDIT.null_space
    for module, moment in llama.moments.by_module.items():
        values, vectors = torch.linalg.eigh(moment.matrix)
        used = vectors[:, values >= ALPHAEDIT.null_space * values.mean()]
        moved, anyway = (((one.delta.parts[module].dense() @ used).norm()) for one in (result, plain))
        assert moved < 1e-4 * result.delta.parts[module].norm()
        assert anyway > 0.1 * plain.delta.parts[module].norm()


def test_an_empty_null_space_is_refused_with_the_smallest_eigenvalue(llama: Layered) -> None:
    with pytest.raises(EditError, match=r"no eigenvalue of the second moment is below 1e-09 times their scale"):
        NullSpace.of(next(iter(llama.moments.by_module.values())), 1e-9)


def test_a_store_holds_a_second_moment_for_each_layer_and_gives_them_back(llama: Layered, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", llama.site, llama.moments.tensors())
    read = site_tensors_of(store.site(), store.site_tensors())
    assert isinstance(read, SecondMoments)
    assert (list(read.by_module), read.digest) == (list(llama.site.modules), llama.site.second_moment)
    patch = Patch(name="capital", edits=(FRANCE,))
    compiled = compile_patch(patch, llama.base, "memit", store=store, settings=MEMIT)
    assert store.load(store.save(compiled)).manifest.method == "memit"
    assert problems_of(store) == []


def test_the_layers_moments_are_measured_in_one_pass_and_one_layer_leaves_the_site_as_it_was(llama: Layered) -> None:
    steps = set[str]()
    base, modules = llama.base, llama.site.modules
    together = second_moments(base, modules, TEXTS, progress=lambda step, *_: steps.add(step))
    assert steps == {"second moments of 2 modules"}
    for module, moment in zip(modules, together, strict=True):
        assert torch.equal(moment.matrix, llama.moments.by_module[module].matrix)
    (last,) = second_moments(base, modules[-1:], TEXTS)
    site = llama.site.model_copy(update={"modules": modules[-1:], "layer": 2, "second_moment": last.digest})
    alone = over_layers(base, MadeSite(site, last), [2], TEXTS)
    assert (alone.site.digest, alone.moments.digest) == (site.digest, last.digest)


def test_sites_and_methods_that_do_not_fit_are_refused(llama: Layered) -> None:
    patch = Patch(name="capital", edits=(FRANCE,))
    with pytest.raises(EditError, match=r"method rome cannot use this store's site; .*alphaedit, .*memit"):
        compile_patch(patch, llama.base, "rome", site=llama.site, site_tensors=llama.moments, settings=LOOSE)
    network = network_for(llama.base)
    with pytest.raises(EditError, match=r"method memit cannot use this store's site; .*mend"):
        compile_patch(patch, llama.base, "memit", site=site_for(llama.base, network), site_tensors=network)
    foreign = llama.site.model_copy(update={"modules": ("model.layers.0.mlp.up_proj",)})
    with pytest.raises(EditError, match=r"edits MLP down projections, the site has model.layers.0.mlp.up_proj"):
        compile_edits(llama.base, foreign, next(iter(llama.moments.by_module.values())), [FRANCE], MEMIT)
    narrow = llama.site.model_copy(update={"max_rank": 1})
    with pytest.raises(EditError, match="has 2 key groups and needs rank 2"):
        compile_edits(llama.base, narrow, llama.moments, [FRANCE, JAPAN], MEMIT)


def test_layers_that_a_residual_cannot_be_spread_over_are_refused(llama: Layered) -> None:
    gemma = bench("gemma2")
    (moment,) = second_moments(gemma.base, [gemma.site.module], TEXTS)
    with pytest.raises(EditError, match="normalises the output of its MLPs"):
        over_layers(gemma.base, MadeSite(gemma.site, moment), [1, 2], TEXTS)
    assert over_layers(gemma.base, MadeSite(gemma.site, moment), [2], TEXTS).site.modules == gemma.site.modules
    made = MadeSite(llama.site.model_copy(update={"modules": llama.site.modules[-1:], "layer": 2}), moment)
    for layers in ([2, 1], [0, 1]):
        with pytest.raises(EditError, match="expected ascending layers that end at 2"):
            over_layers(llama.base, made, layers, TEXTS)
    other = SecondMoment(moment.matrix, moment.count + 1)
    with pytest.raises(EditError, match="must be measured on one text"):
        over_layers(llama.base, MadeSite(made.site, other), [1, 2], TEXTS)


def test_keys_of_earlier_edits_are_not_moved_and_the_later_edit_still_holds(llama: Layered) -> None:
    exact = MEMIT.replace(damping=0.0)
    layers = layers_of(llama.base, llama.site, llama.moments, lambda moment: moment)
    earlier = compile_at(llama.base, layers, [FRANCE], exact)
    assert earlier.factors is not None
    keys = dict(zip(llama.site.modules, earlier.factors.keys[:, None], strict=True))  # one column for each module
    protecting = [replace(layer, earlier=keys[layer.module]) for layer in layers]
    with applied(llama.base.model, earlier.delta.parts):
        later = compile_at(llama.base, protecting, [JAPAN], exact)
        free = compile_at(llama.base, layers, [JAPAN], exact)
    for module, key in keys.items():
        assert (later.delta.parts[module].dense() @ key[0]).norm() < 1e-3
        assert (free.delta.parts[module].dense() @ key[0]).norm() > 0.01
    both = Delta.concatenate([earlier.delta, later.delta])
    with both.apply(llama.base.model):
        assert [answer(llama, edit) for edit in (FRANCE, JAPAN)] == [FRANCE.target_new, JAPAN.target_new]
