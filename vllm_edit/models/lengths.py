"""How much a model reads at once, and edits that are longer than that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm_edit.errors import UnsafeEdit
from vllm_edit.models.positions import contextual
from vllm_edit.patch import Edit
from vllm_edit.prompting import answer_ids, prompt_ids, render
from vllm_edit.store.site import Context
from vllm_edit.text import change, quoted

if TYPE_CHECKING:
    from vllm_edit.models.base import Base


def positions_of(model: Any) -> int | None:
    """Most tokens that the model reads at once, or None if its config does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def check_length(model: Any, length: int, what: str) -> None:
    """Raises UnsafeEdit, which begins with `what`, if the model has not `length` positions."""
    most = positions_of(model)
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
    """What is read, and its tokens with answer and longest context. Texts that cannot have `most` are not tokenized."""
    modes = (False, True) if getattr(tokenizer, "chat_template", None) else (False,)
    told = []
    for chat in modes:
        own = [context for context in contexts if context.chat is chat]
        longest = max(own, key=lambda context: len(context.prefix), default=Context(chat=chat))
        told.append(("its prompt", contextual(edit.prompt, longest), chat, edit.target_new))
    told += [
        (f"its {probe.kind} probe {quoted(probe.prompt)}", probe.prompt, probe.chat, probe.target or edit.target_new)
        for probe in edit.probes
        if probe.chat in modes
    ]
    for what, prompt, chat, answer in told:
        # No tokenizer makes more tokens than there are bytes.
        if len(f"{render(tokenizer, prompt, chat)} {answer}".encode()) >= most:
            ids = prompt_ids(tokenizer, prompt, chat) + answer_ids(tokenizer, prompt, answer, chat)
            yield f"{what}, with context and answer,", len(ids) - 1  # the answer's last token is never read
