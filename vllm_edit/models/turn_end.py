"""The token with which a chat template ends the assistant's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ANSWER = "It is Paris."


def turn_end(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Id of the special token that the chat template writes right after an answer.

    None without a template, or if no special token follows (the template then relies on the end-of-text token).
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError:  # a template may refuse such turns
        return None
    _, found, rest = text.rpartition(_ANSWER)
    ids = tokenizer(rest.strip(), add_special_tokens=False)["input_ids"] if found else []
    special = ids and ids[0] in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[ids[0]].special
    return int(ids[0]) if special else None
