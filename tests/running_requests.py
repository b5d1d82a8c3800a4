"""How many requests vLLM computes at once, by its metrics."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

_RUNNING = re.compile(r"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)


@contextmanager
def running_requests(url: str) -> Iterator[list[int]]:
    """Within the context, the list gets the number of running requests about fifty times a second."""
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(0.02):
                seen.extend(int(float(number)) for number in _RUNNING.findall(client.get("/metrics").text))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
