"""The audit: every change is a row of one chain, and every later change of the rows is found and named."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from vllm_edit.errors import Corrupt, EditError
from vllm_edit.files import LocalFiles, RemoteFiles, open_files
from vllm_edit.registry.audit import ANCHOR, EMPTY, Anchor, AuditEntry, Head, entry, verify
from vllm_edit.registry.registry import Registry
from vllm_edit.store.store import Store

A = "capital@" + "a" * 32


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path)


@pytest.fixture
def registry(registry_url: str, files: LocalFiles) -> Iterator[Registry]:
    """Six changes: rows 1 to 6."""
    made = Registry(registry_url, Anchor(files))
    made.add_patch(A)
    made.set_status(A, "accepted", by="gate")
    made.create_tenant("acme", by="ann")
    made.create_tenant("globex", by="ann")
    made.publish("acme", A, why="new 首都", by="bob")
    made.rollback("acme", why="wrong", by="ann")
    yield made
    made.close()


def test_a_row_says_who_changed_what_why_and_what_it_replaced(registry: Registry) -> None:
    rows = registry.audit("acme")
    assert [(row.number, row.who, row.what, row.why) for row in rows] == [
        (3, "ann", "tenant.create", ""),
        (5, "bob", "tenant.publish", "new 首都"),
        (6, "ann", "tenant.rollback", "wrong"),
    ]
    published = dataclasses.asdict(rows[1].as_record())
    assert published["old"] == {"active": None, "valid_until": None}
    assert (published["new"]["active"], published["new"]["gate"]["status"]) == (A, "accepted")
    assert registry.audit()[0].who, "whoever runs the process, where nobody is named"
    assert [row.number for row in registry.audit(newest=2)] == [5, 6]
    with pytest.raises(EditError, match="no tenant"):
        registry.audit("nobody")


def test_an_untouched_chain_is_whole_and_anchored(registry: Registry, files: LocalFiles) -> None:
    found = registry.verify_audit()
    assert (found.rows, found.not_anchored, found.problems) == (6, 0, ())
    last = registry.audit()[-1]
    assert Anchor(files).read() == Head(6, last.digest)


def test_a_change_without_effect_leaves_no_row(registry: Registry) -> None:
    registry.publish("acme", A)
    registry.publish("acme", A)
    assert len(registry.audit()) == 7
    registry.retired.remove("other@" + "0" * 32, 1, lambda: None)
    registry.enter_patch(A, None, lambda: True)
    registry.enter_patch("other@" + "0" * 32, None, lambda: False)
    assert len(registry.audit()) == 7


def test_the_database_refuses_to_change_or_remove_rows(registry: Registry) -> None:
    for statement in ("update audit set who = 'eve' where number = 5", "delete from audit where number = 6"):
        with (
            pytest.raises(DBAPIError, match="never changed or removed"),
            create_engine(registry.url).begin() as connection,
        ):
            connection.execute(text(statement))
    assert registry.verify_audit().problems == ()


@pytest.mark.parametrize("column", ["at", "who", "what", "tenant", "why", "old", "new"])
def test_a_changed_row_is_named(registry: Registry, column: str) -> None:
    tamper(registry, f"update audit set {column} = '2026' where number = 5")
    (problem,) = registry.verify_audit().problems
    assert problem.startswith("row 5 ")
    assert "was changed" in problem


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_removed_row_is_named(registry: Registry, number: int) -> None:
    tamper(registry, f"delete from audit where number = {number}")
    assert registry.verify_audit().problems == (f"row {number} was removed",)


def test_reordered_rows_are_named(registry: Registry) -> None:
    tamper(
        registry,
        "update audit set number = 99 where number = 2",
        "update audit set number = 2 where number = 4",
        "update audit set number = 4 where number = 99",
    )
    first, second = registry.verify_audit().problems
    assert first.startswith("row 2 ")
    assert first.endswith("was reordered: it was row 4")
    assert second.startswith("row 4 ")
    assert second.endswith("was reordered: it was row 2")


def test_a_cut_tail_is_found_by_the_anchor(registry: Registry) -> None:
    tamper(registry, "delete from audit where number > 4")
    assert registry.verify_audit().problems == ("rows 5 to 6 were removed at the end: the anchor has row 6",)
    tamper(registry, "delete from audit")
    assert registry.verify_audit().problems == ("rows 1 to 6 were removed at the end: the anchor has row 6",)


def test_a_cut_tail_that_was_written_over_is_found(registry: Registry) -> None:
    tamper(registry, "delete from audit where number = 6")
    registry.create_tenant("initech")
    assert registry.verify_audit().problems == (
        "row 6 differs from the anchored row: rows up to it were rewritten with their digests, or the anchor was "
        "changed",
    )


def test_a_row_forged_with_its_digest_is_found_by_the_next_row(registry: Registry) -> None:
    forge(registry, registry.audit()[4])
    (problem,) = registry.verify_audit().problems
    assert problem.startswith("row 6 ")
    assert problem.endswith("does not follow row 5")


def test_a_chain_forged_to_its_end_is_found_by_the_anchor(registry: Registry) -> None:
    row = forge(registry, registry.audit()[4])
    forge(registry, registry.audit()[5], after=Head(row.number, row.digest))
    (problem,) = registry.verify_audit().problems
    assert problem.startswith("row 6 differs from the anchored row")


def test_a_missing_or_spoiled_anchor_is_a_finding(registry: Registry, files: LocalFiles) -> None:
    (files.root / ANCHOR).unlink()
    (problem,) = registry.verify_audit().problems
    assert "anchor of the audit is missing" in problem
    for spoiled in (b"", b"[]", b'{"number":"6","digest":"x"}', b"\xff"):
        (files.root / ANCHOR).write_bytes(spoiled)
        with pytest.raises(Corrupt, match=r"audit\.json"):
            registry.verify_audit()


def test_rows_that_a_killed_writer_left_without_an_anchor_are_reported_and_anchored(
    registry: Registry, files: LocalFiles
) -> None:
    Registry(registry.url).create_tenant("initech")
    found = registry.verify_audit()
    assert (found.not_anchored, found.problems) == (1, ())
    registry.create_tenant("umbrella")
    assert registry.verify_audit().not_anchored == 0


def test_a_change_is_valid_although_its_anchor_cannot_be_written(
    registry: Registry, files: LocalFiles, caplog: pytest.LogCaptureFixture
) -> None:
    (files.root / ANCHOR).write_bytes(b"spoiled")
    with caplog.at_level(logging.ERROR):
        registry.create_tenant("initech")
    assert "row 7 of the audit is committed, but its anchor is not written" in caplog.text
    assert "initech" in [tenant.name for tenant in registry.tenants()]
    assert (files.root / ANCHOR).read_bytes() == b"spoiled", "evidence is not written over"


@pytest.mark.parametrize("url", ["{tmp_path}", "memory://anchors"])
def test_an_anchor_only_moves_forward(tmp_path: Path, url: str) -> None:
    files = open_files(url.format(tmp_path=tmp_path))
    assert isinstance(files, LocalFiles | RemoteFiles)
    anchor = Anchor(files)
    later = Head(2, "b" * 64)
    for head in (EMPTY, later, Head(1, "a" * 64), EMPTY):
        anchor.advance(head)
    assert anchor.read() == later


def test_a_chain_is_whole_only_as_it_was_written() -> None:
    rows: list[AuditEntry] = []
    head = EMPTY
    for number in range(8):
        fields: dict[str, Any] = {"at": "now", "who": "ann", "what": "w", "tenant": None, "why": "", "old": None}
        rows.append(entry(head, **fields, new=number))
        head = Head(rows[-1].number, rows[-1].digest)
    assert verify(rows, head).problems == ()
    for gone in range(8):
        assert verify([*rows[:gone], *rows[gone + 1 :]], head).problems, f"without row {gone + 1}"
    for number in range(8):
        spoiled = dataclasses.replace(rows[number], who=b"ann")  # type: ignore[arg-type]  # SQLite would hold it
        assert "changed" in verify([*rows[:number], spoiled, *rows[number + 1 :]], head).problems[0]


WRITER = """
import sys
from vllm_edit.registry.audit import Anchor
from vllm_edit.files import LocalFiles
from vllm_edit.registry.registry import Registry
from pathlib import Path
url, folder, own = sys.argv[1:]
registry = Registry(url, Anchor(LocalFiles(Path(folder))))
for number in range(25):
    registry.create_tenant(f"{own}-{number}", by=own)
"""


@pytest.mark.slow
def test_processes_that_write_at_once_make_one_chain(registry_url: str, files: LocalFiles) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, registry_url, str(files.root), f"writer{n}"]) for n in range(4)
    ]
    assert [writer.wait(timeout=300) for writer in writers] == [0] * 4
    registry = Registry(registry_url, Anchor(files))
    found = registry.verify_audit()
    assert (found.rows, found.not_anchored, found.problems) == (100, 0, ())
    whose = [row.who for row in registry.audit()]
    assert {whose.count(f"writer{n}") for n in range(4)} == {25}
    registry.close()


def test_a_store_is_anchored_from_its_beginning(store: Store) -> None:
    assert Anchor(store.files).read() == EMPTY
    store.registry.create_tenant("acme")
    reopened = Store.open(store.url)
    assert reopened.registry.verify_audit().not_anchored == 0
    (Path(store.url) / ANCHOR).unlink()
    assert reopened.registry.verify_audit().problems


def tamper(registry: Registry, *statements: str) -> None:
    """Acts as a user with all rights on the database."""
    triggers = {"sqlite": ["audit_refuses_update", "audit_refuses_delete"], "postgresql": ["audit_refuses ON audit"]}
    with create_engine(registry.url).begin() as connection:
        for trigger in triggers[registry.url.get_backend_name()]:
            connection.execute(text(f"drop trigger if exists {trigger}"))
        for statement in statements:
            connection.execute(text(statement))


def forge(registry: Registry, row: AuditEntry, after: Head | None = None) -> AuditEntry:
    """Rewrite a row under another name, with the right digest."""
    fields = {key: value for key, value in vars(row).items() if key not in ("number", "previous", "digest")}
    claimed = fields | {"who": "eve", "old": json.loads(row.old), "new": json.loads(row.new)}
    forged = entry(after or Head(row.number - 1, row.previous), **claimed)
    tamper(registry, f"delete from audit where number = {row.number}")
    columns = ", ".join(f":{name}" for name in vars(forged))
    with create_engine(registry.url).begin() as connection:
        connection.execute(text(f"insert into audit ({', '.join(vars(forged))}) values ({columns})"), vars(forged))
    return forged
