"""Keys are shown once and stored as a hash; a snapshot in memory identifies their callers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, text

from vllm_edit.errors import EditError, NotFound
from vllm_edit.registry import api_keys
from vllm_edit.registry.api_keys import ApiKey, Principal, authenticate
from vllm_edit.registry.registry import Registry

NOW = datetime.now(UTC)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    for tenant in ("acme", "globex"):
        made.create_tenant(tenant)
    yield made
    made.close()


def asked(registry: Registry, presented: str, now: datetime | None = None) -> Principal | None:
    return authenticate(registry.snapshot().api_keys, presented, now or datetime.now(UTC))


def test_a_key_identifies_its_tenant_with_its_rights(registry: Registry) -> None:
    assert not registry.snapshot().keyed
    whole, narrow = registry.create_api_key("acme"), registry.create_api_key("globex", base=False)
    assert asked(registry, whole.presented) == Principal(whole.api_key.id, "acme", frozenset({"serve", "base"}))
    found = asked(registry, narrow.presented)
    assert found is not None
    assert (found.tenant, found.may("serve"), found.may("base"), found.may("admin")) == ("globex", True, False, False)
    assert registry.snapshot().keyed
    assert not registry.snapshot().administered


def test_an_administrators_key_has_no_tenant_and_may_only_administer(registry: Registry) -> None:
    made = registry.create_api_key(None, label="pipeline")
    assert asked(registry, made.presented) == Principal(made.api_key.id, None, frozenset({"admin"}))
    assert registry.snapshot().administered


def test_a_secret_is_stored_nowhere(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        made = registry.create_api_key("acme")
    secret = made.presented.rpartition(f"{made.api_key.id}_")[2]
    assert len(secret) == 43
    rows = []
    engine = create_engine(registry.url)
    with engine.connect() as connection:
        for table in inspect(engine).get_table_names():
            rows += map(repr, connection.execute(text(f"select * from {table}")))
    everything = "\n".join([*rows, caplog.text, repr(made), repr(registry.snapshot()), registry.audit()[-1].new])
    assert made.api_key.id in everything
    assert secret not in everything
    assert made.api_key.hash not in repr(made)
    assert made.api_key.hash not in registry.audit()[-1].new
    assert "hash" not in asdict(made.api_key.info)


def test_a_near_copy_of_a_key_identifies_no_caller(registry: Registry) -> None:
    ours, other = registry.create_api_key("acme"), registry.create_api_key("globex")
    secret = other.presented.rpartition("_")[2]
    for presented in (
        "",
        ours.api_key.id,
        ours.presented[:-1],
        ours.presented + "a",
        ours.presented + "\n",
        f" {ours.presented}",
        ours.presented.upper(),
        ours.presented.replace(ours.api_key.id, other.api_key.id),
        f"ve_{ours.api_key.id}_{secret}",
        f"ve_{'0' * 12}_{'a' * 43}",
        ours.api_key.hash,
        "v" * 1_000_000,
        "ключ",
        "\ud800",
    ):
        assert asked(registry, presented) is None


def test_a_revoked_or_expired_key_identifies_no_caller(registry: Registry) -> None:
    made, short = registry.create_api_key("acme"), registry.create_api_key("acme", expires_at=NOW + timedelta(hours=1))
    assert asked(registry, short.presented) is not None
    assert asked(registry, short.presented, NOW + timedelta(hours=1)) is None
    revoked = registry.revoke_api_key(made.api_key.id, why="left in a log", by="ann")
    assert (revoked.revoked_by, revoked.revoked_why) == ("ann", "left in a log")
    assert asked(registry, made.presented) is None
    with pytest.raises(EditError, match="revoked already"):
        registry.revoke_api_key(made.api_key.id)
    assert registry.snapshot().keyed, "revoking every key does not open a server"
    row = registry.audit()[-1]
    assert (row.what, row.tenant, row.who, row.why) == ("key.revoke", "acme", "ann", "left in a log")


def test_a_key_is_revoked_only_as_its_own_tenants(registry: Registry) -> None:
    made = registry.create_api_key("acme")
    with pytest.raises(EditError, match="does not belong to tenant"):
        registry.revoke_api_key(made.api_key.id, tenant="globex")
    assert asked(registry, made.presented) is not None
    registry.revoke_api_key(made.api_key.id, tenant="acme")
    with pytest.raises(NotFound):
        registry.revoke_api_key("f" * 12)


def test_keys_are_listed_by_tenant(registry: Registry) -> None:
    made = [registry.create_api_key(tenant).api_key for tenant in ("acme", "globex", None)]
    assert registry.api_keys() == made
    assert registry.api_keys("globex") == [made[1]]
    with pytest.raises(NotFound):
        registry.api_keys("nobody")


def test_ends_of_keys_must_be_moments(registry: Registry) -> None:
    outside = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
    for wrong in (datetime.now(), datetime.now(UTC) - timedelta(seconds=1), outside):
        with pytest.raises(EditError, match="future time with a zone"):
            registry.create_api_key("acme", expires_at=wrong)
    assert registry.api_keys() == []


def _key(id: str, presented: str) -> ApiKey:
    return ApiKey(id, "acme", ("serve",), "", NOW, "ann", None, None, None, None, api_keys.hashed(presented))


@given(st.text(max_size=80))
def test_no_text_but_the_key_itself_is_accepted(presented: str) -> None:
    id, key = api_keys.make()
    known = {id: _key(id, key)}
    assert authenticate(known, presented, NOW) is None
    assert authenticate(known, key, NOW) is not None


def test_a_thousand_keys_differ(tmp_path: Path) -> None:
    made = [api_keys.make() for _ in range(1000)]
    assert len({id for id, _ in made}) == len({key for _, key in made}) == 1000
    known = {id: _key(id, key) for id, key in made}
    chosen = secrets.choice(made)
    found = authenticate(known, chosen[1], NOW)
    assert found is not None
    assert found.api_key_id == chosen[0]
