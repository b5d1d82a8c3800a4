"""Several rollouts of one tenant in the registry, and a tenant's holdout: what runs at one time, and what ends what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.rollout.example import NEW, OLD, THIRD, failing, published, rollout
from vllm_edit.errors import EditError, NotFound
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.audience import parse_range
from vllm_edit.rollout.decision import decide
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import Stickiness

SUMMER = {"name": "summer", "treatment": Arm("weights", THIRD)}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = published(f"sqlite:///{tmp_path / 'registry.db'}")
    yield made
    made.close()


def ranged(text: str, **changes: object) -> Rollout:
    return rollout(audience=parse_range(text), **changes)


def two(registry: Registry) -> None:
    """Two running rollouts of acme: spring for the first 40 % of the users, summer for the others."""
    registry.rollouts.create(ranged("0..40"))
    registry.rollouts.create(ranged("40..100", **SUMMER))
    for name in ("spring", "summer"):
        registry.rollouts.ramp(name, 100)


def served(registry: Registry) -> dict[str | None, set[str | None]]:
    """By rollout, the patches that a server would answer 200 users with."""
    state = registry.snapshot().state("acme", datetime.now(UTC))
    found: dict[str | None, set[str | None]] = {}
    for number in range(200):
        choice = decide(state, {"x-user-id": str(number)}, {}, datetime.now(UTC))
        compared = choice.assignment is not None and choice.assignment.compared
        name = choice.assignment.rollout if choice.assignment is not None and compared else None
        found.setdefault(name, set()).add(choice.adapter)
    return found


def test_two_rollouts_whose_ranges_do_not_overlap_run_at_one_time(registry: Registry) -> None:
    two(registry)
    assert served(registry) == {"spring": {OLD, NEW}, "summer": {OLD, THIRD}}
    acme = next(tenant for tenant in registry.tenants() if tenant.name == "acme")
    assert (acme.rollout, acme.beside, acme.active) == ("spring", ("summer",), OLD)
    assert acme.treated == pytest.approx(20), "half of 40 %"
    assert registry.published() >= {NEW, THIRD}, "gc leaves the arms of both"


def test_what_would_mix_users_or_controls_is_refused(registry: Registry) -> None:
    registry.rollouts.create(ranged("0..40", overrides={"ann": "treatment"}))
    registry.rollouts.create(ranged("0..40", tenant="globex", name="of-globex"))
    refused = [
        (rollout(**SUMMER), "already; promote or kill it first, or give both a --range"),
        (ranged("30..100", **SUMMER), r"has the users 0\.\.40; give a --range that does not overlap"),
        (ranged("40..100", **SUMMER, control=Arm("base")), "rollouts beside each other have one control"),
        (ranged("40..100", **SUMMER, sticky=Stickiness(("api-key",))), "another order of sticky keys"),
        (ranged("40..100", **SUMMER, overrides={"ann": "control"}), "has an override of 'ann' too"),
    ]
    before = registry.audit()
    for made, message in refused:
        with pytest.raises(EditError, match=message):
            registry.rollouts.create(made)
    assert registry.audit() == before
    registry.rollouts.create(ranged("40..100", **SUMMER))


def test_a_kill_ends_one_and_its_range_is_free_again(registry: Registry) -> None:
    two(registry)
    registry.rollouts.kill("spring")
    assert served(registry) == {None: {OLD}, "summer": {OLD, THIRD}}
    registry.rollouts.create(ranged("0..40", name="autumn"))
    registry.rollouts.ramp("autumn", 100)
    assert registry.rollouts.find("spring").closed
    assert not registry.rollouts.find("summer").closed
    assert served(registry) == {"autumn": {OLD, NEW}, "summer": {OLD, THIRD}}


def test_the_users_of_a_range_are_the_same_for_every_rollout_of_the_tenant(registry: Registry) -> None:
    first = registry.rollouts.create(ranged("0..40"))
    registry.rollouts.kill("spring")
    second = registry.rollouts.create(ranged("0..40", name="autumn"))
    assert first.audience == second.audience is not None
    assert first.audience.salt
    assert registry.rollouts.find("autumn") == second
    other = registry.rollouts.create(ranged("0..40", name="of-globex", tenant="globex"))
    assert other.audience is not None
    assert other.audience.salt != first.audience.salt


def test_no_rollout_is_promoted_beside_an_open_one(registry: Registry) -> None:
    two(registry)
    with pytest.raises(EditError, match=r"rollout 'summer' \(ramping\) is beside it; kill it first"):
        registry.rollouts.promote("spring")
    assert served(registry) == {"spring": {OLD, NEW}, "summer": {OLD, THIRD}}
    registry.rollouts.kill("summer")
    registry.rollouts.promote("spring")
    assert registry.rollouts.find("summer").closed, "its control is not what the tenant is served now"
    assert registry.served("acme").name == NEW
    assert served(registry) == {None: {NEW}}


def test_two_rollouts_after_a_promoted_one_begin_one_by_one_and_end_with_its_kill(registry: Registry) -> None:
    registry.rollouts.create(rollout(name="winter"))
    registry.rollouts.ramp("winter", 10)
    registry.rollouts.promote("winter")
    after = {"control": Arm("weights", NEW), "treatment": Arm("weights", THIRD)}
    registry.rollouts.create(ranged("0..40", **after))
    registry.rollouts.create(ranged("40..100", **after, name="summer"))
    registry.rollouts.ramp("spring", 100)
    assert registry.rollouts.find("winter").closed
    assert served(registry) == {"spring": {NEW, THIRD}, None: {NEW}}
    registry.rollouts.ramp("summer", 100)
    assert served(registry) == {"spring": {NEW, THIRD}, "summer": {NEW, THIRD}}


def test_a_rollback_ends_all_and_a_publication_waits_for_all(registry: Registry) -> None:
    two(registry)
    registry.rollouts.kill("spring")
    with pytest.raises(EditError, match="rollout 'summer' of tenant 'acme' is ramping"):
        registry.publish("acme", THIRD)
    assert registry.rollback("acme") == OLD
    assert [registry.rollouts.find(name).closed for name in ("spring", "summer")] == [True, True]
    assert served(registry) == {None: {OLD}}
    registry.publish("acme", THIRD)


def test_limits_of_one_leave_the_other_alone(registry: Registry) -> None:
    registry.rollouts.create(ranged("0..40", limits=(parse_limit("errors=kill"),)))
    registry.rollouts.create(ranged("40..100", **SUMMER, limits=(parse_limit("errors=kill"),)))
    registry.rollouts.ramp("summer", 100)
    running = registry.rollouts.ramp("spring", 100)
    registry.rollouts.expose(exposure for exposure in failing(running, users=300) if exposure.assignment.compared)
    watch = Watch("a", "node-a:1")
    assert registry.guard.hold(watch)
    assert [bool(registry.guard.test(name, watch)) for name in ("spring", "summer")] == [True, False]
    assert served(registry) == {None: {OLD}, "summer": {OLD, THIRD}}


# Holdouts


def test_a_holdout_is_audited_and_keeps_its_users_out_of_later_rollouts(registry: Registry) -> None:
    changed = registry.set_holdout("acme", 25, why="long-term effect", by="ann")
    assert changed.holdout == 25
    row = registry.audit("acme")[-1]
    assert (row.what, row.who, row.old, row.new) == ("tenant.holdout", "ann", '{"holdout":0.0}', '{"holdout":25}')
    made = registry.rollouts.create(rollout())
    assert made.audience is not None
    assert (made.audience.holdout, str(made.audience)) == (2_500, "0..100")
    registry.rollouts.ramp("spring", 100)
    found = served(registry)
    assert found["spring"] == {OLD, NEW}
    assert found[None] == {OLD}
    [acme, globex] = registry.tenants()
    assert (acme.holdout, globex.holdout) == (25, 0)
    assert acme.treated == pytest.approx(37.5)


def test_a_holdout_changes_only_between_rollouts(registry: Registry) -> None:
    registry.rollouts.create(rollout())
    with pytest.raises(EditError, match="rollout 'spring' of tenant 'acme' is created; promote or kill it first"):
        registry.set_holdout("acme", 5)
    registry.rollouts.kill("spring")
    before = registry.audit()
    for percent in (-1, 100, 0.001):
        with pytest.raises(EditError, match=r"per cent|holdout of less than"):
            registry.set_holdout("acme", percent)
    with pytest.raises(NotFound, match="no tenant"):
        registry.set_holdout("initech", 5)
    assert registry.set_holdout("acme", 0).holdout == 0
    assert registry.audit() == before, "nothing changed"
    registry.set_holdout("acme", 5)
    assert registry.set_holdout("acme", 0).holdout == 0
    assert registry.rollouts.create(rollout(name="summer")).audience is None


def test_without_a_range_and_a_holdout_a_rollout_is_stored_as_before(registry: Registry) -> None:
    made = rollout()
    assert registry.rollouts.create(made) == made
    assert replace(registry.rollouts.find("spring"), audience=None) == made
    snapshot = registry.snapshot()
    assert snapshot.beside == {}
