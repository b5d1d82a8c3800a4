"""IKE at serving time: caches patches' demonstrations and inserts the prefix into a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from cachetools import LRUCache

from vllm_edit.artefacts.compiled import Demonstration
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.errors import EditError, Unanswerable
from vllm_edit.ike.prefix import build_prefix, wrap
from vllm_edit.ike.shelf import Shelf
from vllm_edit.serving import bodies
from vllm_edit.serving.rendered import rendered
from vllm_edit.serving.threads import Threads

_PER_TURN = 12  # tokens that a chat template may add around a turn
_TOOLS = 256  # tokens of a chat template's instructions for tool calls
_ANSWER = 64  # tokens reserved for the answer if the client sets no maximum
_LONGEST_TOKEN = 256  # bytes; real tokens are shorter

Bank = tuple[Manifest, tuple[Demonstration, ...], Shelf]
Named = Callable[[str], Sequence[int]]
"""Maps a prompt to the numbers of the edits for its prefix; without edits the prompt gets no prefix."""


class DemonstrationStore(Protocol):
    """The part of the store that IKE needs."""

    def manifest(self, name: str) -> Manifest: ...
    def demonstrations(self, name: str) -> tuple[Demonstration, ...]: ...


class Prefixes:
    """Inserts prefixes that fit into the model's context. Caches the demonstrations of the last `limit` patches.

    threads: tokenize and search long bodies; `count_tokens` is called in them and in the event loop.
    """

    def __init__(
        self,
        store: DemonstrationStore,
        context: int,
        count_tokens: Callable[[str], int],
        threads: Threads,
        limit: int = 256,
    ) -> None:
        self._store, self._context, self._count = store, context, count_tokens
        self._threads = threads
        self._banks = LRUCache[str, Bank](limit)

    async def insert(
        self, name: str, route: str, body: bodies.Body, named: Named | None = None, *, long: bool = False
    ) -> int:
        """Insert the prefix of a patch into `body`, in place.

        Args:
            name: the patch's full name.
            route: the request's route.
            body: the request's body.
            named: for a patch with scope subject, the edits that a prompt mentions; by default `build_prefix` chooses.
            long: the body is too long for the event loop, so a thread reads it.

        Returns:
            The number of tokens added.

        Raises:
            EditError: the request would reveal the prefix, has no text, or leaves no room for a prefix.
            Unanswerable: it has no prompt, or prompt or answer alone fill the model's context.
        """
        bodies.refuse_revealing(body)
        insert = partial(self._insert, await self._bank(name), route, body, named)
        return await self._threads.run(insert) if long else insert()

    def _insert(self, bank: Bank, route: str, body: bodies.Body, named: Named | None) -> int:
        manifest, demonstrations, shelf = bank
        budget = self._budget(route, body)
        added = 0

        def wrapped(prompt: str) -> str:
            nonlocal added
            if named is None:
                known, read = shelf.subjects, shelf.read
                prefix = build_prefix(manifest, demonstrations, prompt, budget, subjects=known, read=read)
            elif edits := named(prompt):
                prefix = build_prefix(*shelf.of(edits), prompt, budget, read=shelf.read)
            else:
                return prompt
            added += prefix.tokens
            return wrap(prefix, prompt)

        bodies.insert(route, body, wrapped)
        return added

    def _budget(self, route: str, body: bodies.Body) -> int:
        texts = rendered(route, body)
        together = max if route == bodies.COMPLETIONS else sum
        least = together([0, *map(_least_tokens, texts)])
        if least <= self._context:  # counting longer ones would take seconds
            counts = [self._count(text) for text in texts]
            least = together([0, *counts])
            used = together([0, *(count + _PER_TURN for count in counts)]) + _TOOLS * bool(body.get("tools"))
            left = self._context - used - bodies.answer_tokens(body, _ANSWER)
            if left > 0:
                return left
        if least >= self._context or bodies.answer_tokens(body, 0) > self._context:  # refused without a prefix too
            raise Unanswerable(
                f"mode ike needs room for its prefix: prompt or answer alone take all {self._context} tokens of the "
                "model; shorten them"
            )
        raise EditError(
            f"mode ike needs room for its prefix: prompt and answer take all {self._context} tokens of the model; "
            "shorten them or use mode weights"
        )

    async def _bank(self, name: str) -> Bank:
        bank = self._banks.get(name)
        if bank is None:
            manifest = await asyncio.to_thread(self._store.manifest, name)
            demonstrations = await asyncio.to_thread(self._store.demonstrations, name)
            bank = self._banks[name] = manifest, demonstrations, Shelf(manifest, demonstrations)
        return bank


def _least_tokens(text: str) -> int:
    """Lower bound of the number of tokens of a text."""
    return len(text.encode(errors="surrogatepass")) // _LONGEST_TOKEN
