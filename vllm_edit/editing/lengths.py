"""How much a model reads at once, and edits that are longer than that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm_edit.errors import UnsafeEdit
from vllm_edit.patch import Edit
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.store.site import Context
from vllm_edit.text import quoted

if TYPE_CHECKING:
    from vllm_edit.editing.base import Base


def positions_of(model: Any) -> int | None:
    """Most tokens that the model reads at once, or None if its config does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def check_length(model: Any, length: int, what: str) -> None:
    """Raises UnsafeEdit, which begins with `what`, if the model has not `length` positions."""
    most = positions_of(model)
    if most is not None and length > most:
        raise UnsafeEdit(f"{what} has {length:,} tokens; the model reads at most {most:,}: shorten it, or leave it out")


def check_edits(base: Base, edits: Sequence[Edit], contexts: Sequence[Context] = ()) -> None:
    """Refuse edits of which something that compiling or a gate reads is longer than the model reads.

    contexts: what the edits' prompts are put into.

    Raises:
        UnsafeEdit: a line for each text, with its edit.
    """
    problems = []
    for number, edit in enumerate(edits):
        for what, length in _lengths(base, edit, contexts):
            try:
                check_length(base.model, length, what)
            except UnsafeEdit as error:
                problems.append(f"edit {number} ({quoted(edit.prompt)} → {quoted(edit.target_new)}): {error}")
    if problems:
        raise UnsafeEdit("\n".join(problems))


def _lengths(base: Base, edit: Edit, contexts: Sequence[Context]) -> Iterator[tuple[str, int]]:
    """What is read, and its tokens with answer and longest context. Texts too short to matter are not tokenized."""
    tokenizer = base.tokenizer
    modes = (False, True) if getattr(tokenizer, "chat_template", None) else (False,)
    around = max((len(tokenizer(context.prefix)["input_ids"]) for context in contexts), default=0)
    most = positions_of(base.model) or 0
    template = len(prompt_ids(tokenizer, "", modes[-1]))
    told = [("its prompt", edit.prompt, chat, edit.target_new, around) for chat in modes]
    told += [
        (f"its {probe.kind} probe {quoted(probe.prompt)}", probe.prompt, probe.chat, probe.target or edit.target_new, 0)
        for probe in edit.probes
        if probe.chat in modes
    ]
    for what, prompt, chat, answer, before in told:
        # No tokenizer makes more tokens than there are bytes.
        if len(f"{prompt} {answer}".encode()) + before + template > most:
            ids = prompt_ids(tokenizer, prompt, chat) + answer_ids(tokenizer, prompt, answer, chat)
            yield f"{what}, with context and answer,", len(ids) + before
