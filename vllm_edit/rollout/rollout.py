"""A rollout: two arms, the share of sticky keys that take part, and its states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Literal, Self, get_args

from vllm_edit.errors import EditError
from vllm_edit.names import check_tenant, is_label, shown
from vllm_edit.rollout.arm import SIDES, Arm, Side
from vllm_edit.rollout.audience import Audience
from vllm_edit.rollout.buckets import BUCKETS, buckets_of
from vllm_edit.rollout.limit import Limit
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.schedule import Schedule, ScheduleRecord
from vllm_edit.rollout.shadow import Shadow, ShadowRecord
from vllm_edit.rollout.sticky import Stickiness, StickyKey

State = Literal["created", "ramping", "paused", "killed", "promoted"]
Verb = Literal["ramp", "pause", "kill", "promote"]

_LEADS_TO: Mapping[Verb, State] = {"ramp": "ramping", "pause": "paused", "kill": "killed", "promote": "promoted"}
_ALLOWED: Mapping[State, tuple[Verb, ...]] = {
    "created": ("ramp", "kill"),
    "ramping": ("ramp", "pause", "kill", "promote"),
    "paused": ("ramp", "kill", "promote"),
    "promoted": ("kill",),
    "killed": ("kill",),  # a repeated kill succeeds
}
_SALT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Rollout:
    """Everything that an assignment depends on.

    Sticky keys that do not take part are served control but not compared: they may move to treatment as the ramp grows,
    which would compare two periods instead of two arms.

    Attributes:
        name: Name of the rollout.
        tenant: The tenant whose requests are split.
        control: The control arm.
        treatment: The treatment arm.
        salt: Salt of the hashes.
        split: Buckets (of 10,000) on treatment, among the keys that take part; the others are the compared control.
        share: Buckets (of 10,000) that take part.
        state: The rollout's state.
        closed: True once a later publication, rollback or step of another rollout decides for the tenant.
        overrides: Side by user, regardless of the hash. These users' answers are not compared.
        sticky: Sources of the sticky key.
        metrics: The metrics that clients report.
        alpha: Probability, over all metrics together, of ever calling equal arms different; and, over all limits
            together, of ever acting on a treatment that is not worse.
        limits: What treatment may not do, and what a server does when it does.
        schedule: The shares that the rollout passes through by itself, while it follows a schedule.
        audience: The users that may take part; None for all.
        shadow: The share of answers that the other arm repeats while the rollout is open; None for none.
    """

    name: str
    tenant: str
    control: Arm
    treatment: Arm
    salt: str
    split: int = BUCKETS // 2
    share: int = 0
    state: State = "created"
    closed: bool = False
    overrides: Mapping[str, Side] = field(default_factory=dict)
    sticky: Stickiness = field(default_factory=Stickiness)
    metrics: tuple[Metric, ...] = ()
    alpha: float = 0.05
    limits: tuple[Limit, ...] = ()
    schedule: Schedule | None = None
    audience: Audience | None = None
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        problems = []
        if not is_label(self.name):
            problems.append(f"name: expected lower-case letters, digits, '.', '_' and '-'; got {shown(self.name)}")
        if _SALT.fullmatch(self.salt) is None:
            problems.append(f"salt: expected 1 to 64 letters, digits, '_' and '-'; got {shown(self.salt)}")
        if not 0 <= self.share <= BUCKETS:
            problems.append(f"share: expected 0 to {BUCKETS} buckets; got {self.share}")
        if not 0 < self.split < BUCKETS:
            problems.append("split: expected more than 0 and less than 100 per cent, or there is nothing to compare")
        if not 0 < self.alpha <= 0.5:
            problems.append(f"alpha: expected more than 0 and at most 0.5; got {self.alpha:g}")
        if self.state not in get_args(State):
            problems.append(f"state: expected one of {', '.join(get_args(State))}; got {shown(self.state)}")
        problems += [
            f"override of {shown(user)}: expected {' or '.join(SIDES)}; got {shown(side)}"
            for user, side in self.overrides.items()
            if side not in SIDES
        ]
        problems += [
            f"override of {shown(user)}: a lone surrogate is not a character"
            for user in self.overrides
            if any("\ud800" <= character <= "\udfff" for character in user)
        ]
        names = [metric.name for metric in self.metrics]
        problems += [f"metric {name} is given twice" for name in sorted(set(names)) if names.count(name) > 1]
        problems += [problem for limit in self.limits for problem in limit.problems(self.metrics)]
        tests = [str(limit).rpartition("=")[0] for limit in self.limits]
        problems += [f"limit {test} is given twice" for test in sorted(set(tests)) if tests.count(test) > 1]
        if self.treatment.mode == "base" and any(limit.name == "locality" for limit in self.limits):
            problems.append("limit locality: treatment base has no locality probes")
        if str(self.control) == str(self.treatment):
            problems.append(f"control and treatment are both {self.control}; there is nothing to compare")
        if problems:
            raise EditError("\n".join(f"rollout {shown(self.name)}: {problem}" for problem in problems))
        check_tenant(self.tenant)

    def as_record(self) -> RolloutRecord:
        shown = {part.name: getattr(self, part.name) for part in fields(self)}
        shown |= {"control": str(self.control), "treatment": str(self.treatment)}
        shown |= {"share": self.share * 100 / BUCKETS, "split": self.split * 100 / BUCKETS}
        shown["schedule"] = None if self.schedule is None else self.schedule.as_record()
        shown["shadow"] = None if self.shadow is None else self.shadow.as_record()
        return RolloutRecord(**shown)

    @property
    def running(self) -> bool:
        """True while two arms are served."""
        return not self.closed and self.state in ("ramping", "paused")

    @property
    def governs(self) -> bool:
        """True while it decides what the tenant is served: from its first ramp until closed, even if killed."""
        return not self.closed and self.state != "created"

    @property
    def open(self) -> bool:
        """True until it is killed, promoted or closed."""
        return not self.closed and self.state in ("created", "ramping", "paused")

    def arm(self, side: Side) -> Arm:
        return self.control if side == "control" else self.treatment

    @property
    def served(self) -> tuple[Arm, ...]:
        """The arms that users of the tenant get while the rollout governs: both while it runs."""
        if self.running:
            return self.control, self.treatment
        return (self.treatment,) if self.state == "promoted" else (self.control,)

    def expired(self, now: datetime) -> tuple[Side, ...]:
        """Return the sides whose arm has expired, of the arms that users of the tenant get."""
        return tuple(side for side in SIDES if self.arm(side) in self.served and self.arm(side).ended(now))

    @property
    def guarded(self) -> bool:
        """True while a server has to test limits or to follow a schedule."""
        return self.running and bool(self.limits or self.schedule)

    @property
    def shadowing(self) -> bool:
        """True while answers are repeated by the other arm: also before the first ramp."""
        return self.open and self.shadow is not None

    def names(self, sticky_key: StickyKey | None) -> bool:
        """True if an override names the user of the key."""
        return sticky_key is not None and sticky_key.kind == "user" and sticky_key.value in self.overrides

    def admits(self, sticky_key: StickyKey | None) -> bool:
        """True if the key is in the rollout's audience."""
        return sticky_key is not None and (self.audience is None or self.audience.admits(self.tenant, sticky_key))

    def problems_beside(self, other: Rollout) -> list[str]:
        """Return what keeps this rollout from running beside `other`, an open rollout of its tenant."""
        beside = f"rollout {other.name!r} ({other.state})"
        if self.audience is None or other.audience is None:
            return [f"tenant {self.tenant!r} has {beside} already; promote or kill it first, or give both a --range"]
        problems = []
        if self.audience.overlaps(other.audience):
            problems.append(f"{beside} has the users {other.audience}; give a --range that does not overlap")
        if str(self.control) != str(other.control):
            problems.append(f"{beside} has control {other.control}: rollouts beside each other have one control")
        if self.sticky != other.sticky:
            problems.append(f"{beside} has another order of sticky keys, so that a user could be in both; use the same")
        if both := sorted(set(self.overrides) & set(other.overrides)):
            problems.append(f"{beside} has an override of {shown(both[0])} too; a user has one override")
        return problems

    def ramped(self, percent: float) -> Self:
        """Let `percent` of the keys take part. Keys that took part at a lower percentage stay on their side."""
        return self._moved("ramp", share=buckets_of(percent))

    def scheduled(self, schedule: Schedule, now: datetime) -> Self:
        """Ramp to the schedule's first share, and to its later shares when they are due."""
        begun = schedule.begun(now)
        return replace(self._moved("ramp", share=begun.share), schedule=begun)

    def advanced(self, now: datetime) -> Self:
        """Take the schedule's next step if it is due. A paused rollout, or one with an expired arm, stays as it is."""
        if self.state != "ramping" or self.schedule is None or not self.schedule.due(now) or self.expired(now):
            return self
        later = self.schedule.advanced(now)
        return replace(self, share=later.share, schedule=later)

    def held(self, limit: str) -> Self:
        """Stay at the schedule's present step until the next `ramp`, because of a limit."""
        if self.schedule is None or self.schedule.held is not None:
            return self
        return replace(self, schedule=replace(self.schedule, held=limit))

    def shadowed(self, shadow: Shadow | None) -> Self:
        """Repeat a share of the answers by the other arm from now on; None for none."""
        if not self.open:
            state = f"{self.state}, and closed" if self.closed else self.state
            raise EditError(f"cannot shadow rollout {self.name!r}: it is {state}; only an open rollout has a shadow")
        return replace(self, shadow=shadow)

    def paused(self) -> Self:
        """Freeze the assignment until the next `ramp`. A schedule ends."""
        return self._moved("pause")

    def killed(self) -> Self:
        """Serve control to everyone from the next request. A rollout that never started is closed."""
        return replace(self._moved("kill"), closed=self.closed or self.state == "created")

    def promoted(self) -> Self:
        """Serve treatment to everyone."""
        return self._moved("promote")

    def ended(self) -> Self:
        """Close the rollout: the tenant's publications decide again."""
        return replace(self, closed=True)

    def _moved(self, verb: Verb, *, share: int | None = None) -> Self:
        allowed = _ALLOWED[self.state] if not self.closed or self.state == "killed" else ()
        if verb not in allowed:
            state = f"{self.state}, and a later publication or rollback replaced it" if self.closed else self.state
            can = "make a new one" if self.state == "killed" or not allowed else f"it can only {' or '.join(allowed)}"
            raise EditError(f"cannot {verb} rollout {self.name!r}: it is {state}; {can}")
        return replace(self, state=_LEADS_TO[verb], share=self.share if share is None else share, schedule=None)


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout as JSON shows it: arms as a request's `model` field names them, shares in per cent."""

    name: str
    tenant: str
    control: str
    treatment: str
    salt: str
    split: float
    share: float
    state: State
    closed: bool
    overrides: Mapping[str, Side]
    sticky: Stickiness
    metrics: tuple[Metric, ...]
    alpha: float
    limits: tuple[Limit, ...]
    schedule: ScheduleRecord | None
    audience: Audience | None
    shadow: ShadowRecord | None
