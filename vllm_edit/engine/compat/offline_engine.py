"""A `vllm.LLM` in this process, and its end while the interpreter still runs.

Upstream: `vllm.LLM` cannot be closed (0.32). Left to the interpreter's exit, its finalizers stop the engine's process
while two daemon threads of its client go on: one reads outputs, one watches the process and shuts the client down a
second time when it ends (`v1/engine/core_client.py`). A daemon thread that the finalisation stops inside of torch's C++
code takes the program along: "terminate called without an active exception", exit code 134. Delete when `LLM` has a
method that ends it and waits for its threads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

_THREADS = ("EngineCoreOutputQueueThread", "MPClientEngineMonitor")
_STOP_S = 60.0
"""vLLM kills the engine's process after 5 s, on a busy machine in the middle of giving back its shared memory."""
_JOIN_S = 10.0  # the threads end at once, or when the monitor next looks (1 s)


class OfflineEngine:
    """A started `vllm.LLM`, as `llm`. Left open, it is closed when it is collected, or before the interpreter ends."""

    def __init__(self, **options: Any) -> None:
        """options: arguments of `vllm.LLM`."""
        from vllm import LLM

        before = set(threading.enumerate())
        self.llm: Any = LLM(**options)
        threads = [thread for thread in threading.enumerate() if thread.name in _THREADS and thread not in before]
        engine = self.llm.llm_engine
        self._end = weakref.finalize(self, _end, engine.renderer, engine.engine_core, threads)

    def close(self) -> None:
        """Stop the engine's processes and wait for the threads that talked to them. Idempotent."""
        self._end()


def _end(renderer: Any, client: Any, threads: Sequence[threading.Thread]) -> None:
    renderer.shutdown()
    client.shutdown(timeout=_STOP_S)
    for thread in threads:
        thread.join(_JOIN_S)
