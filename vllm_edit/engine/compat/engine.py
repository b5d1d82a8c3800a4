"""The running engine as the router sees it: limits, tokenizer, and the only way to load an adapter into it.

Upstream: vLLM loads adapters at run time only behind `VLLM_ALLOW_RUNTIME_LORA_UPDATING`, whose routes are open to
every client. An endpoint plugin may call `EngineClient.add_lora` itself; a request then finds the adapter only if
`OpenAIServingModels.lora_requests` has an entry for it (0.32, `entrypoints/openai/models/serving.py`). Delete both
when vLLM's resolver interface can be used without that flag.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vllm_edit.engine.compat import wrapped
from vllm_edit.engine.fast_tokenizer import fast_tokenizer
from vllm_edit.engine.request_values import adapter
from vllm_edit.errors import EditError, Unanswerable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from vllm.config import VllmConfig
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.v1.engine.async_llm import AsyncLLM


class EngineRefusedError(EditError):
    """The engine failed to load or unload an adapter that passed our checks; not the client's fault."""


@dataclass(frozen=True)
class Engine:
    """A started engine behind vLLM's OpenAI server."""

    client: AsyncLLM
    models: OpenAIServingModels

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.models, "lora_requests", None), dict):
            raise RuntimeError("expected OpenAIServingModels.lora_requests to be a dict (vLLM 0.32); use that version")

    @property
    def config(self) -> VllmConfig:
        return self.client.vllm_config

    @property
    def base_names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.models.base_model_paths)

    @property
    def max_model_len(self) -> int:
        return int(self.client.model_config.max_model_len)

    @property
    def max_prompts(self) -> int:
        """Maximum number of prompts that vLLM accepts in one request: VLLM_MAX_COMPLETION_PROMPTS."""
        from vllm import envs

        return int(envs.VLLM_MAX_COMPLETION_PROMPTS)

    @property
    def max_rank(self) -> int:
        lora = self.config.lora_config
        return int(lora.max_lora_rank) if lora is not None else 0

    @property
    def slots(self) -> int:
        lora = self.config.lora_config
        return int(lora.max_loras) if lora is not None else 0

    @property
    def capacity(self) -> int:
        lora = self.config.lora_config
        return int(lora.max_cpu_loras or lora.max_loras) if lora is not None else 0

    @property
    def prioritised(self) -> bool:
        """True if the engine schedules requests by priority (--scheduling-policy priority)."""
        return str(self.config.scheduler_config.policy) == "priority"

    @property
    def chats(self) -> bool:
        """True if the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    async def wrapped_modules(self, site: Sequence[str]) -> list[dict[str, list[str]]]:
        """Per worker: the runtime names `wrapped` with LoRA, and those `expected` for the site's modules."""
        answers: list[dict[str, list[str]]] = await self.client.collective_rpc(wrapped.METHOD, args=(list(site),))
        return answers

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A copy: vLLM sets the truncation of the engine's tokenizer, which fails while our threads use that one."""
        return copy.deepcopy(fast_tokenizer(self.client.renderer.get_tokenizer()))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of `text`, without special tokens. Does not block other threads."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, with special tokens as text.

        Raises:
            Unanswerable: an id is too large for any tokenizer.
        """
        try:
            return str(self.tokenizer.decode(list(ids)))
        except OverflowError as error:
            raise Unanswerable(f"prompt holds a number that is no token id: {error}") from error

    async def remove(self, name: str, number: int) -> None:
        """Unload the adapter: remove its name first, so that no request finds it, then remove it from the engine.

        Raises:
            EngineRefusedError: the engine could not unload it.
        """
        self.models.lora_requests.pop(name, None)
        try:
            await self.client.remove_lora(number)
        except Exception as error:  # vLLM raises plain Exception for every call that failed inside the engine
            raise EngineRefusedError(f"the engine did not unload {name}: {error}") from error

    async def add(self, name: str, number: int, path: str) -> None:
        """Load the adapter into the engine, then make it addressable.

        Never set `load_inplace` (the flag is stored, and every later step reads the disk again), and never add a name
        twice.

        Raises:
            EngineRefusedError: the engine could not load it.
        """
        request = adapter(name, number, path)
        try:
            await self.client.add_lora(request)
        except Exception as error:  # vLLM raises plain Exception for every call that failed inside the engine
            raise EngineRefusedError(f"the engine did not load {name}: {error}") from error
        self.models.lora_requests[name] = request
