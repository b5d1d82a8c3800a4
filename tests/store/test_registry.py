"""The registry: publish, rollback and history; one generation step per change; migrations; many processes.

Over SQLite and PostgreSQL, but for what is about a file.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, create_engine, inspect, make_url, text, update

from tests import postgres
from tests.store.example import newest_schema
from vllm_edit.errors import EditError, NotFound, Unavailable
from vllm_edit.registry import migrations, tables
from vllm_edit.registry.audit import Verified
from vllm_edit.registry.database import Database
from vllm_edit.registry.registry import Registry

A, B, C = (f"capital@{digit * 32}" for digit in "abc")
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    for name in (A, B, C):
        made.add_patch(name)
        made.set_status(name, "accepted")
    made.create_tenant("acme")
    yield made
    made.close()


def test_publishing_and_rolling_back_walk_the_history(registry: Registry) -> None:
    assert registry.active("acme") is None
    for name in (A, B, C):
        assert registry.publish("acme", name, why=f"try {name[-1]}", by="ann")
        assert registry.active("acme") == name
    assert registry.rollback("acme", why="wrong", by="bob") == B
    assert registry.rollback("acme") == A
    assert registry.active("acme") == A
    newest, *_, oldest = registry.history("acme")
    assert (newest.name, newest.rolled_back, newest.rolled_back_by, newest.rolled_back_why) == (C, True, "bob", "wrong")
    assert (oldest.name, oldest.rolled_back, oldest.by, oldest.why) == (A, False, "ann", "try a")
    assert registry.publish("acme", C)
    assert not registry.publish("acme", C, why="again"), "it was served C already"
    assert registry.rollback("acme") == A, "what was rolled back is not gone back to"
    assert registry.rollback("acme") is None, "before the first publication there was base"
    assert registry.active("acme") is None
    with pytest.raises(EditError, match="nothing to roll back"):
        registry.rollback("acme")


def test_rolling_back_to_a_name_undoes_everything_after_it(registry: Registry) -> None:
    for name in (A, B, C):
        registry.publish("acme", name)
    with pytest.raises(NotFound, match="not an earlier publication"):
        registry.rollback("acme", to=C)
    assert registry.rollback("acme", to=A) == A
    assert [publication.rolled_back for publication in registry.history("acme")] == [True, True, False]
    with pytest.raises(NotFound):
        registry.rollback("acme", to=B)


def test_publishing_the_active_patch_leaves_the_history_alone(registry: Registry) -> None:
    registry.publish("acme", A)
    registry.publish("acme", A)
    assert len(registry.history("acme")) == 1


def test_a_rejected_patch_is_published_only_by_override(registry: Registry) -> None:
    registry.set_status(A, "rejected", "locality 0.62, 0.9 is needed")
    with pytest.raises(EditError, match=r"locality 0\.62"):
        registry.publish("acme", A)
    assert registry.active("acme") is None
    with pytest.raises(EditError, match="needs a name"):
        registry.publish("acme", A, override="the customer asked")
    registry.publish("acme", A, override="the customer asked", by="ann")
    assert [
        (publication.name, publication.override, publication.why, publication.by)
        for publication in registry.history("acme")
    ] == [(A, True, "the customer asked", "ann")]
    assert json.loads(registry.audit()[-1].new)["gate"] == {
        "status": "rejected", "reason": "locality 0.62, 0.9 is needed", "override": "the customer asked"
    }  # fmt: skip
    registry.add_patch(A)
    assert registry.patch(A).status == "rejected", "compiling the same again does not wash the verdict off"
    registry.set_status(A, "ungated")
    registry.rollback("acme")
    with pytest.raises(EditError, match="never judged"):
        registry.publish("acme", A)
    registry.set_status(A, "accepted")
    registry.publish("acme", A, override="not needed", by="ann")
    assert not registry.history("acme")[0].override
    with pytest.raises(EditError, match="expected a status"):
        registry.set_status(A, "fine")  # type: ignore[arg-type]


@pytest.mark.parametrize("blank", [" ", "\t\n", "\u00a0"])
def test_a_blank_reason_or_name_overrides_no_gate(registry: Registry, blank: str) -> None:
    registry.set_status(A, "rejected")
    before = registry.audit()
    for given in (
        {"override": blank, "by": "ann"},
        {"override": "they insist", "by": blank},
        {"override": blank, "by": "ann", "why": "they insist"},
        {"override": "they insist", "by": "ann", "why": blank},
    ):
        with pytest.raises(EditError, match="got only spaces; write it, or leave it out"):
            registry.publish("acme", A, **given)
    assert (registry.active("acme"), registry.audit()) == (None, before)
    registry.publish("acme", A, override=f"{blank}they insist{blank}", by=f" ann{blank}")
    (published,) = registry.history("acme")
    assert (published.why, published.by) == ("they insist", "ann")


def test_tenants_do_not_share_what_they_are_served(registry: Registry) -> None:
    registry.create_tenant("globex")
    registry.publish("acme", A)
    registry.publish("globex", B)
    assert {tenant.name: tenant.active for tenant in registry.tenants()} == {"acme": A, "globex": B}
    assert registry.rollback("globex") is None
    assert registry.active("acme") == A
    with pytest.raises(EditError, match="already"):
        registry.create_tenant("acme")
    assert registry.published() == {A}


@pytest.mark.parametrize("name", ["", "Acme", "a b", "../x", "acme\n", "acme:ike", "a" * 64, "全"])
def test_a_tenants_name_is_checked(registry: Registry, name: str) -> None:
    with pytest.raises(EditError, match="tenant's name"):
        registry.create_tenant(name)


def test_unknown_tenants_and_patches_report_the_nearest(registry: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        registry.publish("acmee", A)
    assert caught.value.nearest == ["acme"]
    with pytest.raises(NotFound) as caught:
        registry.publish("acme", "capitol@" + "a" * 32)
    assert set(caught.value.nearest) == {A, B, C}
    for use in (registry.active, registry.history, registry.rollback):
        with pytest.raises(NotFound):
            use("nobody")


def test_a_patch_that_can_be_served_cannot_be_removed(registry: Registry) -> None:
    registry.publish("acme", A)
    registry.publish("acme", B)
    assert [registry.retired.add(registry.patch(name)) for name in (A, B)] == [False, False]
    registry.rollback("acme")
    assert registry.retired.add(registry.patch(B))
    assert [entry.name for entry in registry.patches()] == [C, A]
    assert [entry.name for entry in registry.snapshot().patches] == [C, A]


def test_a_retired_patch_cannot_be_used_and_saving_it_again_restores_it(registry: Registry) -> None:
    registry.set_status(A, "rejected", "locality 0.62")
    before = registry.patch(A)
    assert registry.retired.add(before)
    assert registry.retired.since() == {A: registry.generation()}
    for use in (
        lambda: registry.patch(A),
        lambda: registry.publish("acme", A, override="please", by="ann"),
        lambda: registry.set_status(A, "accepted"),
    ):
        with pytest.raises(NotFound, match="being removed by gc; compile it again"):
            use()
    registry.enter_patch(A, None, lambda: True)
    assert A in registry.retired.since(), "to list what is stored is not to save it"
    assert registry.add_patch(A) == dataclasses.replace(before, saved_at=registry.patch(A).saved_at)
    assert registry.retired.since() == {}
    assert not registry.retired.add(before), "it was saved since"


def test_the_last_saved_patch_is_the_newest_also_after_one_of_a_machine_whose_clock_is_ahead(
    registry: Registry,
) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    with create_engine(registry.url).begin() as connection:
        connection.execute(update(tables.patches).where(tables.patches.c.name == C).values(saved_at=ahead))
    for name in (B, A):
        saved = registry.add_patch(name)
        assert saved.saved_at > ahead
        assert registry.patches()[0] == saved
    assert [entry.name for entry in registry.patches()] == [A, B, C]


def test_a_patch_is_removed_with_its_files_only_while_it_is_retired(registry: Registry) -> None:
    registry.retired.add(registry.patch(A))
    registry.retired.add(registry.patch(B))
    since = registry.retired.since()
    assert list(since) == [A, B]
    removed: list[str] = []
    registry.add_patch(A)
    assert not registry.retired.remove(A, since[A], lambda: removed.append(A))
    registry.retired.add(registry.patch(A))
    assert not registry.retired.remove(A, since[A], lambda: removed.append(A)), "it was retired anew"
    with pytest.raises(OSError, match="disk"):
        registry.retired.remove(B, since[B], lambda: _fails("disk"))
    assert registry.retired.since()[B] == since[B]
    assert registry.retired.remove(B, since[B], lambda: removed.append(B))
    assert not registry.retired.remove(B, since[B], lambda: removed.append(B))
    assert removed == [B]
    assert list(registry.retired.since()) == [A]


def test_every_change_raises_the_generation_in_its_own_transaction(registry: Registry) -> None:
    changes = (
        lambda: registry.add_patch("other@" + "d" * 32),
        lambda: registry.create_tenant("globex"),
        lambda: registry.publish("acme", A),
        lambda: registry.publish("acme", B),
        lambda: registry.rollback("acme"),
        lambda: registry.set_status(A, "accepted"),
        lambda: registry.retired.add(registry.patch(C)),
        lambda: registry.retired.remove(C, registry.retired.since()[C], lambda: None),
        lambda: registry.create_api_key("acme"),
        lambda: registry.revoke_api_key(registry.api_keys()[0].id),
    )
    for change in changes:
        before, rows = registry.generation(), len(registry.audit())
        change()
        assert registry.generation() == before + 1
        assert len(registry.audit()) == rows + 1


def test_a_refused_change_changes_nothing_not_even_the_generation(registry: Registry) -> None:
    registry.set_status(A, "rejected")
    before = (registry.snapshot(), registry.history("acme"), registry.audit())
    for refused in (
        lambda: registry.publish("acme", A),
        lambda: registry.publish("nobody", B),
        lambda: registry.rollback("acme"),
        lambda: registry.create_tenant("acme"),
        lambda: registry.set_status("x@" + "0" * 32, "accepted"),
        lambda: registry.publish("acme", B, why="\ud800"),
        lambda: registry.publish("acme", B, why="a\0b"),
        lambda: registry.publish("acme", B, by="a" * 129),
        lambda: registry.patch("a\0b"),
        lambda: registry.create_api_key("nobody"),
        lambda: registry.revoke_api_key("0" * 12),
        lambda: registry.revoke_api_key("a\0b"),
    ):
        with pytest.raises(EditError):
            refused()
    assert (registry.snapshot(), registry.history("acme"), registry.audit()) == before


def test_the_returned_records_are_values(registry: Registry) -> None:
    registry.publish("acme", A)
    for value in (registry.patch(A), registry.tenants()[0], registry.history("acme")[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.name = "x"  # type: ignore[misc]
    assert registry.patch(A).saved_at.tzinfo is not None


def test_a_publication_expires_and_the_publication_before_is_served(registry: Registry) -> None:
    start = datetime.now(UTC)
    soon, later = start + timedelta(hours=1), start + timedelta(hours=2)
    registry.publish("acme", A, valid_until=later)
    registry.publish("acme", B, valid_until=soon)
    (tenant,) = registry.tenants()
    assert (tenant.active, tenant.valid_until) == (B, soon)
    at = [start - timedelta(hours=1), soon - timedelta(seconds=1), soon, later]
    assert [registry.active("acme", moment) for moment in at] == [None, B, A, None]
    snapshot = registry.snapshot()
    assert [snapshot.active("acme", moment) for moment in at] == [B, B, A, None], (
        "a clock behind the publisher's serves too"
    )
    assert [snapshot.next_end(moment) for moment in at] == [soon, soon, later, None]
    for wrong in (start, datetime.now(), datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))):
        with pytest.raises(EditError, match=r"already|zone"):
            registry.publish("acme", C, valid_until=wrong)
    assert registry.rollback("acme") == A
    assert registry.active("acme", soon) == A
    assert registry.publish("acme", A)
    assert registry.tenants()[0].valid_until is None, "publishing it again without an end takes the end away"


def test_an_expired_publication_is_not_rolled_back_to(registry: Registry) -> None:
    registry.publish("acme", A, valid_until=datetime.now(UTC) + timedelta(seconds=0.3))
    registry.publish("acme", B)
    while not registry.history("acme")[1].ended(datetime.now(UTC)):
        time.sleep(0.05)
    with pytest.raises(NotFound):
        registry.rollback("acme", to=A)
    assert registry.rollback("acme") is None


def test_an_expired_publication_is_not_in_force(registry: Registry) -> None:
    registry.publish("acme", A, valid_until=datetime.now(UTC) + timedelta(seconds=0.3))
    assert not registry.retired.add(registry.patch(A)), "it is served"
    while not registry.history("acme")[0].ended(datetime.now(UTC)):
        time.sleep(0.05)
    assert A not in registry.published()
    assert registry.retired.add(registry.patch(A))
    snapshot = registry.snapshot()
    behind = datetime.now(UTC) - timedelta(hours=1)
    assert snapshot.active("acme", behind) is None, "also by a clock by which it has not ended"
    assert registry.history("acme")[0].name == A


def test_a_patch_ends_with_the_first_of_its_edits(registry: Registry) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    registry.add_patch(A, valid_until=soon)
    registry.publish("acme", A, valid_until=soon + timedelta(hours=1))
    assert registry.tenants()[0].valid_until == soon
    registry.add_patch(B, valid_until=datetime.now(UTC))
    with pytest.raises(EditError, match="valid_until"):
        registry.publish("acme", B)


def test_the_patch_served_at_a_time_is_known_after_a_rollback(registry: Registry) -> None:
    times = []
    for change in (
        lambda: registry.publish("acme", A),
        lambda: registry.publish("acme", B),
        lambda: registry.rollback("acme"),
    ):
        change()
        times.append(datetime.now(UTC))
    assert [registry.active("acme", moment) for moment in times] == [A, B, A]


def test_a_snapshot_is_one_state(registry: Registry) -> None:
    registry.create_tenant("globex")
    registry.publish("acme", A)
    snapshot = registry.snapshot()
    registry.rollback("acme")
    registry.publish("globex", B)
    now = datetime.now(UTC)
    assert (snapshot.active("acme", now), snapshot.active("globex", now)) == (A, None)
    assert [entry.name for entry in snapshot.patches] == [C, B, A]
    assert registry.snapshot().generation == snapshot.generation + 2


def test_migrations_run_once_from_empty_and_make_the_declared_tables(registry_url: str) -> None:
    Registry(registry_url).create_tenant("acme")
    reopened = Registry(registry_url)
    assert [tenant.name for tenant in reopened.tenants()] == ["acme"]
    engine = create_engine(reopened.url)
    with engine.connect() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalars().all() == [newest_schema()]
        assert connection.execute(text("select value from generation")).scalars().all() == [1]
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_sqlite_is_in_wal_mode_and_gives_no_id_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    Registry(url).generation()
    with create_engine(url).connect() as connection:
        assert connection.execute(text("pragma journal_mode")).scalar() == "wal"
    assert "autoincrement" in _definition(url, "patches").lower()


def test_a_registry_of_the_first_schema_keeps_its_content(registry_url: str) -> None:
    engine = create_engine(make_url(registry_url).set(drivername=_DRIVERS[make_url(registry_url).get_backend_name()]))
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
    with engine.begin() as connection:
        connection.execute(text(
            "insert into patches (name, patch, digest, saved_at, status, reason) "
            f"values ('{A}', 'capital', '{'a' * 32}', '2026-01-01 00:00:00', 'accepted', '')"
        ))  # fmt: skip
        connection.execute(text("insert into tenants (name, created_at) values ('acme', '2026-01-01 00:00:00')"))
        connection.execute(text(
            "insert into publications (tenant, name, at, by, why, override) "
            f"values ('acme', '{A}', '2026-01-01 00:00:00', 'ann', '', {'false' if 'post' in registry_url else 0})"
        ))  # fmt: skip
    registry = Registry(registry_url)
    assert registry.active("acme") == A
    assert registry.audit() == []
    assert registry.rollback("acme") is None
    assert registry.verify_audit().problems == ()


def test_a_registry_of_a_schema_without_tokens_gets_one_and_every_change_a_new_one(registry_url: str) -> None:
    engine = create_engine(registry_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0011")
        connection.execute(text("update generation set value = 7"))
        connection.execute(text("insert into servers values ('a', 'vm', 1, 7, 7, 0)"))
    registry = Registry(registry_url)
    revisions = [registry.revision()]
    assert registry.revision() == registry.snapshot().revision == revisions[0]
    for tenant in ("acme", "globex"):
        registry.create_tenant(tenant)
        revisions.append(registry.revision())
    assert [revision.generation for revision in revisions] == [7, 8, 9]
    assert len({revision.token for revision in revisions} - {None}) == 3
    registry.close()


def test_a_migration_that_fails_leaves_an_empty_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:  # this blocks the last step
        connection.execute(text("create table publications (id integer)"))
    with pytest.raises(EditError, match="publications already exists"):
        Registry(url).generation()
    assert inspect(engine).get_table_names() == ["publications"]
    with engine.begin() as connection:
        connection.execute(text("drop table publications"))
    assert Registry(url).generation() == 0


def test_a_registry_is_opened_while_its_database_is_gone_and_used_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    for _ in "12":
        with pytest.raises(EditError, match="cannot be used"):
            registry.snapshot()
    folder.mkdir()
    assert registry.create_tenant("acme").name == "acme"


def test_a_registry_that_is_used_by_many_threads_at_once_is_migrated_once(registry_url: str) -> None:
    registry = Registry(registry_url)
    with ThreadPoolExecutor(8) as threads:
        tenants = list(threads.map(lambda n: registry.create_tenant(f"tenant{n}"), range(8)))
    assert registry.tenants() == tenants
    assert registry.generation() == 8


def test_a_registry_of_a_newer_version_is_refused(registry_url: str) -> None:
    registry = Registry(registry_url)
    registry.generation()
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(EditError, match="schema 9999"):
        Registry(registry_url).generation()


def test_a_registry_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="cannot be used: unable to open"):
        Registry(f"sqlite:///{tmp_path / 'missing' / 'registry.db'}").generation()
    (tmp_path / "text.db").write_text("no database, but long enough to look like one " * 100)
    with pytest.raises(EditError, match="cannot be used: file is not a database"):
        Registry(f"sqlite:///{tmp_path / 'text.db'}").generation()
    with pytest.raises(EditError, match="cannot be used") as caught:
        Registry(f"postgresql://ann:secret@/registry?host={tmp_path}").generation()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    for url in ("mysql://ann:secret@host/registry", "ann:secret"):
        with pytest.raises(EditError, match="expected the URL") as caught:
            Registry(url)
        assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_role_that_may_not_write_is_reported_in_one_line(cluster: postgres.Cluster) -> None:
    url = make_url(cluster.new_database())
    owner = Registry(url)
    owner.generation()
    with create_engine(owner.url).begin() as connection:
        connection.execute(text("create role guest login"))
        connection.execute(text("grant select on all tables in schema public to guest"))
    guest = Registry(url.set(username="guest"))
    assert guest.tenants() == []
    with pytest.raises(EditError, match="cannot be used: permission denied"):
        guest.create_tenant("acme")
    with pytest.raises(EditError, match="cannot be used: permission denied"):
        Registry(make_url(cluster.new_database()).set(username="guest")).generation()


@pytest.mark.slow
def test_locks_and_statements_that_take_too_long_are_given_up(
    cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limits(url: str | URL) -> list[object]:
        database = Database(url)
        with database.read() as connection:
            found = [connection.exec_driver_sql(f"show {item}_timeout").scalar() for item in ("lock", "statement")]
        database.close()
        return found

    url = make_url(cluster.new_database())
    assert limits(url) == ["30s", "1min"]
    with Database(url).listen() as listening:
        assert listening.execute("show statement_timeout").fetchone() == ("0",)
    assert limits(url.update_query_dict({"options": "-c lock_timeout=50ms"})) == ["50ms", "1min"]
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=2min")
    assert limits(url) == ["30s", "2min"], "what the operator says holds"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["lock", "statement"])
def test_a_lock_that_another_process_holds_is_reported_in_one_line(cluster: postgres.Cluster, limit: str) -> None:
    url = make_url(cluster.new_database())
    Registry(url).generation()
    hurried = Registry(url.update_query_dict({"options": f"-c {limit}_timeout=50ms"}))
    with create_engine(hurried.url).begin() as connection:
        connection.execute(text("update generation set value = value"))
        with pytest.raises(Unavailable, match=f"cannot be used: canceling statement due to {limit} timeout") as caught:
            hurried.create_tenant("acme")
    assert "\n" not in str(caught.value)
    hurried.create_tenant("acme")
    hurried.close()


WRITER = """
import sys
from vllm_edit.registry.registry import Registry
url, own = sys.argv[1:]
registry = Registry(url)
ids = [registry.add_patch(f"{own}@{n:032x}").adapter_id for n in range(20)]
same = [registry.add_patch(f"shared@{n:032x}").adapter_id for n in range(20)]
print(*ids, *same)
"""


def test_processes_that_open_and_write_at_once_agree_on_ids_and_on_one_chain(registry_url: str) -> None:
    url = registry_url
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, f"writer{n}"], stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    printed = [list(map(int, writer.communicate(timeout=300)[0].split())) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    own = [number for numbers in printed for number in numbers[:20]]
    shared = {tuple(numbers[20:]) for numbers in printed}
    assert len(shared) == 1, "a patch has one id, whoever entered it"
    assert len({*own, *shared.pop()}) == 100
    registry = Registry(url)
    assert registry.generation() == 160
    assert registry.verify_audit() == Verified(rows=160, not_anchored=160, problems=())
    assert all(0 < entry.adapter_id < 2**31 for entry in registry.patches())


def _fails(reason: str) -> None:
    raise OSError(reason)


def _definition(url: str, table: str) -> str:
    with create_engine(url).connect() as connection:
        return str(
            connection.execute(text("select sql from sqlite_master where name = :name"), {"name": table}).scalar()
        )
