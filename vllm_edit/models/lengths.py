"""How much a model reads at once, and edits that are longer than that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from vllm_edit.artefacts.site import Context
from vllm_edit.errors import UnsafeEdit
from vllm_edit.models.positions import contextual
from vllm_edit.patch import Edit
from vllm_edit.prompting import answer_ids, prompt_ids, render
from vllm_edit.text import change, quoted

if TYPE_CHECKING:
    from vllm_edit.models.base import Base


READ = 16
"""Tokens of an answer that a gate reads at least."""


def positions_of(model: Any) -> int | None:
    """Most tokens that the model reads at once, or None if its config does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def read_of(answer: int, least: int = READ) -> int:
    """Tokens to generate where an accepted answer has `answer`: `least`; for a longer answer as many times `least` as
    leave half of it to spare, since an answer may stand behind other words."""
    return least if answer <= least else least * ceil(answer / least + 0.5)


def check_length(model: Any, length: int, what: str) -> None:
    """Raises UnsafeEdit, which begins with `what`, if the model has not `length` positions."""
    check_positions(positions_of(model), length, what)


def check_positions(most: int | None, length: int, what: str) -> None:
    """`check_length` for a model that reads at most so many tokens at once; None: as many as there are."""
    if most is not None and length > most:
        raise UnsafeEdit(_told(what, length, most))


def check_edits(base: Base, edits: Sequence[Edit], contexts: Sequence[Context] = ()) -> None:
    """Refuse edits of which something that compiling or a gate reads is longer than the model reads.

    contexts: what the edits' prompts are put into.

    Raises:
        UnsafeEdit: a line for each text, with its edit.
    """
    most = positions_of(base.model)
    if most is None:
        return
    problems = [
        f"edit {number} ({change(edit.prompt, edit.target_new)}): {_told(what, length, most)}"
        for number, edit in enumerate(edits)
        for what, length in _lengths(base.tokenizer, edit, contexts, most)
        if length > most
    ]
    if problems:
        raise UnsafeEdit("\n".join(problems))


def _told(what: str, length: int, most: int) -> str:
    return f"{what} has {length:,} tokens; the model reads at most {most:,}: shorten it, or leave it out"


def _lengths(tokenizer: Any, edit: Edit, contexts: Sequence[Context], most: int) -> Iterator[tuple[str, int]]:
    """What is read, and its tokens: with the answer in the longest context, or with what a gate generates, if that is
    more. Texts that cannot have `most` are not tokenized."""
    modes = (False, True) if getattr(tokenizer, "chat_template", None) else (False,)
    told = []
    for chat in modes:
        own = [context for context in contexts if context.chat is chat]
        longest = max(own, key=lambda context: len(context.prefix), default=Context(chat=chat))
        told.append(("its prompt", edit.prompt, longest, edit.target_new))
    told += [
        (
            f"its {probe.kind} probe {quoted(probe.prompt)}",
            probe.prompt,
            Context(chat=probe.chat),
            probe.target or edit.target_new,
        )
        for probe in edit.probes
        if probe.chat in modes
    ]
    for what, prompt, context, answer in told:
        whole = contextual(prompt, context)
        # No tokenizer makes more tokens than there are bytes.
        if len(f"{render(tokenizer, whole, context.chat)} {answer}".encode()) + 2 * READ >= most:
            length = len(answer_ids(tokenizer, whole, answer, context.chat))
            trained = len(prompt_ids(tokenizer, whole, context.chat)) + length
            asked = len(prompt_ids(tokenizer, prompt, context.chat)) + read_of(length)
            yield f"{what}, with context and answer,", max(trained, asked) - 1  # the last token is never read
