"""The context length of a model, and checks of edits against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING

from vllm_edit.artefacts.site import Context
from vllm_edit.edit import Edit
from vllm_edit.errors import UnsafeEdit
from vllm_edit.long_rope import short_positions
from vllm_edit.models.positions import contextual
from vllm_edit.text.prompts import answer_ids, prompt_ids, render
from vllm_edit.text.quoting import change, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm_edit.models.base import Base
    from vllm_edit.models.causal_lm import CausalLM


READ = 16
"""Minimum number of tokens of an answer that a gate generates."""


def positions_of(model: CausalLM) -> int | None:
    """The model's context length in tokens, or None if its config does not state it.

    For a model with LongRoPE, the length up to which it has the position factors for short texts.
    """
    return short_positions(model.config.to_dict()) or getattr(model.config, "max_position_embeddings", None)


def read_of(answer: int, least: int = READ) -> int:
    """Number of tokens to generate for an accepted answer of `answer` tokens: `least`, or, for a longer answer, a
    multiple of `least` that leaves at least half of `least` for words before the answer."""
    return least if answer <= least else least * ceil(answer / least + 0.5)


def check_length(model: CausalLM, length: int, what: str) -> None:
    """Raise UnsafeEdit, whose message begins with `what`, if `length` tokens exceed the model's context length."""
    check_positions(positions_of(model), length, what)


def check_positions(most: int | None, length: int, what: str) -> None:
    """`check_length` for a context length of `most` tokens; None: unlimited."""
    if most is not None and length > most:
        raise UnsafeEdit(_message(what, length, most))


def check_edits(base: Base, edits: Sequence[Edit], contexts: Sequence[Context] = ()) -> None:
    """Check that all texts of the edits, as compiling and gates read them, fit into the model's context length.

    contexts: contexts in which the edits' prompts are compiled.

    Raises:
        UnsafeEdit: texts are too long; the message has a line for each, with its edit.
    """
    most = positions_of(base.model)
    if most is None:
        return
    problems = [
        f"edit {number} ({change(edit.prompt, edit.target_new)}): {_message(what, length, most)}"
        for number, edit in enumerate(edits)
        for what, length in _lengths(base.tokenizer, edit, contexts, most)
        if length > most
    ]
    if problems:
        raise UnsafeEdit("\n".join(problems))


def _message(what: str, length: int, most: int) -> str:
    return f"{what} has {length:,} tokens; the model reads at most {most:,}: shorten it, or leave it out"


def _lengths(
    tokenizer: PreTrainedTokenizerFast, edit: Edit, contexts: Sequence[Context], most: int
) -> Iterator[tuple[str, int]]:
    """(name of the text, its length in tokens): in the longest context with its answer, or with a gate's generated
    tokens, whichever is longer. Texts that are certainly shorter than `most` are skipped without tokenizing."""
    modes = (False, True) if getattr(tokenizer, "chat_template", None) else (False,)
    texts = []
    for chat in modes:
        own = [context for context in contexts if context.chat is chat]
        longest = max(own, key=lambda context: len(context.prefix), default=Context(chat=chat))
        texts.append(("its prompt", edit.prompt, longest, edit.target_new))
    texts += [
        (
            f"its {probe.kind} probe {quoted(probe.prompt)}",
            probe.prompt,
            Context(chat=probe.chat),
            probe.target or edit.target_new,
        )
        for probe in edit.probes
        if probe.chat in modes
    ]
    for what, prompt, context, answer in texts:
        whole = contextual(prompt, context)
        # A text has at most as many tokens as bytes.
        if len(f"{render(tokenizer, whole, context.chat)} {answer}".encode()) + 2 * READ >= most:
            length = len(answer_ids(tokenizer, whole, answer, context.chat))
            trained = len(prompt_ids(tokenizer, whole, context.chat)) + length
            asked = len(prompt_ids(tokenizer, prompt, context.chat)) + read_of(length)
            yield f"{what}, with context and answer,", max(trained, asked) - 1  # the last token is never read
