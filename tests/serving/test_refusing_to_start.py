"""A whole server with a broken configuration does not come up, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import places
from vllm_edit.serving.profile import profile

pytestmark = pytest.mark.slow

PATIENCE_S = 900  # for a busy machine; an idle one needs half a minute


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("plugins", "VLLM_PLUGINS must name vllm_edit"), ("weights", "the served model's weights is")],
)
def test_a_server_that_could_not_serve_its_patches_does_not_come_up(tmp_path: Path, broken: str, reason: str) -> None:
    model = places.make_model(tmp_path / "tiny")
    store = places.make_store(tmp_path / "store", places.make_site(model))
    served = places.save_tiny("llama", tmp_path / "other", seed=1) if broken == "weights" else model
    made = profile(store.site(), store.url, str(served), "tiny", ["--port", "0"])
    environment = {**os.environ, **made.environment}
    if broken == "plugins":  # stock `vllm serve` with a store: vLLM then loads general plugins, and no router
        del environment["VLLM_PLUGINS"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_edit.serving.launch", *made.command()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("vllm-edit: "))
    assert reason in message
    assert "Traceback" not in done.stderr
