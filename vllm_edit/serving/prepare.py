"""Prepares a request for the engine: loads its adapter, or inserts its IKE prefix into the body."""

from __future__ import annotations

from contextlib import AsyncExitStack

from vllm_edit.errors import EditError, NotFound, Unavailable
from vllm_edit.registry.answers import PROMPT_LENGTH
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving import bodies
from vllm_edit.serving.answer import Answer
from vllm_edit.serving.request_text import request_texts
from vllm_edit.serving.residency import AdapterStore
from vllm_edit.serving.service import Service

LONG = 2**14  # bytes; threads read a longer body, so that it does not delay other requests


async def ready(
    service: Service, choice: Choice, route: str, body: bodies.Body, answer: Answer, held: AsyncExitStack, *, long: bool
) -> str | None:
    """Load the chosen adapter, leased until `held` closes, or insert the prefix into `body`.

    Args:
        service: the running service.
        choice: the resolved adapter and mode.
        route: the request's route.
        body: the request's body; changed in place in mode ike.
        answer: the answer's record; its scope and its tokens are set.
        held: the stack that holds the leases.
        long: the body is longer than `LONG`, so threads read it.

    Returns:
        The adapter's name; None if the request goes to the engine without an adapter.

    Raises:
        Unavailable: the registry has the patch, but the store does not.
    """
    try:
        return await _ready(service, choice, route, body, answer, held, long=long)
    except NotFound as error:
        if choice.adapter not in service.watcher.current.names:
            raise
        raise Unavailable(f"{choice.adapter} is in the registry, its files are gone from the store: {error}") from error


async def _ready(
    service: Service, choice: Choice, route: str, body: bodies.Body, answer: Answer, held: AsyncExitStack, *, long: bool
) -> str | None:
    if choice.adapter is not None:
        held.enter_context(service.residency.using(choice.adapter))
    if choice.mode == "weights" and choice.adapter is not None:
        source = await _narrowed(service, choice.adapter, route, body, answer, long=long)
        if answer.adapter is not None:
            await held.enter_async_context(service.residency.lease(answer.adapter, source, choice.adapter))
            return answer.adapter
    elif choice.mode == "ike" and choice.adapter is not None:
        answer.ike_tokens = await _prefixed(service, choice.adapter, route, body, answer, long=long)
        service.metrics.ike_tokens.inc(answer.ike_tokens)
    return None


async def _narrowed(
    service: Service, name: str, route: str, body: bodies.Body, answer: Answer, *, long: bool
) -> AdapterStore | None:
    """Record in `answer` the parts of the patch in scope, in mode weights; return the source of their adapter."""
    index = await service.scopes.index(name)
    if index is None:
        return None
    narrowed = await service.scopes.narrow(name, index, await _request_texts(service, route, body, long=long))
    answer.narrow(narrowed)
    return narrowed.source


async def _prefixed(service: Service, name: str, route: str, body: bodies.Body, answer: Answer, *, long: bool) -> int:
    """Insert the patch's IKE prefix into `body`; return the number of tokens added."""
    index = await service.scopes.index(name)
    if index is None:
        return await service.prefixes.insert(name, route, body, long=long)
    scopes, found = service.scopes, index
    units = await scopes.mentioned(found, await _request_texts(service, route, body, long=long))
    narrowed = scopes.narrowed(found, units)
    answer.narrow(narrowed)
    if route != bodies.COMPLETIONS:  # a conversation: a subject mentioned in any turn is in scope
        return await service.prefixes.insert(name, route, body, lambda _: narrowed.edits or (), long=long)
    return await service.prefixes.insert(
        name, route, body, lambda prompt: scopes.narrowed(found, found.mentioned([prompt])).edits or (), long=long
    )


async def logged_prompt(service: Service, route: str, body: bodies.Body, *, long: bool) -> str | None:
    """The request's text for the log, if prompts are logged, else None. Call it before a prefix is inserted."""
    if not service.settings.log_prompts:
        return None
    try:
        return "\n".join(await _request_texts(service, route, body, long=long))[:PROMPT_LENGTH]
    except EditError:  # embeddings have no text
        return None


async def _request_texts(service: Service, route: str, body: bodies.Body, *, long: bool) -> list[str]:
    """The request's texts. Decoding many token ids takes seconds, so a thread reads a long body."""
    if long:
        bodies.refuse_too_many_ids(body, service.max_model_len)
        return await service.texts.run(request_texts, route, body, service.decode)
    return request_texts(route, body, service.decode)
