"""Sticky keys from requests, and the arm that answers a tenant's request."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollout.example import NEW, OLD, THIRD, rollout
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import TenantState, decide
from vllm_edit.rollout.sticky import SOURCES, Stickiness, StickyKey

HEADERS = {"x-user-id": "ann", "x-session-id": "s1"}
BODY = {"user": "bob"}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_the_first_source_of_the_order_with_a_value_counts() -> None:
    assert Stickiness().sticky_key(HEADERS, BODY, "k1") == StickyKey("user", "ann")
    assert Stickiness(("api-key", "user-header")).sticky_key(HEADERS, BODY, "k1") == StickyKey("api-key", "k1")
    assert Stickiness(("api-key", "session-header")).sticky_key(HEADERS, BODY) == StickyKey("session", "s1")
    assert Stickiness(("user-field", "user-header")).sticky_key(HEADERS, BODY) == StickyKey("user", "bob")
    assert Stickiness(("user-field",), user_header="x-who").sticky_key({"x-who": "ann"}, {}) is None
    assert Stickiness(("user-header",), user_header="x-who").sticky_key({"x-who": " ann "}, {}) == StickyKey(
        "user", "ann"
    )
    assert Stickiness().sticky_key({"x-user-id": "  "}, {"user": ""}, "") is None


def test_a_user_is_the_same_by_header_and_by_body() -> None:
    by_header = Stickiness().sticky_key({"x-user-id": "ann"}, {})
    assert by_header == Stickiness().sticky_key({}, {"user": "ann"})
    assert by_header != Stickiness().sticky_key({"x-session-id": "ann"}, {})


def test_an_impossible_order_or_header_is_refused() -> None:
    for order in ((), ("user-header", "user-header"), ("cookie",)):
        with pytest.raises(EditError, match="expected an order of different sources"):
            Stickiness(order)  # type: ignore[arg-type]
    with pytest.raises(EditError, match="header's name"):
        Stickiness(user_header="X User")
    with pytest.raises(EditError, match="user must be a string, got int"):
        Stickiness().sticky_key({}, {"user": 7})


def test_a_rollout_decides_from_its_first_ramp_until_it_is_closed() -> None:
    def answered(state: TenantState) -> tuple[str, str | None, str, str | None]:
        made = decide(state, HEADERS, BODY, NOW)
        return made.mode, made.adapter, made.reason, made.arm

    published = ("weights", OLD, "TARGETING_MATCH", None)
    assert answered(TenantState("acme", None)) == ("base", None, "DEFAULT", None)
    assert answered(TenantState("acme", OLD)) == published
    assert answered(TenantState("acme", OLD, rollout())) == published
    treated = rollout(0, overrides={"ann": "treatment"}).ramped(0)
    assert answered(TenantState("acme", OLD, treated)) == ("weights", NEW, "TARGETING_MATCH", "treatment")
    assert answered(TenantState("acme", OLD, treated.killed())) == ("weights", OLD, "DISABLED", "control")
    assert answered(TenantState("acme", OLD, treated.promoted())) == ("weights", NEW, "STATIC", "treatment")
    assert answered(TenantState("acme", OLD, treated.promoted().ended())) == published


def test_an_expired_arm_is_replaced_by_the_published_patch() -> None:
    later, earlier = NOW + timedelta(days=1), NOW - timedelta(days=1)
    for end, adapter, reason in ((None, NEW, "STATIC"), (later, NEW, "STATIC"), (earlier, OLD, "TARGETING_MATCH")):
        promoted = rollout(50, treatment=Arm("weights", NEW, end)).promoted()
        made = decide(TenantState("acme", OLD, promoted), {}, {}, NOW)
        assert (made.adapter, made.reason, made.assignment is None) == (adapter, reason, end == earlier)


@pytest.mark.parametrize("side", ["control", "treatment"])
def test_an_arm_that_expires_ends_the_comparison_for_both_arms(side: str) -> None:
    """If the other arm's users were still exposed, the numbers of users would not fit the split."""
    end = NOW + timedelta(days=1)
    name = {"control": OLD, "treatment": NEW}[side]
    state = TenantState("acme", THIRD, rollout(100, **{side: Arm("weights", name, end)}))
    users = [{"x-user-id": str(number)} for number in range(20)]
    before = [decide(state, user, {}, end - timedelta(seconds=1)) for user in users]
    assert {made.arm for made in before} == {"control", "treatment"}
    assert all(made.assignment is not None for made in before)
    for user in (*users, {}):
        made = decide(state, user, {}, end)
        assert (made.adapter, made.reason, made.arm, made.assignment) == (THIRD, "TARGETING_MATCH", None, None)
    assert state.served(end).name == THIRD


def test_an_expired_arm_that_nobody_gets_does_not_matter() -> None:
    killed = rollout(50, treatment=Arm("weights", NEW, NOW)).killed()
    made = decide(TenantState("acme", THIRD, killed), HEADERS, {}, NOW)
    assert (made.adapter, made.reason) == (OLD, "DISABLED")


def test_arms_may_differ_in_mode() -> None:
    ike = rollout(0, treatment=Arm("ike", OLD), overrides={"ann": "treatment"}).ramped(0)
    made = decide(TenantState("acme", OLD, ike), HEADERS, BODY, NOW)
    assert (made.mode, made.adapter) == ("ike", OLD)
    base = rollout(0, control=Arm("base"), overrides={"ann": "control"}).ramped(0)
    made = decide(TenantState("acme", OLD, base), HEADERS, BODY, NOW)
    assert (made.mode, made.adapter) == ("base", None)


def test_a_mode_that_the_request_asks_for_is_served_and_not_compared() -> None:
    state = TenantState("acme", OLD, rollout(100))
    for user in map(str, range(20)):
        own = decide(state, {"x-user-id": user}, {}, NOW)
        assert own.assignment is not None
        assert own.assignment.compared
        for mode in ("ike", "weights", "base"):
            asked = decide(state, {"x-user-id": user}, {}, NOW, mode=mode)
            assert (asked.mode, asked.reason, asked.arm, asked.assignment) == (mode, "STATIC", None, None)
            assert asked.adapter == (None if mode == "base" else own.adapter)
    base = TenantState("acme", None, rollout(0, control=Arm("base")).ramped(0))
    assert decide(base, {}, {}, NOW, mode="ike").mode == "base", "control has no composition"


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["x-user-id", "x-session-id", "x-other"]), st.text()),
    st.fixed_dictionaries({}, optional={"user": st.one_of(st.none(), st.text())}),
    st.one_of(st.none(), st.text()),
    st.permutations(SOURCES),
)
def test_every_request_is_answered_the_same_twice(
    headers: dict[str, str], body: dict[str, str | None], api_key: str | None, order: list[str]
) -> None:
    made = rollout(50, sticky=Stickiness(tuple(order)))  # type: ignore[arg-type]
    state = TenantState("acme", OLD, made)
    decision = decide(state, headers, body, NOW, api_key)
    assert decision == decide(state, headers, body, NOW, api_key)
    if decision.reason == "NO_KEY":
        assert decision.arm == "control"


def test_deciding_imports_no_engine_no_torch_and_no_database() -> None:
    program = (
        "import sys, vllm_edit.rollout.decision, vllm_edit.rollout.rollout_report\n"
        "print([name for name in ('torch', 'vllm', 'sqlalchemy', 'matplotlib') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_tenants_listing_shows_the_answer_to_a_request_that_names_no_user() -> None:
    later, earlier = NOW + timedelta(days=1), NOW - timedelta(days=1)
    new = Arm("ike", NEW, later)
    states = [
        TenantState("acme", None),
        TenantState("acme", OLD, valid_until=later),
        TenantState("acme", OLD, rollout(treatment=new)),
        TenantState("acme", OLD, rollout(50, treatment=new)),
        TenantState("acme", None, rollout(50, treatment=new).promoted()),
        TenantState("acme", NEW, rollout(50).killed()),
        TenantState("acme", OLD, rollout(50, treatment=Arm("weights", NEW, earlier)).promoted()),
    ]
    served = [state.served(NOW) for state in states]
    old = Arm("weights", OLD)
    assert served == [Arm("base"), Arm("weights", OLD, later), old, old, new, old, old]
    answers = [decide(state, {}, {}, NOW) for state in states]
    assert [(arm.mode, arm.name) for arm in served] == [(answer.mode, answer.adapter) for answer in answers]
