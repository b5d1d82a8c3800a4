from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.faults.sizes import FULL, SHORT, Sizes
from vllm_edit.cli.output import progress_bar
from vllm_edit.progress import Progress, silent


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return FULL if pytestconfig.getoption("full") else SHORT


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny, and threads that wait for each other make a busy machine slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Iterator[Progress]:
    """Receives (what, done, of how many); a bar is shown in the full run, which is not captured."""
    if not request.config.getoption("full"):
        yield silent
        return
    with progress_bar(request.node.name) as report:
        yield report
