"""Snapshots of any registry, for hypothesis."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from hypothesis import strategies as st

from vllm_edit.registry.api_keys import ApiKey
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.publications import Publication
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.arm import SIDES, Arm
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.sticky import SOURCES, Stickiness

LABELS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
NAMES = st.builds(lambda label, digest: f"{label}@{digest:032x}", LABELS, st.integers(0, 2**128 - 1))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
TIMES = st.datetimes(timezones=st.just(UTC))
ENDS = st.none() | TIMES
COUNTS = st.integers(0, 2**31 - 1)

PATCHES = st.builds(
    PatchEntry, NAMES, LABELS, TEXTS, COUNTS, TIMES, st.sampled_from(("ungated", "accepted", "rejected")), TEXTS, ENDS
)
PUBLICATIONS = st.builds(
    Publication, LABELS, NAMES, TIMES, TEXTS, TEXTS, st.booleans(), ENDS, st.none() | TEXTS, st.none() | TEXTS, ENDS
)
RIGHTS = st.sampled_from((("serve",), ("serve", "base"), ("admin",)))
KEYS = st.builds(
    ApiKey,
    TEXTS,
    st.none() | LABELS,
    RIGHTS,
    TEXTS,
    TIMES,
    TEXTS,
    ENDS,
    ENDS,
    st.none() | TEXTS,
    st.none() | TEXTS,
    TEXTS,
)
ARMS = st.just(Arm("base")) | st.builds(Arm, st.sampled_from(("weights", "ike")), NAMES, ENDS)
METRICS = st.builds(
    lambda name, low, span, better: Metric(name, low, low + span, better),
    st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.sampled_from(("higher", "lower")),
)
STICKINESS = st.builds(Stickiness, st.permutations(SOURCES).map(lambda order: tuple(order[:2])), st.just("x-user"))


def _rollout(arms: tuple[Arm, Arm], **settings: Any) -> Rollout:
    return Rollout(control=arms[0], treatment=arms[1], **settings)


ROLLOUTS = st.builds(
    _rollout,
    st.tuples(ARMS, ARMS).filter(lambda arms: str(arms[0]) != str(arms[1])),
    name=LABELS,
    tenant=LABELS,
    salt=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    split=st.integers(1, BUCKETS - 1),
    share=st.integers(0, BUCKETS),
    state=st.sampled_from(("created", "ramping", "paused", "killed", "promoted")),
    closed=st.booleans(),
    overrides=st.dictionaries(TEXTS, st.sampled_from(SIDES), max_size=3),
    sticky=STICKINESS,
    metrics=st.lists(METRICS, max_size=2, unique_by=lambda metric: metric.name).map(tuple),
    alpha=st.floats(1e-6, 0.5),
    shadow=st.none() | st.builds(Shadow, st.integers(1, BUCKETS), st.booleans()),
)

SNAPSHOTS = st.builds(
    Snapshot,
    COUNTS,
    st.lists(PATCHES, max_size=3).map(tuple),
    st.dictionaries(LABELS, st.lists(PUBLICATIONS, max_size=2).map(tuple), max_size=3),
    st.dictionaries(TEXTS, KEYS, max_size=3),
    st.dictionaries(LABELS, ROLLOUTS, max_size=2),
    shadowing=st.dictionaries(LABELS, st.lists(ROLLOUTS, max_size=2).map(tuple), max_size=2),
)
