"""Requests of the server itself: prepared as a client's, sent to vLLM's own routes, at the lowest priority."""

from __future__ import annotations

from contextlib import AsyncExitStack

from vllm_edit.errors import Unavailable
from vllm_edit.json_value import JSONValue
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving import bodies
from vllm_edit.serving.answer import Answer, new_id
from vllm_edit.serving.answer_text import error_of, text_of
from vllm_edit.serving.prepare import ready
from vllm_edit.serving.service import Holder, Service

LOWEST_PRIORITY = 2**31 - 1
"""vLLM serves requests with a lower number first; a client's request has 0."""


async def answer_of(
    holder: Holder,
    service: Service,
    choice: Choice,
    route: str,
    body: bodies.Body,
    *,
    salt: str,
    prioritised: bool,
    expected: str = "a text",
    long: bool = False,
) -> tuple[str, JSONValue]:
    """Return the text and the whole JSON of vLLM's answer to `body`, which is changed.

    Args:
        choice: What answers.
        salt: Salt of the prefix cache.
        prioritised: The engine schedules by priority; else vLLM refuses a priority.
        expected: What an answer without a text should have been, for the error.
        long: The body is read in a thread.

    Raises:
        EditError: the choice cannot be applied, or the engine did not answer with a text.
    """
    if holder.inner is None:
        raise Unavailable("the server has not started yet")
    record = Answer.of(new_id(), route, None, choice)
    async with AsyncExitStack() as held:
        adapter = await ready(service, choice, route, body, record, held, long=long)
        bodies.force(route, body, adapter or service.watcher.current.bases[0], salt, record.id)
        body.pop("priority", None)
        if prioritised:
            body["priority"] = LOWEST_PRIORITY
        status, answer = await holder.inner.post(route, body)
    text = text_of(answer)
    if status != 200 or text is None:
        raise Unavailable(f"expected {expected}, got status {status}: {error_of(answer)}")
    return text, answer
