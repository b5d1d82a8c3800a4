"""The multiplier rises while the bound is broken and falls while it is kept; the bound is annealed when it is kept."""

from __future__ import annotations

import math

import pytest

from vllm_edit.editing.knowledge_editor.constraint import Constraint


def constraint() -> Constraint:
    return Constraint(multiplier=3.0, rate=0.1, bound=0.2, least_bound=0.1, anneal=0.8)


def test_the_multiplier_follows_the_violation_of_the_bound() -> None:
    objective = constraint()
    objective.stepped(0.2)
    assert objective.multiplier == pytest.approx(3.0)
    objective.stepped(0.4)  # twice the bound: a violation of 1
    assert objective.multiplier == pytest.approx(3.0 * math.exp(0.1))
    objective.stepped(0.0)
    assert objective.multiplier == pytest.approx(3.0)
    before = objective.multiplier
    objective.stepped(100.0)  # an outlier counts as 4
    assert objective.multiplier == pytest.approx(before * math.exp(0.4))
    objective.stepped(math.nan)
    assert objective.multiplier == pytest.approx(before * math.exp(0.4))


def test_the_weights_add_up_to_one_in_the_ratio_of_the_multiplier() -> None:
    objective = constraint()
    objective.stepped(0.6)
    teach, keep = objective.weights
    assert teach + keep == pytest.approx(1)
    assert keep / teach == pytest.approx(objective.multiplier)


def test_the_bound_is_annealed_only_when_a_validation_keeps_it_and_has_a_least_value() -> None:
    objective = constraint()
    objective.validated(0.21)
    assert objective.bound == 0.2
    objective.validated(0.2)
    assert objective.bound == pytest.approx(0.16)
    for _ in range(5):
        objective.validated(0.0)
    assert objective.bound == 0.1


def test_validations_are_compared_by_one_loss_however_far_the_multiplier_has_moved() -> None:
    objective = constraint()
    first = objective.loss(1.0, 0.5)
    assert first == pytest.approx((1.0 + 3 * 0.5) / 4)
    objective.stepped(1.0)
    assert objective.loss(1.0, 0.5) == first


def test_a_saved_state_continues() -> None:
    objective, other = constraint(), constraint()
    objective.stepped(0.5)
    objective.validated(0.1)
    other.load(objective.state())
    assert other.weights == objective.weights
    other.validated(0.15)
    objective.validated(0.15)
    assert other.state() == objective.state() != constraint().state()
