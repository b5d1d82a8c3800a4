"""A server in a child process is gone when the block ends, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from vllm_edit.demo.process import ServerProcess
from vllm_edit.errors import EditError

pytestmark = pytest.mark.slow

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
COMMAND = [sys.executable, "-c", SERVER]


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def test_the_server_is_up_within_the_block_and_gone_after_it(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ServerProcess(COMMAND, tmp_path / "log") as server:
        assert answers(server.url)
    assert not answers(server.url)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_starts_while_the_block_runs_and_is_gone_after_it(tmp_path: Path) -> None:
    with ServerProcess(COMMAND, tmp_path / "log").starting() as server:
        server.wait()
        assert answers(server.url)
    assert not answers(server.url)
    with ServerProcess(COMMAND, tmp_path / "log").starting() as early:
        url = early.url
    assert not answers(url), "it was never waited for"


def test_a_program_that_is_terminated_takes_its_server_along(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from vllm_edit.demo.process import ServerProcess\n"
        f"with ServerProcess({COMMAND!r}, Path(sys.argv[1])) as server:\n"
        "    print(server.url, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        assert answers(url)
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    assert not answers(url)


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = ServerProcess([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path / "log")
    with pytest.raises(EditError, match=r"did not start .exit 1.*\n.*no such model"), broken:
        pass
