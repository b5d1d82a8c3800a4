"""How many requests, and how many adapters, vLLM computes at once, by the server's metrics."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

_REQUESTS = re.compile(r"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)
_ADAPTERS = re.compile(r"^vllm_edit_running_adapters (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Running:
    """The numbers at each look."""

    requests: list[int] = field(default_factory=list)
    adapters: list[int] = field(default_factory=list)


@contextmanager
def running_requests(url: str) -> Iterator[Running]:
    """Within the context, the running requests and adapters are counted about fifty times a second."""
    seen = Running()
    stop = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(0.02):
                shown = client.get("/metrics").text
                seen.requests.extend(int(float(number)) for number in _REQUESTS.findall(shown))
                seen.adapters.extend(int(float(number)) for number in _ADAPTERS.findall(shown))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
