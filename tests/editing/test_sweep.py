"""Choosing a site measures token and layer on probes that were not trained on, and fixes the measured values."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE
from tests.tiny import SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.artefacts.site import Context, Site
from vllm_edit.edit import Edit, Probe, ProbeKind
from vllm_edit.editing.rome.rounds import solve_parts
from vllm_edit.editing.site import sweep, trials
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.editing.site.sweep import MARGINS, choose_site
from vllm_edit.errors import EditError, Unsolvable
from vllm_edit.models.base import Base

TEXTS = SENTENCES * 5


def base_of(family: str) -> Base:
    tokenizer = tiny_tokenizer()
    return Base.of(tiny_model(family, tokenizer), tokenizer)


def probed(edit: Edit, *, split: str = "tune") -> Edit:
    probes = (
        Probe(kind="paraphrase", prompt=edit.prompt, split=split),  # a random model takes no other wording
        Probe(kind="locality", prompt="Apple was founded by", split=split),
    )
    return edit.model_copy(update={"probes": probes})


def with_only(kind: ProbeKind, edit: Edit) -> Edit:
    return edit.model_copy(update={"probes": tuple(probed(edit).probes_of(kind))})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_sweep_finds_where_edits_work_and_leaves_the_base_alone(family: str) -> None:
    base = base_of(family)
    before = base.state_digest()
    seen: list[str] = []
    choice = choose_site(
        base,
        [probed(FRANCE), probed(JAPAN), probed(BRAZIL)],
        TEXTS,
        layers=[0, 2],
        contexts=(Context(),),
        dampings=(0.0, 0.1),
        settings=LOOSE.replace(steps=25, on_missed="report"),
        progress=lambda what, *_: seen.append(what),
    )
    singles = [row for row in choice.table if not row.joint]
    assert {(row.token, row.layer) for row in singles} == {(t, k) for t in ("subject_last", "last") for k in (0, 2)}
    screened = [row.score for row in singles[-5:-1]]  # after the finalists, before the larger margin
    assert screened == sorted(screened, reverse=True)
    site = choice.made.site
    assert site.margin in MARGINS
    assert (site.token, site.layer) == (singles[0].token, singles[0].layer)
    # A random model recalls nothing from its subjects: the last token takes every edit.
    assert (site.token, singles[0].reliability, singles[0].paraphrase) == ("last", 1.0, 1.0)
    assert site.damping in (0.0, 0.1)
    assert site.second_moment == choice.made.moment.digest
    assert {"trying layers", "choosing the margin", "choosing the damping"} <= set(seen)
    assert base.state_digest() == before


def test_only_the_finalists_are_tried_with_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("llama")
    contexts = (Context(), *(Context(prefix=f"{word}. ") for word in ("Apple", "Rome", "Music", "Paris", "Tea")))
    tried: list[tuple[int, int, int]] = []  # contexts, edits, steps

    def noted(base: Base, site: Site, prepared: Any, edits: Sequence[Edit], *given: Any, **more: Any) -> Any:
        tried.append((len(site.contexts), len(edits), given[1].steps))
        return solve_parts(base, site, prepared, edits, *given, **more)

    monkeypatch.setattr(trials, "solve_parts", noted)
    choice = choose_site(
        base,
        [probed(FRANCE), probed(JAPAN)],
        TEXTS,
        contexts=contexts,
        dampings=(0.0,),
        margins=(1.0, 2.0),
        settings=LOOSE.replace(steps=20, on_missed="report"),
    )
    # Six candidates; one finalist to three, one by one and together; one larger margin.
    assert tried[:6] == [(1, 2, 10)] * 6
    assert set(tried[6:]) == {(2, 2, 20)}
    assert 3 <= len(tried[6:]) <= 7
    assert choice.made.site.contexts == contexts


def test_the_finalists_are_the_best_candidate_its_tie_and_the_shallowest_near_to_it() -> None:
    def of(layer: int, score: float) -> Any:
        return SimpleNamespace(layer=layer, score=score), layer

    found = [of(6, 0.69), of(26, 0.66), of(9, 0.65), of(17, 0.64), of(3, 0.62), of(0, 0.5)]
    assert [place for _, place in sweep._finalists(found)] == [6, 3]
    assert [place for _, place in sweep._finalists([of(7, 0.7), *found])] == [7, 6, 3]


def test_a_site_is_judged_by_edits_one_by_one_and_by_all_in_one_solve() -> None:
    setup, far, near = (SimpleNamespace(score=score) for score in (0.6, 0.2, 0.5))
    finals: list[Any] = [sweep._Finalist(setup, None, together) for together in (near, far, None)]  # type: ignore[arg-type]
    assert [final.score for final in finals] == pytest.approx([0.55, 0.4, 0.3])


def test_of_finalists_that_tie_at_the_subjects_token_the_shallowest_is_chosen() -> None:
    def final(layer: int, score: float, token: str = "subject_last") -> Any:
        return SimpleNamespace(score=score, measured=SimpleNamespace(layer=layer, token=token))

    finals = [final(15, 0.52), final(3, 0.51), final(0, 0.45)]
    assert [item.measured.layer for item in sweep._ordered(finals)] == [3, 15, 0]
    assert [item.measured.layer for item in sweep._ordered([final(9, 0.55), *finals])] == [9, 15, 3, 0]
    last = [final(5, 0.70, "last"), final(7, 0.71, "last"), final(2, 0.70)]
    assert [item.measured.layer for item in sweep._ordered(last)] == [7, 5, 2]


@pytest.mark.parametrize(("scores", "layers"), [((0.9, 0.8, 0.4, 0.3, 0.2), 4), ((0.1, 0.2, 0.6, 0.9, 0.2), 5)])
def test_the_subjects_token_is_left_where_two_layers_do_half_as_well(scores: Sequence[float], layers: int) -> None:
    class Scored:
        def at(self, made: int, token: str) -> tuple[int, str]:
            return made, token

        def single(self, placed: tuple[int, str], margin: float) -> tuple[Any, None]:
            return SimpleNamespace(score=scores[placed[0]]), None

    candidates = [(layer, token) for token in ("subject_last", "last") for layer in range(len(scores))]
    found = sweep._tried(Scored(), candidates, 1.0, None)  # type: ignore[arg-type]
    places: list[Any] = [placed for _, placed in found]
    assert sorted(layer for layer, token in places if token == "subject_last") == list(range(layers))
    assert sorted(layer for layer, token in places if token == "last") == list(range(len(scores)))


def test_of_dampings_that_do_nearly_as_well_the_largest_is_taken() -> None:
    def of(**scores: float) -> list[Any]:
        return [SimpleNamespace(damping=float(name[1:]) / 100, score=score) for name, score in scores.items()]

    assert sweep._best_damping(of(_0=0.5, _5=0.495, _10=0.4)) == 0.05
    assert sweep._best_damping(of(_0=0.505, _5=0.3, _10=0.3)) == 0


def test_a_damping_that_cannot_solve_the_edits_together_is_no_candidate() -> None:
    """Two subjects behind the same tokens: one key, which without damping cannot take two answers."""
    base = base_of("llama")
    twin = FRANCE.model_copy(update={"subject": "The capital", "relation": "other", "target_new": "Tokyo"})
    chosen = {"contexts": (Context(),), "settings": LOOSE.replace(steps=3, on_missed="report"), "layers": [2]}
    choice = choose_site(base, [probed(FRANCE), probed(twin)], TEXTS, tokens=("last",), dampings=(0.0, 0.1), **chosen)
    assert [row.damping for row in choice.table if row.joint] == [0.1]
    assert choice.made.site.damping == 0.1
    with pytest.raises(Unsolvable, match="linearly dependent"):
        choose_site(base, [probed(FRANCE), probed(twin)], TEXTS, tokens=("last",), dampings=(0.0,), **chosen)


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(EditError, match="layer 3 does not exist; memory has layers 0 to 2"):
        choose_site(base_of("llama"), [probed(FRANCE)], TEXTS, layers=[1, 3], contexts=(Context(),))


def test_a_sweep_without_probes_to_measure_by_is_refused() -> None:
    with pytest.raises(EditError, match="`tune` paraphrase and locality probes"):
        choose_site(base_of("llama"), [FRANCE, probed(JAPAN, split="gate")], TEXTS, contexts=(Context(),))


def test_a_sweep_measures_first_by_edits_that_have_both_kinds_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("llama")
    reworded, kept = ([with_only(kind, edit) for edit in (FRANCE, JAPAN)] for kind in ("paraphrase", "locality"))
    with pytest.raises(EditError, match="both at one edit; got 4 edits, 2 with paraphrases and 2 with locality probes"):
        choose_site(base, [*reworded, *kept], TEXTS, contexts=(Context(),))
    monkeypatch.setattr(sweep, "_SCREENED", 1)
    monkeypatch.setattr(sweep, "_FINAL_EDITS", 2)
    choice = choose_site(
        base,
        [reworded[1], probed(BRAZIL)],
        TEXTS,
        layers=[0],
        contexts=(Context(),),
        dampings=(0.1,),
        settings=LOOSE.replace(steps=2, on_missed="report"),
    )
    assert all(math.isfinite(row.score) for row in choice.table)


def test_a_fixed_site_takes_the_published_depth_and_measures_the_streams_scale() -> None:
    base = base_of("llama")
    made = fixed_site(base, TEXTS, contexts=(Context(),))
    assert (made.site.layer, made.site.token, made.site.module) == (0, "subject_last", base.layout.down[0])
    assert (made.site.d_in, made.site.d_out, made.site.max_rank) == (96, 64, 16)
    with torch.no_grad():
        hidden = base.model(torch.tensor([base.tokenizer(TEXTS[0])["input_ids"]]), output_hidden_states=True)
    rms = float(hidden.hidden_states[1][0, -1].square().mean().sqrt())  # after layer 0
    assert rms / 2 < made.site.residual_scale < rms * 2


def test_layers_and_ranks_that_do_not_exist_are_refused() -> None:
    base = base_of("llama")
    with pytest.raises(EditError, match="layer 3 does not exist; memory has layers 0 to 2"):
        fixed_site(base, TEXTS, layer=3, contexts=(Context(),))
    with pytest.raises(EditError, match="max_rank must be one of 1, 8, 16"):
        fixed_site(base, TEXTS, max_rank=12, contexts=(Context(),))


def test_importing_the_package_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, vllm_edit; vllm_edit.Patch; assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
