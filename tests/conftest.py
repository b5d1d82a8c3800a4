"""Fixtures that several packages' tests share. The models are read-only: a test that changes one makes its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import postgres
from tests.groups import GroupScheduling
from tests.made_once import MadeOnce, of_this_run
from tests.serving.few_slots import FewSlots, few_slots_server
from tests.store.example import new_store
from tests.tiny import tiny_model, tiny_tokenizer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="fault tests in their full sizes (make test-faults)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling | None:
    return GroupScheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Folders that are made once for all processes of the run."""
    return of_this_run(tmp_path_factory)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store without patches, for copies: they take less time than the migrations of a new one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("VLLM_EDIT_REGISTRY", raising=False)
        made = new_store(tmp_path_factory.mktemp("empty") / "store")
    made.registry.close()
    return Path(made.url)


@pytest.fixture(scope="session")
def few_slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FewSlots]:
    """One real server with few slots; a file that uses it has patches and tenants of its own, and is in `GROUPS`.

    It stops after the last test of its process. Until then it sends a heartbeat each second.
    """
    with few_slots_server(tmp_path_factory.mktemp("few-slots")) as running:
        yield running


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with BOS."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny Llama for read-only use."""
    return tiny_model("llama", tokenizer)


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    bin = postgres.binaries()
    if bin is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with postgres.running(bin) as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that a registry may be in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    cluster: postgres.Cluster = request.getfixturevalue("cluster")
    return cluster.new_database()
