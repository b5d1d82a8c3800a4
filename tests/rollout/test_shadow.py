"""The arm that repeats an answer, and the comparison of answers with their shadows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import SIDES, Arm
from vllm_edit.rollout.audience import Audience
from vllm_edit.rollout.decision import Choice, TenantState, decide
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import MOST_COMPARED, Shadow, shadow_of
from vllm_edit.rollout.shadow_report import ShadowPair, shadow_report

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SHADOW = Shadow(500)


def decided(made: Rollout, user: str | None = "ann", active: str | None = OLD) -> Choice:
    """The choice for a request of this user of a tenant that is published `active`."""
    headers = {} if user is None else {"x-user-id": user}
    state = TenantState("acme", active, made if made.governs else None, shadowing=(made,) if made.shadowing else ())
    return decide(state, headers, {}, NOW)


def test_before_the_first_ramp_treatment_repeats_the_answers_of_control() -> None:
    choice = decided(rollout(shadow=SHADOW))
    assert (choice.adapter, choice.assignment) == (OLD, None), "the client's answer is as without the rollout"
    assert choice.shadowed is not None
    assert (choice.shadowed.rollout, choice.shadowed.side, str(choice.shadowed.other)) == ("spring", "control", NEW)


def test_an_answer_of_another_arm_than_control_is_not_repeated_before_the_first_ramp() -> None:
    assert decided(rollout(shadow=SHADOW), active=None).shadowed is None
    assert decided(rollout(shadow=SHADOW), active=NEW).shadowed is None


@given(st.floats(0, 100).map(lambda share: round(share, 2)), st.none() | st.text("abcdef", min_size=1))
def test_the_other_arm_repeats_each_answer_of_a_rollout(percent: float, user: str | None) -> None:
    made = rollout(percent, shadow=SHADOW, overrides={"a": "treatment"})
    choice = decided(made, user)
    assert choice.arm is not None
    assert choice.shadowed is not None
    assert choice.shadowed.side == choice.arm
    assert choice.shadowed.other == made.arm("treatment" if choice.arm == "control" else "control")
    assert choice == replace(decided(replace(made, shadow=None), user), shadowed=choice.shadowed)


@pytest.mark.parametrize("step", ["killed", "promoted", "ended"])
def test_a_rollout_that_is_not_open_repeats_nothing(step: str) -> None:
    made = getattr(rollout(50, shadow=SHADOW), step)()
    assert not made.shadowing
    assert decided(made).shadowed is None
    with pytest.raises(EditError, match="only an open rollout has a shadow"):
        made.shadowed(SHADOW)


def test_an_arm_that_has_ended_and_a_request_that_names_its_mode_repeat_nothing() -> None:
    gone = Arm("weights", NEW, NOW - timedelta(seconds=1))
    assert decided(rollout(shadow=SHADOW, treatment=gone)).shadowed is None
    made = rollout(shadow=SHADOW)
    assert decide(TenantState("acme", OLD, shadowing=(made,)), {}, {}, NOW, mode="ike").shadowed is None


def test_of_several_rollouts_before_their_first_ramp_the_one_that_admits_the_user_counts() -> None:
    low = rollout(name="low", shadow=SHADOW, audience=Audience(0, 5_000, salt="s"))
    high = rollout(name="high", shadow=SHADOW, audience=Audience(5_000, 10_000, salt="s"))
    found = set()
    for user in map(str, range(20)):
        choice = decide(TenantState("acme", OLD, shadowing=(low, high)), {"x-user-id": user}, {}, NOW)
        assert choice.shadowed is not None
        repeating = low if choice.shadowed.rollout == "low" else high
        key = repeating.sticky.sticky_key({"x-user-id": user}, {})
        assert repeating.admits(key)
        found.add(repeating.name)
    assert found == {"low", "high"}


def test_a_shadow_is_a_share_of_the_answers() -> None:
    assert shadow_of(5, texts=True) == Shadow(500, texts=True)
    assert shadow_of(0, texts=False) is None
    assert shadow_of(None, texts=False) is None
    for percent in (-1.0, 101.0, 0.001, float("nan")):
        with pytest.raises(EditError, match="0 to 100 per cent"):
            shadow_of(percent, texts=False)
    with pytest.raises(EditError, match="texts of a shadow are stored only with a shadow"):
        shadow_of(0, texts=True)
    with pytest.raises(EditError, match="more than 0 to 100 per cent"):
        Shadow(0)


PAIRS = st.builds(
    ShadowPair,
    st.just("edit-1"),
    st.sampled_from(SIDES),
    st.booleans(),
    st.booleans(),
    seconds=st.none() | st.floats(0, 100),
    shadow_seconds=st.none() | st.floats(0, 100),
    tokens=st.none() | st.integers(0, 1000),
    shadow_tokens=st.none() | st.integers(0, 1000),
)


@given(st.lists(PAIRS, max_size=30))
def test_the_report_counts_every_pair_once_and_swapped_sides_swap_the_tokens(pairs: list[ShadowPair]) -> None:
    found = shadow_report(pairs, 2, 1, (), 0.05)
    assert (found.same.n, found.greedy.n) == (len(pairs), sum(pair.greedy for pair in pairs))
    assert (found.dropped, found.failed, found.full) == (2, 1, False)
    if pairs:
        ends = (found.same.low or 0, found.same.mean or 0, found.same.high or 0)
        assert sorted((0, *ends, 1)) == [0, *ends, 1]
    swapped = [replace(pair, side="control" if pair.side == "treatment" else "treatment") for pair in pairs]
    other = shadow_report(swapped, 2, 1, (), 0.05)
    assert (other.tokens["control"], other.tokens["treatment"]) == (found.tokens["treatment"], found.tokens["control"])
    assert (other.same, other.seconds) == (found.same, found.seconds)


def test_enough_comparisons_end_the_drawing_and_narrow_the_interval() -> None:
    found = shadow_report([ShadowPair("edit-1", "control", True, True)] * MOST_COMPARED, 0, 0, (), 0.05)
    assert found.full
    assert found.same.mean == pytest.approx(1)
    assert found.same.low is not None
    assert found.same.low > 0.99
