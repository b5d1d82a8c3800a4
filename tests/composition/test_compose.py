"""Composing without a model: solved and added members, ranks, names, and the algebraic judgement."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from tests.composition.examples import D_IN, D_OUT, MODULE, added, capital, key_of, shift, solved
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.composition.checks import Limits, vouch
from vllm_edit.composition.compose import compose
from vllm_edit.composition.groups import merged
from vllm_edit.composition.parts import Group, parts_of
from vllm_edit.composition.solver import System, solve
from vllm_edit.digest import digest_tensors
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Gate

FRANCE = solved("france", [capital("France", "Lyon")], key_of(1))
SPAIN = solved("spain", [capital("Spain", "Seville")], key_of(2))
PERU = added("peru", [capital("Peru", "Cusco")])


def site(max_rank: int) -> Site:
    return Site(
        base=Fingerprint(config="c", weights="w", tokenizer="t", chat_template="h"),
        model="tiny",
        modules=(MODULE,),
        layer=1,
        token="last",
        d_in=D_IN,
        d_out=D_OUT,
        contexts=(Context(),),
        second_moment="m",
        second_moment_count=1,
        ridge=0.0,
        damping=0.0,
        residual_scale=1.0,
        max_rank=max_rank,
        slots=2,
    )


def test_of_the_members_limits_of_drift_the_least_holds() -> None:
    lax, strict = Gate(perplexity_drift=0.05), Gate(perplexity_drift=0.02)
    members = [
        solved("chile", [capital("Chile", "Arica")], key_of(4), gate=lax),
        solved("cuba", [capital("Cuba", "Holguin")], key_of(5), gate=strict),
    ]
    assert compose([*members, SPAIN]).manifest.gate == strict
    assert compose([FRANCE, SPAIN]).manifest.gate.perplexity_drift is None


def test_members_are_solved_jointly_from_their_factors() -> None:
    composed = compose([FRANCE, SPAIN])
    factors = [member.factors for member in (FRANCE, SPAIN)]
    keys = torch.cat([factor.keys for factor in factors if factor])
    residuals = torch.cat([factor.residuals for factor in factors if factor])
    expected = solve(System.of(keys, keys, [0, 1]), residuals).dense()
    torch.testing.assert_close(composed.delta.parts[MODULE].dense().double(), expected, rtol=1e-5, atol=1e-6)
    for member, key in ((FRANCE, key_of(1)[0]), (SPAIN, key_of(2)[0])):
        assert (shift(composed, key) - shift(member, key)).norm() < 1e-5 * shift(member, key).norm()


def test_the_manifest_names_the_members_and_the_solvers_settings_in_any_order() -> None:
    composed = compose([FRANCE, SPAIN])
    manifest = composed.manifest
    assert (manifest.kind, manifest.patch, manifest.method, manifest.rank) == ("composition", "france-spain", "rome", 2)
    assert manifest.members == tuple(sorted([FRANCE.name, SPAIN.name]))
    assert manifest.settings == {"damping": 0.0, "group_cosine": 0.9}
    assert manifest.adapter == composed.delta.digest
    assert composed.factors is not None
    assert manifest.factors == digest_tensors(composed.factors.tensors())
    assert compose([SPAIN, FRANCE, SPAIN]).name == composed.name
    assert compose([FRANCE, SPAIN], name="both").manifest.patch == "both"
    with pytest.raises(EditError, match="expected a patch's name of lower-case letters"):
        compose([FRANCE, SPAIN], name="Both of them")


def test_three_facts_of_one_subject_share_a_column_with_the_mean_of_their_keys_in_any_order() -> None:
    keys = key_of(7) + 0.2 * key_of(70, 71, 72)
    members = [
        solved(f"fact-{number}", [capital("France", f"Answer {number}", relation=f"relation {number}")], key[None])
        for number, key in enumerate(keys)
    ]
    groups = [group for member in members for group, _ in parts_of(member) if isinstance(group, Group)]
    for order in permutations(groups):
        (whole,) = merged(order, 0.9)
        ((_, key, white),) = whole.columns
        torch.testing.assert_close(key, keys.mean(0))
        torch.testing.assert_close(white, keys.mean(0))
    (column,) = compose(members).manifest.columns
    assert column.share == 1.0


def test_a_composition_composes_again() -> None:
    third = solved("third", [capital("Peru", "Cusco")], key_of(3))
    nested, flat = compose([compose([FRANCE, SPAIN]), third]), compose([FRANCE, SPAIN, third])
    assert nested.manifest.adapter == flat.manifest.adapter
    assert nested.manifest.edits == flat.manifest.edits


def test_a_composition_is_asked_for_the_most_that_any_member_demands() -> None:
    strict = solved("strict", [capital("Chile", "Arica")], key_of(4), gate=Gate(locality=1.0, paraphrase=0.2))
    edits = [capital("Cuba", "Baracoa"), capital("Kenya", "Mombasa"), capital("Egypt", "Giza")]
    lax = solved("lax", edits, key_of(5, 6, 7), gate=Gate(reliability=0.5, locality=0.6, paraphrase=0.4))
    for members in ([strict, lax], [lax, strict]):
        gate = compose(members).manifest.gate
        assert (gate.reliability, gate.locality, gate.paraphrase) == (1.0, 1.0, 0.4)


def test_a_member_without_edits_demands_nothing_and_a_member_with_some_demands_as_before() -> None:
    strict = [capital("Chile", "Arica"), capital("Cuba", "Baracoa")]
    first = solved("first", strict, key_of(4, 5), gate=Gate(locality=1.0))
    some = solved("some", [capital("Chile", "Iquique")], key_of(6), gate=Gate(locality=0.6))
    both = solved(
        "both", [capital("Chile", "Iquique"), capital("Cuba", "Holguin")], key_of(6, 7), gate=some.manifest.gate
    )
    assert compose([first, some], policy="last").manifest.gate.locality == 1.0
    assert compose([first, both], policy="last").manifest.gate.locality == 0.6


def test_interference_is_reported_pair_by_pair_the_highest_first() -> None:
    near = 0.8 * key_of(1) / key_of(1).norm() + 0.6 * key_of(3) / key_of(3).norm()
    third = solved("third", [capital("Peru", "Cusco")], near)
    report = compose([FRANCE, SPAIN, third]).algebra
    assert report.pairs == 3
    assert set(report.interference[0].subjects) == {"France", "Peru"}
    cosines = [pair.cosine for pair in report.interference]
    expected = torch.nn.functional.cosine_similarity(key_of(1)[0], near[0], dim=0)
    assert cosines == sorted(cosines, reverse=True)
    assert report.highest_cosine == cosines[0] == pytest.approx(abs(float(expected)), abs=1e-6)


def test_deltas_without_factors_add_along_the_rank_also_to_solved_ones() -> None:
    chile = added("chile", [capital("Chile", "Arica")], rank=3, method="ft")
    composed = compose([PERU, chile])
    dense = [member.delta.parts[MODULE].dense() for member in (PERU, chile)]
    torch.testing.assert_close(composed.delta.parts[MODULE].dense(), dense[0] + dense[1])
    assert (composed.manifest.rank, composed.manifest.method, composed.factors) == (5, "ft+mend", None)
    assert composed.manifest.groups == composed.manifest.columns == ()
    mixed = compose([FRANCE, SPAIN, PERU])
    total = compose([FRANCE, SPAIN]).delta.parts[MODULE].dense() + dense[0]
    torch.testing.assert_close(mixed.delta.parts[MODULE].dense(), total)
    assert {edit.subject for edit in mixed.manifest.edits} == {"France", "Spain", "Peru"}
    assert (mixed.manifest.rank, mixed.manifest.method, mixed.factors) == (4, "mend+rome", None)


def test_above_the_rank_limit_it_is_refused_or_truncated_with_the_energy_reported() -> None:
    members = [solved(f"edit-{n}", [capital(f"Country {n}", f"City {n}")], key_of(n)) for n in range(6)]
    with pytest.raises(Incompatible, match=r"needs rank 6, the site allows 4: .*--truncate"):
        compose(members, site=site(4))
    full, cut = compose(members, site=site(8)), compose(members, site=site(4), truncate=True)
    assert (full.manifest.rank, full.algebra.kept_energy, cut.manifest.rank) == (6, 1.0, 4)
    whole, left = (patch.delta.parts[MODULE].dense().double() for patch in (full, cut))
    kept = 1 - float(((whole - left).norm() / whole.norm()) ** 2)
    assert 0.5 < kept < 0.99
    assert cut.algebra.kept_energy == pytest.approx(kept, abs=1e-5)
    assert cut.manifest.settings["truncated_to"] == 4
    assert compose(members, site=site(8), truncate=True).name == full.name


def test_patches_that_do_not_belong_together_are_refused_by_name() -> None:
    elsewhere = solved("elsewhere", [capital("Peru", "Cusco")], key_of(3), site="t" * 32)
    with pytest.raises(Incompatible, match=r"elsewhere@\w+ is for site t+, france@\w+ for s+"):
        compose([FRANCE, elsewhere])
    damped = solved("damped", [capital("Peru", "Cusco")], key_of(3), damping=0.1)
    with pytest.raises(EditError, match=r"different damping \(\[0.0, 0.1\]\)"):
        compose([FRANCE, damped])
    assert compose([FRANCE, damped], damping=0.1).manifest.settings["damping"] == 0.1
    scoped = replace(FRANCE, manifest=FRANCE.manifest.model_copy(update={"scope": "subject", "patch": "scoped"}))
    with pytest.raises(Incompatible, match=r"scoped@\w+ has scope subject"):
        compose([SPAIN, scoped])
    with pytest.raises(EditError, match="nothing to compose"):
        compose([])


def test_algebra_accepts_keys_that_are_far_apart() -> None:
    composed = compose([FRANCE, SPAIN])
    assert composed.algebra.judged_by == "algebra"
    assert composed.algebra.constraint_error < 1e-5
    assert composed.algebra.norm_growth == pytest.approx(1, abs=0.2)
    assert vouch(composed) == []


def test_algebra_rejects_keys_that_nearly_coincide() -> None:
    close = key_of(1) + 0.1 * key_of(2)
    composed = compose([FRANCE, solved("close", [capital("Francia", "Nice")], close)])
    (problem,) = vouch(composed)
    assert "‖Δ‖ grows" in problem
    assert composed.algebra.constraint_error < 1e-4, "at λ = 0 the constraints are met, at the price of the norm"
    assert vouch(composed, Limits(norm_growth=100)) == []
    damped = [solved("one", [capital("France", "Lyon")], key_of(1), damping=0.5)]
    damped.append(solved("two", [capital("Francia", "Nice")], close, damping=0.5))
    assert "shift at its own key differs" in vouch(compose(damped))[0]


def test_edits_that_a_policy_removed_do_not_count_in_the_growth_of_the_norm() -> None:
    names, near = ("Chile", "Cuba", "Egypt"), key_of(1) + 0.5 * key_of(2, 3, 4)
    singles = [solved(name.lower(), [capital(name, "Lyon")], key[None]) for name, key in zip(names, near, strict=True)]
    shared, rest = compose(singles, "shared"), compose(singles[1:], "rest")
    own = solved("own", [capital("Chile", "Arica")], key_of(1))
    layered, expected = compose([shared, own], policy="last"), compose([rest, own])
    assert layered.delta.digest == expected.delta.digest
    assert layered.algebra.norm_growth == pytest.approx(expected.algebra.norm_growth)


def test_algebra_does_not_vouch_for_added_residuals_truncation_or_members_without_factors() -> None:
    currency = solved("currency", [capital("France", "franc", relation="currency")], key_of(1))
    summed = compose([FRANCE, currency])
    assert summed.manifest.rank == 1
    assert vouch(summed) != []
    assert vouch(compose([FRANCE, PERU])) == [
        "it has members without factors, so only a gate with the model can check their combination"
    ]
    members = [solved(f"edit-{n}", [capital(f"Country {n}", f"City {n}")], key_of(n)) for n in range(10)]
    assert vouch(compose(members)) == []
    assert vouch(compose(members, site=site(1), truncate=True)) != []


@pytest.mark.slow
def test_a_serving_process_composes_without_editing_transformers_or_vllm() -> None:
    program = (
        "import sys, vllm_edit.composition.compose, vllm_edit.composition.checks\n"
        "print([name for name in sys.modules if name.startswith(('vllm_edit.editing', 'transformers', 'vllm.'))])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
