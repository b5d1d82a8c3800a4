"""Ranges of users and holdouts: exclusive, stable, independent of rollouts' own hashes; and no change without them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.assignment import Assignment, assign
from vllm_edit.rollout.audience import Audience, parse_range
from vllm_edit.rollout.buckets import BUCKETS, bucket
from vllm_edit.rollout.decision import TenantState, decide
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import StickyKey

NOW = datetime.now(UTC)
SALT = "tenant-salt"
THIRD = f"capital@{'c' * 32}"
KEYS = [StickyKey("user", str(number)) for number in range(2_000)]
USERS = st.text().map(str.strip).filter(bool).map(lambda text: StickyKey("user", text))


def within(low: int, high: int, holdout: int = 0, **changes: object) -> Rollout:
    """A rollout of everyone in a range of the users of acme, in per cent."""
    audience = Audience(low * 100, high * 100, holdout * 100, SALT)
    return rollout(100, audience=audience, **changes)


def decided(state: TenantState, key: StickyKey) -> Assignment:
    found = decide(state, {"x-user-id": key.value}, {}, NOW).assignment
    assert found is not None
    return found


def test_users_of_two_ranges_are_never_in_both_rollouts_and_each_is_split_evenly() -> None:
    spring = within(0, 40)
    summer = within(40, 100, name="summer", treatment=Arm("weights", THIRD))
    state = TenantState("acme", OLD, spring, beside=(summer,))
    found = [decided(state, key) for key in KEYS]
    for key, assignment in zip(KEYS, found, strict=True):
        alone = [assign(one, key).compared for one in (spring, summer)]
        assert alone == [assignment.rollout == "spring", assignment.rollout == "summer"]
    of_spring = [assignment for assignment in found if assignment.rollout == "spring"]
    assert len(of_spring) / len(KEYS) == pytest.approx(0.4, abs=0.04)
    treated = np.mean([assignment.side == "treatment" for assignment in of_spring])
    assert treated == pytest.approx(0.5, abs=0.06)
    assert {assignment.arm.name for assignment in found} == {OLD, NEW, THIRD}


def test_a_user_outside_of_all_ranges_is_served_control_and_not_compared() -> None:
    state = TenantState("acme", OLD, within(0, 10), beside=(within(10, 20, name="summer"),))
    found = [decided(state, key) for key in KEYS]
    outside = [assignment for assignment in found if not assignment.compared]
    assert len(outside) / len(KEYS) == pytest.approx(0.8, abs=0.04)
    assert {(assignment.arm.name, assignment.reason) for assignment in outside} == {(OLD, "DEFAULT")}


def test_a_holdout_is_in_no_rollout_whatever_its_name_salt_and_range() -> None:
    held = [key for key in KEYS if not Audience(holdout=1_000, salt=SALT).admits("acme", key)]
    assert len(held) / len(KEYS) == pytest.approx(0.1, abs=0.03)
    for other in (within(0, 100, 10, name="summer"), within(0, 100, 10, salt="other"), within(30, 70, 10)):
        assert not any(assign(other, key).compared for key in held)
        assert {assign(other, key).side for key in held} == {"control"}


@given(USERS)
def test_a_range_begins_at_its_low_end_and_stops_before_its_high_end(key: StickyKey) -> None:
    own = bucket(SALT, "acme", "range", str(key))
    assert Audience(own, BUCKETS, 0, SALT).admits("acme", key)
    assert own == 0 or not Audience(0, own, 0, SALT).admits("acme", key)
    held = bucket(SALT, "acme", "holdout", str(key))
    assert Audience(holdout=held, salt=SALT).admits("acme", key), "a holdout of n buckets has the buckets below n"
    assert held == BUCKETS - 1 or not Audience(holdout=held + 1, salt=SALT).admits("acme", key)


@given(USERS, st.integers(0, 9_998), st.integers(1, BUCKETS - 1))
def test_a_larger_holdout_contains_a_smaller_one(key: StickyKey, smaller: int, by: int) -> None:
    larger = min(smaller + by, BUCKETS - 1)
    if not Audience(holdout=smaller, salt=SALT).admits("acme", key):
        assert not Audience(holdout=larger, salt=SALT).admits("acme", key)


@given(USERS, st.lists(st.integers(1, BUCKETS - 1), unique=True, max_size=8))
def test_ranges_that_share_no_bucket_divide_the_users(key: StickyKey, cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), BUCKETS]
    ranges = [Audience(low, high, salt=SALT) for low, high in pairwise(ends)]
    assert [audience.admits("acme", key) for audience in ranges].count(True) == 1
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one is not other)


@given(USERS, st.integers(0, 100), st.integers(1, 9_999))
def test_without_a_range_and_beside_nothing_an_assignment_is_the_same(key: StickyKey, share: int, split: int) -> None:
    alone = rollout(share, split=split)
    whole = replace(alone, audience=Audience(salt=SALT))
    assert assign(whole, key) == assign(alone, key)
    state = TenantState("acme", OLD, alone)
    assert decide(state, {"x-user-id": key.value}, {}, NOW).assignment == assign(alone, key)


def test_the_range_says_nothing_about_the_side_or_the_share() -> None:
    made = rollout(30, audience=Audience(0, 5_000, salt=SALT))
    inside = [assign(made, key) for key in KEYS if made.admits(key)]
    compared = [assignment for assignment in inside if assignment.compared]
    assert len(compared) / len(inside) == pytest.approx(0.3, abs=0.06)
    assert np.mean([one.side == "treatment" for one in compared]) == pytest.approx(0.5, abs=0.1)


def test_an_override_counts_before_ranges() -> None:
    spring = within(0, 50, overrides={"ann": "treatment"})
    summer = within(50, 100, name="summer", overrides={"bob": "treatment"}, treatment=Arm("weights", THIRD))
    state = TenantState("acme", OLD, spring, beside=(summer,))
    for user, served in (("ann", NEW), ("bob", THIRD)):
        choice = decide(state, {"x-user-id": user}, {}, NOW)
        assert (choice.adapter, choice.reason) == (served, "TARGETING_MATCH")


def test_a_killed_rollout_leaves_the_one_beside_it_alone() -> None:
    spring = within(0, 50, name="spring").killed()
    summer = within(50, 100, name="summer", treatment=Arm("weights", THIRD))
    state = TenantState("acme", OLD, spring, beside=(summer,))
    arms = {decided(state, key).arm.name for key in KEYS}
    assert arms == {OLD, THIRD}
    assert state.served(NOW).name == OLD
    both = TenantState("acme", None, spring, beside=(summer.killed(),))
    assert decide(both, {"x-user-id": "ann"}, {}, NOW).reason == "DISABLED"


def test_a_request_without_a_key_is_on_control_beside_other_rollouts_too() -> None:
    state = TenantState("acme", OLD, within(0, 50), beside=(within(50, 100, name="summer"),))
    choice = decide(state, {}, {}, NOW)
    assert (choice.adapter, choice.reason) == (OLD, "NO_KEY")


def test_a_range_is_written_in_per_cent() -> None:
    assert parse_range("0..40") == Audience(0, 4_000)
    assert str(parse_range("12.5..100")) == "12.5..100"
    for text in ("", "40", "40..0", "0..0", "0..101", "-1..5", "a..b"):
        with pytest.raises(EditError, match="expected"):
            parse_range(text)
