"""A model that the hub does not give is one clear line, which distinguishes restricted from missing models (a stub
hub)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from vllm_edit.errors import EditError
from vllm_edit.models.hub import downloaded


class _Stub(BaseHTTPRequestHandler):
    """Answers every request with the status and error code in the model's name: `someone/401-GatedRepo`."""

    def do_GET(self) -> None:
        status, _, code = self.path.split("/models/someone/")[1].split("/")[0].partition("-")
        self.send_response(int(status))
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    api = huggingface_hub.HfApi(endpoint=address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("vllm_edit.models.hub.snapshot_download", api.snapshot_download)
    yield
    server.shutdown()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), TypeError("not what a hub says\n<html>")])
def test_a_download_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("vllm_edit.models.hub.snapshot_download", fail)
    with pytest.raises(
        EditError, match=r"'someone/model' could not be downloaded: .*(No space left|not what)"
    ) as raised:
        downloaded("someone/model", "expected this or that")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/401-GatedRepo", r"access to 'someone/401-GatedRepo' on the hub is restricted: request it .* log in"),
        ("someone/403-GatedRepo", "is restricted"),
        ("someone/404-RepoNotFound", "there is no model 'someone/404-RepoNotFound': expected this or that"),
    ],
)
def test_a_restricted_model_and_a_missing_model_are_distinguished(name: str, message: str) -> None:
    with pytest.raises(EditError, match=message) as raised:
        downloaded(name, "expected this or that")
    assert "\n" not in str(raised.value)
