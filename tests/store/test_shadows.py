"""The registry's shadows: who switched one on, comparisons that are bounded, texts that are forgotten, and losses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from tests.rollout.example import NEW, published, rollout
from vllm_edit.errors import EditError
from vllm_edit.registry import migrations
from vllm_edit.registry.database import Database
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.shadows import TEXT_LENGTH, Shadows
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.shadow_report import ShadowPair, ShadowReport

PAIR = ShadowPair("edit-1", "control", False, True, 0.5, 0.25, 7, 9)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = published(registry_url, ["acme"])
    made.rollouts.create(rollout(shadow=Shadow(500)), by="ann")
    yield made
    made.close()


def report(registry: Registry) -> ShadowReport | None:
    return registry.rollouts.report("spring").shadowed


def test_a_shadow_is_audited_and_servers_follow_it_before_the_first_ramp(registry: Registry) -> None:
    assert [one.name for one in registry.snapshot().shadowing["acme"]] == ["spring"]
    assert registry.snapshot().rollouts == {}
    before = registry.generation()
    changed = registry.rollouts.shadow("spring", Shadow(2_000, texts=True), why="we look at texts", by="ben")
    assert changed == registry.rollouts.find("spring")
    row = registry.audit("acme")[-1]
    assert (row.what, row.who, row.why) == ("rollout.shadow", "ben", "we look at texts")
    assert '"percent":5.0' in row.old.replace(" ", "")
    assert '"percent":20.0,"texts":true' in row.new.replace(" ", "")
    assert registry.generation() == before + 1
    registry.rollouts.ramp("spring", 10)
    assert registry.rollouts.find("spring").shadow == Shadow(2_000, texts=True), "a ramp leaves it on"
    registry.rollouts.shadow("spring", None)
    assert registry.snapshot().names_shadowing == frozenset()


def test_a_killed_rollout_has_no_shadow(registry: Registry) -> None:
    registry.rollouts.ramp("spring", 10)
    assert registry.snapshot().names_shadowing == {"spring"}
    registry.rollouts.kill("spring")
    assert registry.snapshot().names_shadowing == frozenset()
    with pytest.raises(EditError, match="only an open rollout has a shadow"):
        registry.rollouts.shadow("spring", Shadow(1))


def test_comparisons_are_reported_by_arm(registry: Registry) -> None:
    assert report(registry) is None
    registry.shadows.add("spring", replace(PAIR, text="Rome", shadow_text="Paris"), "node-a:1")
    treated = replace(PAIR, answer="edit-2", side="treatment", greedy=False, text="Bonn", shadow_text="Berlin")
    registry.shadows.add("spring", treated, "node-a:1")
    registry.shadows.add("spring", replace(PAIR, answer="edit-3", same=True), "node-b:1")
    found = report(registry)
    assert found is not None
    assert (found.same.n, found.greedy.n, found.dropped, found.failed) == (3, 2, 0, 0)
    assert found.tokens == {"control": pytest.approx(23 / 3), "treatment": pytest.approx(25 / 3)}
    assert (found.seconds, found.shadow_seconds) == (0.5, 0.25)
    texts = [(example.answer, example.control, example.treatment) for example in found.examples]
    assert texts == [("edit-2", "Berlin", "Bonn"), ("edit-1", "Rome", "Paris")]


def test_a_rollout_takes_a_bounded_number_of_comparisons(registry: Registry) -> None:
    shadows = Shadows(Database(registry.url), most=2)
    assert [shadows.add("spring", PAIR, "node-a:1") for _ in range(4)] == [True, False, False, False]
    found = report(registry)
    assert found is not None
    assert found.same.n == 2


def test_losses_are_totals_of_processes_so_that_a_write_may_be_repeated(registry: Registry) -> None:
    for dropped in (1, 3, 3):
        registry.shadows.lose("spring", "a", dropped, 0)
    registry.shadows.lose("spring", "b", 2, 1)
    found = report(registry)
    assert found is not None
    assert (found.dropped, found.failed, found.same.n) == (5, 1, 0)


def test_texts_are_bounded_and_forgotten_and_the_comparison_stays(registry: Registry) -> None:
    long = replace(PAIR, text="x" * TEXT_LENGTH + "y\0", shadow_text="a\0\ud800")
    registry.shadows.add("spring", long, "node-a:1")
    found = report(registry)
    assert found is not None
    [example] = found.examples
    assert (example.control, example.treatment) == ("x" * TEXT_LENGTH, "a\ufffd?")
    assert registry.shadows.forget(datetime.now(UTC) - timedelta(days=1)) == 0
    assert registry.shadows.forget(datetime.now(UTC) + timedelta(seconds=1)) == 1
    assert registry.shadows.forget(datetime.now(UTC) + timedelta(seconds=1)) == 0
    found = report(registry)
    assert found is not None
    assert (found.examples, found.same.n) == ((), 1)


def test_a_rollout_from_before_there_were_shadows_has_none(registry_url: str) -> None:
    engine = create_engine(registry_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0009")
        connection.execute(text("insert into tenants (name, created_at) values ('acme', '2026-01-01 00:00:00')"))
        treatment = {"mode": "ike", "name": NEW}
        settings = json.dumps({"control": {"mode": "base", "name": None}, "treatment": treatment, "salt": "s"})
        connection.execute(
            text(
                "insert into rollouts (name, tenant, state, share, closed, settings, created_at, changed_at) values "
                "('spring', 'acme', 'created', 0, false, :settings, '2026-01-01 00:00:00', '2026-01-01 00:00:00')"
            ),
            {"settings": settings},
        )
    registry = Registry(registry_url)
    assert registry.rollouts.find("spring").shadow is None
    assert registry.rollouts.report("spring").shadowed is None
    assert registry.snapshot().names_shadowing == frozenset()
    registry.close()
