"""A `vllm.LLM` in this process that is closed while the interpreter still runs.

Upstream: `vllm.LLM` has no method to close it (0.32). At the interpreter's exit, its finalizers stop the engine's
process while two daemon threads of its client still run: one reads outputs, the other watches the process and shuts the
client down a second time when it ends (`v1/engine/core_client.py`). If the interpreter stops a daemon thread inside
torch's C++ code, the program aborts: "terminate called without an active exception", exit code 134. Delete when `LLM`
has a method that closes it and waits for its threads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.renderers.base import BaseRenderer
    from vllm.v1.engine.core_client import EngineCoreClient

_THREADS = ("EngineCoreOutputQueueThread", "MPClientEngineMonitor")
_STOP_S = 60.0
"""vLLM's default is to kill the engine's process after 5 s, on a busy machine while it still frees shared memory."""
_JOIN_S = 10.0  # the threads end at once, or at the monitor's next check (every 1 s)


class OfflineEngine:
    """Holds a started `vllm.LLM` as `llm`. It is closed by `close`, by garbage collection or at interpreter exit."""

    def __init__(self, **options: Any) -> None:
        """Start the engine; `options` are arguments of `vllm.LLM`."""
        from vllm import LLM

        before = set(threading.enumerate())
        self.llm = LLM(**options)
        threads = [thread for thread in threading.enumerate() if thread.name in _THREADS and thread not in before]
        engine = self.llm.llm_engine
        self._end = weakref.finalize(self, _end, engine.renderer, engine.engine_core, threads)

    def close(self) -> None:
        """Stop the engine's processes and wait for the threads that communicate with them. Idempotent."""
        self._end()


def _end(renderer: BaseRenderer, client: EngineCoreClient, threads: Sequence[threading.Thread]) -> None:
    renderer.shutdown()
    client.shutdown(timeout=_STOP_S)
    for thread in threads:
        thread.join(_JOIN_S)
