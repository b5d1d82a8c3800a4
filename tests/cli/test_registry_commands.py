"""Keys, expiry and the audit, as a user of the program sees them."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.store.example import compiled
from vllm_edit.registry.api_keys import authenticate
from vllm_edit.serving.served_model import served_model
from vllm_edit.store.store import Store


def whose(store: Store, presented: str) -> str | None:
    found = authenticate(store.registry.snapshot().api_keys, presented, datetime.now(UTC))
    return None if found is None else f"{found.tenant} {' '.join(sorted(found.rights))}"


@pytest.fixture
def tenant(store: Store) -> str:
    store.registry.set_status(store.save(compiled()), "accepted")
    return store.registry.create_tenant("acme").name


def test_a_new_key_is_alone_on_stdout_and_never_printed_again(program: Program, store: Store, tenant: str) -> None:
    ran = program("tenant", "key", "create", tenant, "--label", "web shop", "--who", "ann")
    presented = ran.out.strip()
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert presented not in ran.err
    assert whose(store, presented) == "acme base serve"
    printed = program("tenant", "key", "create", tenant, "--no-base", "--json").json
    assert whose(store, printed["key"]) == "acme serve"
    secrets = [text.rpartition(f"{text.split('_')[1]}_")[2] for text in (presented, printed["key"])]
    asked = [("tenant", "key", "list", tenant), ("key", "list"), ("audit", "show"), ("tenant", "list")]
    for arguments in [*asked, *((*words, "--json") for words in asked)]:
        out = program(*arguments).out
        assert not [secret for secret in secrets if secret in out]
    listed = program("tenant", "key", "list", tenant, "--json").json
    first = listed[0]
    assert (first["label"], first["created_by"], first["rights"]) == ("web shop", "ann", ["serve", "base"])
    assert "hash" not in listed[0]


def test_keys_are_revoked_by_their_ids(program: Program, store: Store, tenant: str) -> None:
    made = [program("tenant", "key", "create", tenant, "--json").json for _ in "12"]
    assert program("tenant", "key", "revoke", tenant, made[0]["id"], "--why", "left in a log").code == 0
    assert [whose(store, printed["key"]) for printed in made] == [None, "acme base serve"]
    assert "left in a log" in program("key", "list").out
    assert program("key", "revoke", made[1]["id"], "--json").json["id"] == made[1]["id"]
    assert whose(store, made[1]["key"]) is None
    for arguments in (
        ("key", "revoke", made[1]["id"]),
        ("key", "revoke", "nothing"),
        ("tenant", "key", "list", "nobody"),
    ):
        ran = program(*arguments)
        assert (ran.code, ran.err.count("\n")) == (1, 1)


def test_a_leaked_key_is_revoked_as_it_is_and_no_message_repeats_its_secret(
    program: Program, store: Store, tenant: str
) -> None:
    made = program("tenant", "key", "create", tenant, "--json").json
    for words in (("key", "revoke"), ("tenant", "key", "revoke", tenant)):
        damaged = program(*words, made["key"][:-1])
        assert damaged.code == 1
        assert made["key"][20:-1] not in damaged.err
    assert program("key", "revoke", made["key"], "--json").json["id"] == made["id"]
    again = program("key", "revoke", made["key"])
    assert (again.code, made["key"] in again.err) == (1, False)
    assert whose(store, made["key"]) is None


def test_no_tenant_has_the_base_models_name(program: Program, store: Store) -> None:
    ran = program("tenant", "create", served_model(store.site().model)[1])
    assert (ran.code, "the base model's name" in ran.err) == (1, True)
    assert store.registry.tenants() == []


def test_an_administrators_key_is_asked_for_by_name(program: Program, store: Store) -> None:
    assert program("key", "create").code == 2
    assert whose(store, program("key", "create", "--admin").out.strip()) == "None admin"


def test_a_publication_and_a_key_expire_at_their_time(program: Program, store: Store, tenant: str) -> None:
    program("tenant", "publish", tenant, "capital", "--until", "2h")
    (served,) = store.registry.tenants()
    assert served.valid_until is not None
    assert timedelta(minutes=119) < served.valid_until - datetime.now(UTC) <= timedelta(hours=2)
    (key,) = [program("tenant", "key", "create", tenant, "--until", "2100-01-31T12:00Z", "--json").json]
    assert key["expires_at"] == "2100-01-31T12:00:00+00:00"
    assert "expires" in program("key", "list").out
    for wrong in ("yesterday", "2001-01-31T12:00Z", "0d", "999999w", "-1d"):
        assert program("tenant", "publish", tenant, "capital", "--until", wrong).code == 2


def test_publishing_what_is_active_says_that_nothing_changed(program: Program, store: Store, tenant: str) -> None:
    publish = ("tenant", "publish", tenant, "capital", "--wait", 0)
    assert program(*publish, "--json").json["changed"] is True
    rows = store.registry.audit()
    again = program(*publish, "--why", "I insist", "--who", "ann")
    assert again.out.endswith(" already: nothing changed, and no reason or name is recorded\n")
    assert program(*publish, "--json").json["changed"] is False
    assert store.registry.audit() == rows
    assert program(*publish, "--until", "2h", "--json").json["changed"] is True


def test_the_audit_is_shown_and_verified(program: Program, store: Store, tenant: str) -> None:
    program("tenant", "publish", tenant, "capital", "--why", "asked\nfor", "--who", "ann")
    shown = program("audit", "show", "--tenant", tenant, "--json").json
    assert [(row["what"], row["who"]) for row in shown][-1] == ("tenant.publish", "ann")
    assert shown[-1]["new"]["active"] == store.names()[0]
    assert len(program("audit", "show").out.splitlines()) == 1 + len(program("audit", "show", "--json").json)
    assert len(program("audit", "show", "--limit", "1", "--json").json) == 1
    whole = program("audit", "verify", "--json")
    assert (whole.code, whole.json) == (0, {"rows": 4, "not_anchored": 0, "problems": []})
    assert program("audit", "verify").out.startswith("4 rows")

    with sqlite3.connect(Path(store.url) / "registry.db") as connection:
        connection.execute("drop trigger audit_refuses_update")
        connection.execute("update audit set who = 'bob', at = 'never', new = '{' where number = 4")
    broken = program("audit", "verify", "--json")
    assert (broken.code, len(json.loads(broken.out)["problems"])) == (1, 1)
    ran = program("audit", "verify")
    assert (ran.code, ran.err.count("\n"), ran.out) == (1, 1, "")
    assert "row 4 (never, tenant.publish) was changed" in ran.err
    assert program("audit", "show").code == 0, "what was tampered with can still be looked at"
