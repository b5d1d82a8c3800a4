"""Joins prompts and answers, and turns them into token ids: as plain text, or as a turn of the model's chat template.

Ids are never decoded and encoded again; an answer's ids are appended to a prompt's ids. They are the ids that the
answer has after the prompt: many tokenizers encode a text differently at the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import regex
from jinja2 import TemplateError

from vllm_edit.errors import EditError
from vllm_edit.text.quoting import quoted
from vllm_edit.text.scripts import is_spaceless, visible
from vllm_edit.text.thinking import OFF, ended

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STAND_IN = "\ue000\ue001"  # private-use characters: no template writes or changes them
_OPENED = regex.compile(r"(?:\p{Ps}|(?<![^\s\p{Ps}])[\p{Pi}\"'¿¡])$")
_LEADS = (":", "1", "a", "\n")
"""Characters to put before a text if its own prompt merges with it: at least one of them does not merge."""


def continuation(prompt: str, answer: str) -> str:
    """The answer as the text that follows `prompt`.

    A space goes between them unless either side is written without spaces, or the prompt ends in white space, in an
    opening bracket or in an opening quotation mark. An answer with leading spaces keeps exactly one. A chat
    template has its own rule (`joint`).
    """
    answer = answer.strip()
    if not prompt or prompt[-1].isspace() or not answer or _OPENED.search(prompt[-2:]):
        return answer
    return answer if is_spaceless(visible(prompt, len(prompt) - 1, -1)) or is_spaceless(answer[0]) else " " + answer


def render(tokenizer: PreTrainedTokenizerFast, prompt: str, chat: bool = False) -> str:
    """The text that the model reads: `prompt` itself, or the chat template around it as the user's only turn.

    A thinking template is rendered without thinking (see `thinking`).

    Raises:
        EditError: with `chat`, the tokenizer has no chat template, or the template cannot render the turn.
    """
    if not chat:
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise EditError("the tokenizer has no chat template, so a prompt cannot be asked as a chat turn")
    turns = [{"role": "user", "content": prompt}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **OFF))
    except (TemplateError, TypeError, ValueError) as error:  # ValueError: named templates, of which none is the default
        raise EditError(f"the chat template cannot render a user's turn: {' '.join(str(error).split())}") from error
    return ended(text)


def around_turn(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The chat template's text before a user's turn, and after it up to the answer.

    A placeholder is rendered instead of the turn: a search for the turn itself would fail if the template's own text
    contains it ("assistant").

    Raises:
        EditError: the tokenizer has no chat template, or the rendered turn lacks its text.
    """
    text = render(tokenizer, _STAND_IN, chat=True)
    before, found, after = text.partition(_STAND_IN)
    if not found:
        raise EditError(
            f"the chat template leaves out the text of a user's turn and renders {quoted(text)}: expected a template "
            "that accepts a text as a turn's content, not only a list of parts; correct chat_template.jinja, or remove "
            "it"
        )
    return before, after


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, chat: bool = False) -> list[int]:
    """Ids of the rendered prompt. A chat template writes its special tokens itself; plain text gets the tokenizer's."""
    ids: list[int] = tokenizer(render(tokenizer, prompt, chat), add_special_tokens=not chat)["input_ids"]
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, chat: bool = False) -> list[int]:
    """Ids of the answer as it follows the rendered prompt (see `continuation` and `joint`), no special tokens.

    Appended to `prompt_ids` they equal the ids of prompt and answer tokenized together, unless one token covers the
    boundary: in a request a prompt is always tokenized alone.
    """
    text, answer = render(tokenizer, prompt, chat), answer.strip()
    between = joint(tokenizer, prompt, text) if chat else None
    if between is None:
        return ids_after(tokenizer, text, continuation(text, answer))
    if between == " " and is_spaceless(answer[:1]):  # as in plain text
        between = ""
    return ids_after(tokenizer, text, between + answer)


def joint(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> str | None:
    """The white space that the chat template writes between its generation prompt and an answer; it may be empty.

    It is the text between `text` and the answer in a rendered conversation, which the model has learnt to write there.

    Args:
        text: the rendered prompt, from `render`.

    Returns:
        None if the template cannot render an answer, if the conversation does not begin with `text` (as when the
        template leaves thinking out), or if there is more than white space between.
    """
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _STAND_IN}]
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False, **OFF))
    except (TemplateError, TypeError):
        return None
    if not whole.startswith(text):
        return None
    between, answered, _ = whole[len(text) :].partition(_STAND_IN)
    return between if answered and not between.strip() else None


def ids_after(tokenizer: PreTrainedTokenizerFast, before: str, text: str) -> list[int]:
    """Ids of `text` after `before`, without the ids of `before`.

    Both are tokenized together, and the ids of `before` are cut off. If one token covers the boundary, a character that
    does not merge with `text` replaces `before`.

    Raises:
        EditError: the tokenizer merges the text with any character before it.
    """
    for lead in (before, *_LEADS):
        head, whole = tokenizer([lead, lead + text], add_special_tokens=False)["input_ids"]
        if whole[: len(head)] == head:
            ids: list[int] = whole[len(head) :]
            return ids
    raise EditError(f"the tokenizer merges {quoted(text)} with any text before it, so it cannot be taught as an answer")
