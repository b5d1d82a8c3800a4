from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.store.example import new_store
from vllm_edit.store.store import Store


@pytest.fixture(autouse=True)
def _no_configured_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that the developer's environment names must not be touched."""
    monkeypatch.delenv("VLLM_EDIT_STORE", raising=False)
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    bin = postgres.binaries()
    if bin is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with postgres.running(bin) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that a registry may be in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    cluster: postgres.Cluster = request.getfixturevalue("cluster")
    return cluster.new_database()
