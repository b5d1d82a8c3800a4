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
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm_edit.engine.fast_tokenizer import fast_tokenizer
from vllm_edit.long_rope import length_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.renderers.base import BaseRenderer
    from vllm.sampling_params import SamplingParams
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

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The engine's tokenizer.

        Raises:
            Incompatible: it is not a fast one.
        """
        return fast_tokenizer(self.llm.get_tokenizer())

    @property
    def length_problem(self) -> str | None:
        """The reason why the engine's maximum length makes it another model; None without one (`long_rope`)."""
        model = self.llm.llm_engine.vllm_config.model_config
        return length_problem(model.hf_config.to_dict(), model.max_model_len)

    @property
    def max_rank(self) -> int:
        lora = self.llm.llm_engine.vllm_config.lora_config
        return int(lora.max_lora_rank) if lora is not None else 0

    def generate(
        self,
        prompts: Sequence[str] | Sequence[TokensPrompt],
        settings: SamplingParams | Sequence[SamplingParams] | None,
        adapters: Sequence[LoRARequest | None],
        **options: Any,
    ) -> list[RequestOutput]:
        """Answer prompts in one batch.

        Args:
            prompts: the prompts.
            settings: sampling parameters for all prompts, or one entry per prompt.
            adapters: one entry per prompt; None for the base model.
            options: more arguments of `vllm.LLM.generate`.
        """
        given: Any = list(adapters)  # vLLM accepts None for a prompt, which its annotation lacks
        return self.llm.generate(prompts, settings, lora_request=given, **options)

    def close(self) -> None:
        """Stop the engine's processes and wait for the threads that communicate with them. Idempotent."""
        self._end()


def _end(renderer: BaseRenderer, client: EngineCoreClient, threads: Sequence[threading.Thread]) -> None:
    renderer.shutdown()
    client.shutdown(timeout=_STOP_S)
    for thread in threads:
        thread.join(_JOIN_S)
