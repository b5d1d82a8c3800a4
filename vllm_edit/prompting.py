"""How a prompt becomes token ids: as plain text, or as a turn of the model's chat template.

Ids are never decoded and encoded again; an answer's ids are appended to a prompt's ids.
"""

from __future__ import annotations

from typing import Any

from vllm_edit.errors import EditError
from vllm_edit.text import continuation

_STAND_IN = "\ue000\ue001"  # private-use characters: no template writes or changes them


def render(tokenizer: Any, prompt: str, chat: bool = False) -> str:
    """The text that the model reads: `prompt` itself, or the chat template around it as the user's only turn.

    Raises:
        EditError: `chat` is asked of a tokenizer without a chat template.
    """
    if not chat:
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise EditError("the tokenizer has no chat template, so a prompt cannot be asked as a chat turn")
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def around_turn(tokenizer: Any) -> tuple[str, str]:
    """What the chat template writes before a user's turn and after it, up to where the answer begins.

    A stand-in is rendered in the turn's place: a search for a turn itself would be fooled by one that the template's
    own words contain ("assistant").
    """
    before, _, after = render(tokenizer, _STAND_IN, chat=True).partition(_STAND_IN)
    return before, after


def prompt_ids(tokenizer: Any, prompt: str, chat: bool = False) -> list[int]:
    """Ids of the rendered prompt. A chat template writes its special tokens itself; plain text gets the tokenizer's."""
    ids: list[int] = tokenizer(render(tokenizer, prompt, chat), add_special_tokens=not chat)["input_ids"]
    return ids


def answer_ids(tokenizer: Any, prompt: str, answer: str, chat: bool = False) -> list[int]:
    """Ids of the answer as it follows the rendered prompt (see `text.continuation`), without special tokens."""
    text = continuation(render(tokenizer, prompt, chat), answer)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
