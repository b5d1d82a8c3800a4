"""The position of an edit in a prompt's tokens: the subject's last token, or the prompt's last.

ROME's code tokenizes prefix, subject and suffix separately and adds their lengths, which is wrong if a tokenizer adds
BOS or merges characters across a boundary. Here, the whole text is tokenized once, as served, and the fast tokenizer's
offsets identify the token with the subject's last character (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_edit.artefacts.site import Context, Token
from vllm_edit.errors import EditError
from vllm_edit.text.matching import last_occurrence
from vllm_edit.text.prompts import around_turn, continuation, render
from vllm_edit.text.quoting import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN = Context()


@dataclass(frozen=True)
class Located:
    """A rendered prompt's ids, with positions. last: the token after which the answer is generated."""

    ids: list[int]
    subject_first: int
    subject_last: int
    last: int


def contextual(prompt: str, context: Context) -> str:
    """The prompt after the context's prefix, joined in the same way as an answer to a prompt."""
    return context.prefix + continuation(context.prefix, prompt)


def locate(tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str, context: Context = PLAIN) -> Located:
    """Tokenize `prompt` in its context and find the subject in it.

    The subject is searched in the prompt, not in the context's prefix or in the chat template. If it occurs more than
    once, the last occurrence counts (the last whole word, if there is one), because its token attends to everything
    before it. `subject_last` is the last token that contains a part of the subject's last character: the character may
    extend over several tokens (Chinese in byte-level BPE) or share a token with its neighbours. `subject_first` is the
    first token that contains a character of the same occurrence.

    Raises:
        EditError: slow tokenizer, no subject in the prompt, or a chat template that rewrites the prompt.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise EditError("expected a fast tokenizer: a slow tokenizer does not provide each token's characters")
    prompt, subject = prompt.strip(), subject.strip()
    occurrence = last_occurrence(prompt, subject)
    if occurrence is None:
        raise EditError(f"the prompt {quoted(prompt)} does not contain the subject {subject!r}")
    text, start = _rendered(tokenizer, prompt, context)
    first = start + occurrence
    last = first + len(subject) - 1
    coded = tokenizer(text, add_special_tokens=not context.chat, return_offsets_mapping=True)
    ids: list[int] = coded["input_ids"]
    offsets: list[tuple[int, int]] = coded["offset_mapping"]
    holding = [i for i, (start, end) in enumerate(offsets) if start <= last < end]
    if not holding:
        raise EditError(
            f"no token covers the last character of {subject!r}: the tokenizer drops it from {quoted(prompt)}"
        )
    beginning = next(i for i, (_, end) in enumerate(offsets) if end > first)
    return Located(ids=ids, subject_first=beginning, subject_last=holding[-1], last=len(ids) - 1)


def position(located: Located, token: Token) -> int:
    """The position of the site's token: the subject's last token, or the prompt's last."""
    return located.subject_last if token == "subject_last" else located.last


def _rendered(tokenizer: PreTrainedTokenizerFast, prompt: str, context: Context) -> tuple[str, int]:
    """The text that the model reads, and the index at which `prompt` begins in it."""
    turn = contextual(prompt, context).strip()
    text = render(tokenizer, turn, context.chat)
    before, after = around_turn(tokenizer) if context.chat else ("", "")
    if text != before + turn + after:
        raise EditError(
            f"the chat template rewrites the prompt {quoted(turn)}: it renders {quoted(text)}, so it cannot be located"
        )
    return text, len(before) + len(turn) - len(prompt)
