"""`vllm-edit answer` and `vllm-edit answers` report the log."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.cli.program import Program
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.store.store import Store

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NAME, OTHER = (f"capital@{digit * 32}" for digit in "ab")
FULL = AnswerEntry(
    id="edit-1",
    at=NOW,
    route="/v1/chat/completions",
    asked="acme",
    tenant="acme",
    key="0123456789ab",
    patch=NAME,
    adapter=OTHER,
    mode="weights",
    arm="treatment",
    rollout="spring",
    reason="SPLIT",
    subjects=("France", "臺灣"),
    groups=(0, 7),
    ike_tokens=0,
    status=200,
    ended="whole",
    prompt_tokens=12,
    completion_tokens=34,
    seconds=1.25,
    first_token_seconds=0.25,
    router_seconds=0.0005,
    generation=9,
    server="here:1",
)
BASE = replace(
    FULL,
    id="edit-2",
    at=NOW + timedelta(seconds=1),
    tenant="globex",
    patch=None,
    adapter=None,
    mode="base",
    arm=None,
    rollout=None,
    reason="DEFAULT",
    subjects=None,
    groups=None,
    status=None,
    ended="left",
    prompt_tokens=None,
    completion_tokens=None,
    first_token_seconds=None,
)


@pytest.fixture(autouse=True)
def _logged(store: Store) -> None:
    for tenant in ("acme", "globex"):
        store.registry.create_tenant(tenant)
    store.registry.answers.add([FULL, BASE])


def test_an_answers_id_names_the_exact_patch_and_the_reason(program: Program) -> None:
    printed = program("answer", "edit-1").out
    for expected in (
        "acme",
        NAME,
        OTHER,
        "weights",
        "treatment of rollout spring",
        "SPLIT",
        "France, 臺灣",
        "0, 7",
        "12 of the prompt, 34 of the answer",
        "1.25 in all, 0.25 to the first token, 0.0005 in the router",
        "whole, status 200",
        "here:1, generation 9",
    ):
        assert expected in printed
    assert "ike" not in printed
    base = program("answer", "edit-2").out
    assert "the base model" in base
    assert "the client left first, before it began" in base
    assert "tokens" not in base


def test_json_has_every_column(program: Program) -> None:
    printed = program("answer", "edit-1", "--json").json
    assert printed == asdict(FULL) | {"at": NOW.isoformat(), "subjects": ["France", "臺灣"], "groups": [0, 7]}


def test_the_last_answers_are_listed_newest_first(program: Program) -> None:
    header, *rows = program("answers").out.splitlines()
    assert header.split()[:3] == ["ID", "AT", "TENANT"]
    assert [row.split()[0] for row in rows] == ["edit-2", "edit-1"]
    assert OTHER in rows[1]
    assert [entry["id"] for entry in program("answers", "--tenant", "acme", "--json").json] == ["edit-1"]
    assert [entry["id"] for entry in program("answers", "--limit", "1", "--json").json] == ["edit-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("answer", "edit-9"), "no answer 'edit-9' in the log; it may be older than the log keeps"),
        (("answer", "a\nb"), "no answer 'a\\nb' in the log"),
        (("answers", "--tenant", "acmee"), "no tenant 'acmee'"),
    ],
)
def test_a_missing_input_is_reported_in_a_line(program: Program, arguments: tuple[str, ...], message: str) -> None:
    ran = program(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert message in ran.err


def test_a_clients_prompt_does_not_drive_the_operators_terminal(program: Program, store: Store) -> None:
    hostile = replace(FULL, id="edit-3", prompt="\x1b]0;owned\x07 France\x9b31m \u202eabc", subjects=("\x1b[2J",))
    store.registry.answers.add([hostile])
    shown = program("answer", hostile.id)
    assert shown.code == 0
    assert "\\x1b]0;owned\\x07 France\\x9b31m \\u202eabc" in shown.out
    assert not set("\x1b\x07\x9b\u202e") & set(shown.out)
    as_json = program("answer", hostile.id, "--json")
    assert as_json.json["prompt"] == hostile.prompt
    assert not set("\x1b\x07\x9b\u202e") & set(as_json.out)
