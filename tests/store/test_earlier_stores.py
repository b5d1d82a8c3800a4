"""A store with a registry that commit c92b47b wrote (its `new_store` and `compiled` of `tests.store.example`).

The registry is kept as SQL, so that a reader sees what is in it. Its schema is 0005.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from shutil import copytree

import pytest
import torch
from sqlalchemy import create_engine, text

from tests.store.example import compiled, newest_schema
from vllm_edit.artefacts.folder import encode_adapter
from vllm_edit.artefacts.reports import CompileReport, GateReport
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

CAPITAL = "capital@4c4b173ebdf7fe9dfc8c079de0784e60"
CURRENCY = "currency@0308042015ffcac273d9f9ff74ca81e6"


@pytest.fixture
def earlier(tmp_path: Path) -> Store:
    folder = copytree(Path(__file__).parent / "made_by_c92b47b", tmp_path / "store")
    dump = folder / "registry.sql"
    with closing(sqlite3.connect(folder / "registry.db")) as database:
        database.executescript(dump.read_text())
    dump.unlink()
    return Store.open(folder)


def test_an_earlier_store_lists_its_patches_and_finds_nothing_wrong(earlier: Store) -> None:
    assert sorted(earlier.names()) == [CAPITAL, CURRENCY]
    assert problems_of(earlier) == []


def test_an_earlier_store_resolves_names_and_serves_the_published_patch(earlier: Store) -> None:
    assert earlier.resolve("capital") == CAPITAL
    assert earlier.resolve("currency@0308") == CURRENCY
    assert {tenant.name: tenant.active for tenant in earlier.registry.tenants()} == {
        "acme": CAPITAL,
        "globex": CURRENCY,
    }
    assert [key.tenant for key in earlier.registry.snapshot().api_keys.values()] == ["acme"]
    assert earlier.entry(CURRENCY).adapter_id == 2


def test_an_earlier_patch_is_loaded_whole_and_keeps_its_name(earlier: Store) -> None:
    loaded, made = earlier.load(CAPITAL), compiled()
    assert loaded.manifest == made.manifest
    assert loaded.demonstrations == made.demonstrations
    assert loaded.factors is not None
    assert made.factors is not None
    assert torch.equal(loaded.factors.residuals, made.factors.residuals)
    assert [record.kind for record in earlier.records(CAPITAL)] == ["compile", "gate"]
    assert loaded.report == CompileReport(seconds=0.25)
    assert GateReport.of(earlier.records(CAPITAL, "gate")[-1].data).not_judged == ""
    assert earlier.save(made) == CAPITAL


def test_an_earlier_adapter_is_written_again_byte_for_byte(earlier: Store) -> None:
    for name in (CAPITAL, CURRENCY):
        folder = Path(earlier.url) / "patches" / name / "adapter"
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert encode_adapter(earlier.load(name)) == before


def test_an_earlier_registry_gets_the_newest_schema_and_changes_on(earlier: Store) -> None:
    registry = earlier.registry
    assert registry.rollback("acme", why="too early") is None
    with create_engine(registry.url).connect() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalars().all() == [newest_schema()]
    assert registry.active("acme") is None
    assert registry.verify_audit().problems == ()
