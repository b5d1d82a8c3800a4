"""Assignment over a million keys: sticky, monotone, uniform, independent; and the same wherever it is computed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.rollout.example import rollout
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.buckets import BUCKETS, Purpose, bucket
from vllm_edit.rollout.sticky import StickyKey

KEYS = 1_000_000


def _buckets(rollout: str, purpose: Purpose) -> NDArray[np.int64]:
    return np.fromiter((bucket("pepper", rollout, purpose, f"user:{i}") for i in range(KEYS)), np.int64, KEYS)


@pytest.fixture(scope="module")
def enrol() -> NDArray[np.int64]:
    return _buckets("spring", "enrol")


@pytest.fixture(scope="module")
def side() -> NDArray[np.int64]:
    return _buckets("spring", "side")


@pytest.fixture(scope="module")
def other_side() -> NDArray[np.int64]:
    return _buckets("autumn", "side")


def _normal(buckets: NDArray[np.int64]) -> float:
    """Pearson's χ² against uniform buckets, standardised: (χ² − df) / √(2 df) is nearly normal for 9,999 df."""
    counts = np.bincount(buckets, minlength=BUCKETS)
    assert len(counts) == BUCKETS
    expected = len(buckets) / BUCKETS
    df = BUCKETS - 1
    return float((((counts - expected) ** 2 / expected).sum() - df) / math.sqrt(2 * df))


def _table(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Correlation of two splits in standard errors of independent ones."""
    return float(np.corrcoef(first, second)[0, 1] * math.sqrt(len(first)))


def test_buckets_are_uniform(enrol: NDArray[np.int64], side: NDArray[np.int64]) -> None:
    assert abs(_normal(enrol)) < 4
    assert abs(_normal(side)) < 4


def test_taking_part_says_nothing_about_the_side(enrol: NDArray[np.int64], side: NDArray[np.int64]) -> None:
    for share in (100, 500, 2_000, 5_000):
        assert abs(_table(enrol < share, side < BUCKETS // 2)) < 4
    assert abs(_normal((enrol + side) % BUCKETS)) < 4, "nor bucket by bucket: their sum would not be uniform"


def test_arms_of_two_rollouts_are_independent(side: NDArray[np.int64], other_side: NDArray[np.int64]) -> None:
    for split in (1_000, 5_000):
        assert abs(_table(side < split, other_side < split)) < 4
    assert abs(_normal((side + other_side) % BUCKETS)) < 4


@pytest.mark.slow
def test_no_user_changes_sides_as_the_ramp_grows(enrol: NDArray[np.int64], side: NDArray[np.int64]) -> None:
    """A million keys through `assign` at two steps, and a part of them at many, each against the bare hashes."""
    for percents, keys in (((3.0, 25.0), KEYS), ((0.0, 0.01, 1.0, 10.0, 33.33, 50.0, 100.0), 20_000)):
        steps = []
        for percent in percents:
            ramp = rollout(percent)
            found = (assign(ramp, StickyKey("user", str(i))) for i in range(keys))
            sides = np.fromiter(
                ((item.compared, item.side == "treatment") for item in found), np.dtype((bool, 2)), keys
            )
            takes_part, treated = sides.T
            assert (takes_part == (enrol[:keys] < ramp.share)).all()
            assert (treated == takes_part & (side[:keys] < ramp.split)).all()
            assert abs(takes_part.mean() - percent / 100) < 4 * math.sqrt(0.25 / keys)
            steps.append((takes_part, treated))
        for (few, treated_few), (more, treated_more) in pairwise(steps):
            assert not (few & ~more).any(), "nobody leaves"
            assert (treated_few[few] == treated_more[few]).all(), "who took part stays on the same side"


_PROGRAM = """
from hashlib import sha256
from tests.rollout.example import rollout
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.sticky import StickyKey
ramp = rollout(40)
print(sha256(repr([assign(ramp, StickyKey("session", str(i))) for i in range(2_000)]).encode()).hexdigest())
"""


def test_another_process_assigns_the_same() -> None:
    ramp = rollout(40)
    here = sha256(repr([assign(ramp, StickyKey("session", str(i))) for i in range(2_000)]).encode()).hexdigest()
    for seed in ("0", "4711"):
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == here


def test_buckets_are_those_of_the_release() -> None:
    """Another hash would move every user of every running rollout. Values by `sha256sum` of the texts."""
    assert [bucket("pepper", "spring", "enrol", f"user:{name}") for name in ("ann", "bob", "cid")] == [2455, 7402, 2825]
    assert [bucket("pepper", "spring", "side", f"user:{name}") for name in ("ann", "bob", "cid")] == [4292, 7682, 4226]


@settings(deadline=None)
@given(st.text(), st.integers(0, BUCKETS), st.integers(1, BUCKETS - 1))
def test_any_text_is_a_key(text: str, share: int, split: int) -> None:
    ramp = rollout(0, split=split).ramped(share / 100)
    found = assign(ramp, StickyKey("user", text))
    assert found == assign(ramp, StickyKey("user", text))
    assert found.arm == ramp.arm(found.side)
    assert found.unit is None or re.fullmatch("[0-9a-f]{32}", found.unit), "never the key itself"


def test_half_a_surrogate_pair_is_a_key() -> None:
    assert assign(rollout(100), StickyKey("user", "\ud800")).compared


def test_reasons_say_why() -> None:
    ann, session = StickyKey("user", "ann"), StickyKey("session", "ann")
    ramp = rollout(0, overrides={"ann": "treatment"}).ramped(0)

    def choice_of(state: str, key: StickyKey | None) -> tuple[str, str, bool]:
        found = assign(rollout(0, overrides={"ann": "treatment"}, state=state) if state == "created" else ramp, key)
        return found.side, found.reason, found.compared

    assert choice_of("ramping", ann) == ("treatment", "TARGETING_MATCH", False)
    assert choice_of("ramping", session) == ("control", "DEFAULT", False), "an override names a user, not a session"
    assert choice_of("ramping", None) == ("control", "NO_KEY", False)
    everyone = ramp.ramped(100)
    assert assign(everyone, session).reason == "SPLIT"
    assert assign(everyone.paused(), session) == assign(everyone, session), "paused: everyone stays"
    for stopped in (everyone.killed(), rollout(overrides={"ann": "treatment"})):
        for key in (ann, session, None):
            assert (assign(stopped, key).side, assign(stopped, key).reason) == ("control", "DISABLED")
    for key in (ann, session, None):
        assert (assign(everyone.promoted(), key).side, assign(everyone.promoted(), key).reason) == (
            "treatment",
            "STATIC",
        )
