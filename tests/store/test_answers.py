"""The registry's log of answers: stored fields, repeated batches, the newest rows, and retention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vllm_edit.errors import NotFound
from vllm_edit.registry.answers import PROMPT_LENGTH, AnswerEntry
from vllm_edit.registry.registry import Registry

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
NAME = "capital@" + "a" * 32
PLAIN = AnswerEntry(
    id="edit-0",
    at=NOW,
    route="/v1/completions",
    asked=None,
    tenant=None,
    key=None,
    patch=None,
    adapter=None,
    mode="base",
    arm=None,
    rollout=None,
    reason="DEFAULT",
    subjects=None,
    groups=None,
    ike_tokens=0,
    status=None,
    ended=None,
    prompt_tokens=None,
    completion_tokens=None,
    seconds=None,
    first_token_seconds=None,
    router_seconds=0.0,
    generation=None,
    server="here:1",
)
FULL = replace(
    PLAIN,
    id="edit-1",
    asked="acme",
    tenant="acme",
    key="0123456789ab",
    patch=NAME,
    adapter=NAME,
    mode="weights",
    arm="treatment",
    rollout="spring",
    reason="SPLIT",
    subjects=("France", "臺灣"),
    groups=(0, 7),
    ike_tokens=3,
    status=200,
    ended="whole",
    prompt_tokens=12,
    completion_tokens=34,
    seconds=1.5,
    first_token_seconds=0.25,
    router_seconds=0.001,
    generation=9,
    prompt="The capital of France is",
)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    made.create_tenant("acme")
    made.create_tenant("globex")
    yield made
    made.close()


def test_an_answer_is_found_as_it_was_added_and_servers_have_nothing_to_read_again(registry: Registry) -> None:
    before = (registry.generation(), registry.audit())
    registry.answers.add([PLAIN, FULL])
    registry.answers.add([])
    assert [registry.answers.find(item.id) for item in (PLAIN, FULL)] == [PLAIN, FULL]
    assert (registry.generation(), registry.audit()) == before


def test_a_batch_that_is_sent_twice_is_in_the_log_once(registry: Registry) -> None:
    registry.answers.add([PLAIN])
    registry.answers.add([replace(PLAIN, reason="STATIC"), FULL])
    assert registry.answers.newest() == [PLAIN, FULL]


@pytest.mark.parametrize("id", ["edit-9", "", "a" * 65, "a\0b", "\ud800", "'; --"])
def test_an_id_that_was_never_issued_is_not_found(registry: Registry, id: str) -> None:
    registry.answers.add([FULL])
    with pytest.raises(NotFound, match="no answer "):
        registry.answers.find(id)


def test_the_newest_of_everyone_or_of_a_tenant_come_first(registry: Registry) -> None:
    own = [
        replace(FULL, id=f"edit-{i}", at=NOW + timedelta(seconds=i), tenant="acme" if i % 2 else "globex")
        for i in range(6)
    ]
    registry.answers.add(own)
    assert [entry.id for entry in registry.answers.newest(limit=3)] == ["edit-5", "edit-4", "edit-3"]
    assert [entry.id for entry in registry.answers.newest("globex")] == ["edit-4", "edit-2", "edit-0"]
    with pytest.raises(NotFound, match="no tenant 'acmee'"):
        registry.answers.newest("acmee")


def test_old_answers_are_swept_the_oldest_first_and_so_many_at_a_time(registry: Registry) -> None:
    registry.answers.add(replace(PLAIN, id=f"edit-{i}", at=NOW + timedelta(days=i)) for i in range(6))
    until = NOW + timedelta(days=5)
    assert registry.answers.sweep(until, limit=3) == 3
    assert [entry.id for entry in registry.answers.newest()] == ["edit-5", "edit-4", "edit-3"]
    assert registry.answers.sweep(until, limit=3) == 2
    assert registry.answers.sweep(until) == 0
    assert [entry.id for entry in registry.answers.newest()] == ["edit-5"]


def test_text_that_a_database_cannot_hold_does_not_hold_up_the_batch(registry: Registry) -> None:
    hostile = replace(FULL, id="edit-2", asked="a\0\ud800" + "b" * 500, prompt="\ud83d" + "\0" * 2 * PROMPT_LENGTH)
    registry.answers.add([hostile, FULL])
    kept = registry.answers.find("edit-2")
    assert kept.asked == "a\ufffd?" + "b" * 157
    assert kept.prompt == "?" + "\ufffd" * (PROMPT_LENGTH - 1)
    assert registry.answers.find("edit-1") == FULL
