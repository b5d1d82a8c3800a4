"""IKE at serving time: what a compiled patch stores, kept in memory, and the prefix of one request."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from vllm_edit.errors import EditError
from vllm_edit.ike.prefix import build_prefix, wrap
from vllm_edit.serving import bodies
from vllm_edit.store.compiled import Demonstration
from vllm_edit.store.manifest import Manifest

_PER_TURN = 12  # tokens that a chat template may add around a turn
_ANSWER = 64  # tokens kept free for the answer when the client does not say


class DemonstrationStore(Protocol):
    """The part of the store that IKE needs."""

    def manifest(self, name: str) -> Manifest: ...
    def demonstrations(self, name: str) -> tuple[Demonstration, ...]: ...


class Prefixes:
    """Prefixes within what the model's context leaves. Keeps the last `limit` patches' demonstrations in memory."""

    def __init__(
        self, store: DemonstrationStore, context: int, count_tokens: Callable[[str], int], limit: int = 256
    ) -> None:
        self._store, self._context, self._count, self._limit = store, context, count_tokens, limit
        self._banks: OrderedDict[str, tuple[Manifest, tuple[Demonstration, ...]]] = OrderedDict()

    async def insert(self, name: str, route: str, body: bodies.Body) -> int:
        """Put the prefix of the patch `name` into `body`, in place; the number of tokens added.

        Raises:
            EditError: the request would reveal the prefix, has no text, or leaves no room for one.
        """
        bodies.refuse_revealing(body)
        manifest, demonstrations = await self._bank(name)
        budget = self._budget(route, body)
        added = 0

        def wrapped(prompt: str) -> str:
            nonlocal added
            prefix = build_prefix(manifest, demonstrations, prompt, budget)
            added += prefix.tokens
            return wrap(prefix, prompt)

        bodies.insert(route, body, wrapped)
        return added

    def _budget(self, route: str, body: bodies.Body) -> int:
        counts = [self._count(text) + _PER_TURN for text in bodies.texts(route, body)]
        used = max(counts, default=0) if route == bodies.COMPLETIONS else sum(counts)
        left = self._context - used - bodies.answer_tokens(body, _ANSWER)
        if left <= 0:
            raise EditError(
                f"mode ike needs room for its prefix: prompt and answer take all {self._context} tokens of the model; "
                "shorten them or use mode weights"
            )
        return left

    async def _bank(self, name: str) -> tuple[Manifest, tuple[Demonstration, ...]]:
        if name not in self._banks:
            manifest = await asyncio.to_thread(self._store.manifest, name)
            self._banks[name] = manifest, await asyncio.to_thread(self._store.demonstrations, name)
            while len(self._banks) > self._limit:
                self._banks.popitem(last=False)
        self._banks.move_to_end(name)
        return self._banks[name]
