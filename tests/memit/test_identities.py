"""MEMIT, EMMET, AlphaEdit and r-ROME are settings of one solver: their published formulas, written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.editing.examples import FRANCE, LOOSE, bench, patch_of
from tests.memit.examples import MEMIT
from vllm_edit.composition.solver import System, solve
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.memit.null_space import NullSpace
from vllm_edit.editing.second_moment import SecondMoment

D_IN, D_OUT = 9, 5
PROPERTY = settings(max_examples=50, derandomize=True, deadline=None)
NUMBERS = st.floats(0.01, 100)


@dataclass(frozen=True)
class Drawn:
    """C [D_IN, D_IN], K [D_IN, n], earlier keys K_p [D_IN, m], R [D_OUT, n], float64."""

    C: torch.Tensor
    K: torch.Tensor
    K_p: torch.Tensor
    R: torch.Tensor

    def normed(self, M: torch.Tensor) -> Drawn:
        """With keys of kᵀ M k = 1: the solver damps each column relative to that, the papers all alike."""
        K, K_p = (keys / (keys * (M @ keys)).sum(0).sqrt() for keys in (self.K, self.K_p))
        return Drawn(self.C, K, K_p, self.R)


@st.composite
def drawn(draw: Callable[..., int]) -> Drawn:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, m = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    vectors, K, K_p, R = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((D_IN, 40), (D_IN, n), (D_IN, m), (D_OUT, n))
    )
    return Drawn(vectors @ vectors.T / 40, K, K_p, R)


def solved(M: torch.Tensor, case: Drawn, damping: float, kept: torch.Tensor | None = None) -> torch.Tensor:
    """ΔW by the solver with the metric M in place of C⁻¹; `kept` keys are columns of share 0 of the first group."""
    keys = case.K.T if kept is None else torch.cat([case.K.T, kept.T])
    groups = [*range(case.K.shape[1]), *[0] * (len(keys) - case.K.shape[1])]
    shares = [1.0] * case.K.shape[1] + [0.0] * (len(keys) - case.K.shape[1])
    return solve(System.of(keys, keys @ M, groups, damping, shares), case.R.T).dense()


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def memit(case: Drawn, C: torch.Tensor, ridge: float) -> torch.Tensor:
    """R Kᵀ (λC + K Kᵀ)⁻¹ (2210.07229, eq. 14)."""
    return case.R @ case.K.T @ torch.linalg.inv(ridge * C + case.K @ case.K.T)


@PROPERTY
@given(drawn(), NUMBERS)
def test_the_solver_with_damping_is_memit(case: Drawn, ridge: float) -> None:
    inverse = torch.linalg.inv(case.C)
    case = case.normed(inverse)
    assert_equal(solved(inverse, case, ridge), memit(case, case.C, ridge))


@PROPERTY
@given(drawn(), NUMBERS, NUMBERS)
def test_emmet_with_weight_w_and_damping_mu_is_memit_with_their_product(case: Drawn, w: float, mu: float) -> None:
    case = case.normed(torch.linalg.inv(case.C))
    inverse = torch.linalg.inv(w * case.C)
    inner = case.K.T @ inverse @ case.K + mu * torch.eye(case.K.shape[1], dtype=torch.float64)
    emmet = case.R @ torch.linalg.inv(inner) @ case.K.T @ inverse  # 2403.14236
    assert_equal(emmet, memit(case, case.C, mu * w))
    assert_equal(solved(torch.linalg.inv(case.C), case, mu * w), emmet)


@PROPERTY
@given(drawn(), NUMBERS, st.floats(0.3, 1.5))
def test_the_solver_in_the_null_space_with_earlier_keys_is_alphaedit(
    case: Drawn, ridge: float, threshold: float
) -> None:
    moment = SecondMoment(case.C, 40)
    values, vectors = torch.linalg.eigh(case.C)
    small = vectors[:, values < threshold * values.mean()]
    if not small.shape[1]:
        return
    P = small @ small.T
    space = NullSpace.of(moment, threshold)
    assert space.rank == small.shape[1]
    assert min(space.basis.shape) <= D_IN // 2
    assert_equal(space.whiten(case.K.T) * space.scale, case.K.T @ P)
    K, K_p, identity = case.K, case.K_p, torch.eye(D_IN, dtype=torch.float64)
    # ΔWᵀ = (P (K Kᵀ + K_p K_pᵀ) + λI)⁻¹ P K Rᵀ, AlphaEdit's reference code
    expected = torch.linalg.solve(P @ (K @ K.T + K_p @ K_p.T) + ridge * identity, P @ K @ case.R.T).T
    keys = torch.cat([K, K_p], dim=1).T
    count, every = K.shape[1], len(keys)
    gram = keys @ P @ keys.T + ridge * torch.eye(every, dtype=torch.float64)
    selected = torch.linalg.solve(gram, torch.eye(every, dtype=torch.float64)[:, :count]).T
    assert_equal(case.R @ selected @ keys @ P, expected)  # the (n + m) form, without a d_in × d_in inverse
    strengths = (keys @ P * keys).sum(1)
    if len(set(strengths.round(decimals=6).tolist())) == 1 or every == 1:
        assert_equal(solved(P, case, ridge / float(strengths[0]), K_p), expected)


@PROPERTY
@given(drawn(), NUMBERS)
def test_equally_strong_keys_in_the_null_space_are_solved_as_alphaedit_does(case: Drawn, ridge: float) -> None:
    values, vectors = torch.linalg.eigh(case.C)
    small = vectors[:, values < values.mean()]
    P = small @ small.T
    case = case.normed(P)
    keys = torch.cat([case.K, case.K_p], dim=1)
    identity = torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(P @ keys @ keys.T + ridge * identity, P @ case.K @ case.R.T).T
    metric = NullSpace.of(SecondMoment(case.C, 40), 1.0)
    M = metric.whiten(identity) * metric.scale
    assert_equal(solved(M, case, ridge, case.K_p), expected)


@PROPERTY
@given(drawn(), NUMBERS)
def test_alphaedit_with_a_projector_that_removes_nothing_is_memit_with_the_unit_matrix(
    case: Drawn, ridge: float
) -> None:
    identity = torch.eye(D_IN, dtype=torch.float64)
    case = case.normed(identity)
    everything = NullSpace.of(SecondMoment(case.C, 40), 1e9)
    assert everything.rank == D_IN
    assert everything.basis.numel() == 0, "the complement is stored, which is empty"
    M = everything.whiten(identity) * everything.scale
    assert_equal(solved(M, case, ridge), memit(case, identity, ridge))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_memit_of_one_edit_at_one_layer_without_damping_is_r_rome(family: str) -> None:
    setup = bench(family)
    patch = patch_of(FRANCE)
    place = {"site": setup.site, "site_tensors": setup.moment}
    rome = compile_patch(patch, setup.base, "rome", **place, settings=LOOSE)  # type: ignore[arg-type]
    settings = MEMIT.replace(damping=0.0)
    memit = compile_patch(patch, setup.base, "memit", **place, settings=settings)  # type: ignore[arg-type]
    expected = rome.delta.parts[setup.site.module].dense()
    assert (memit.delta.parts[setup.site.module].dense() - expected).norm() < 1e-4 * expected.norm()
    damped = compile_patch(patch, setup.base, "memit", **place, settings=MEMIT)  # type: ignore[arg-type]
    assert (damped.delta.parts[setup.site.module].dense() - expected).norm() > 1e-3 * expected.norm()
