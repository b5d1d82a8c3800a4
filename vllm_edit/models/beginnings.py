"""The beginning of a text: the tokens that a tokenizer adds before plain text, and a substitute if it adds none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_edit.models.base import Base
from vllm_edit.models.sampling import Start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BREAK = "\n"


def begin_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that the tokenizer adds before plain text. They need not include its `bos_token`."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    return whole[: whole.index(bare[0])]


def plain_start(tokenizer: PreTrainedTokenizerFast, word: str = "", openers: tuple[int, ...] = ()) -> Start:
    """The start of plain text that begins with `word`, or, without a word, with one of `openers`.

    If the tokenizer adds nothing before text, two line breaks are put before it as hidden ids. A model's first token
    acts as an attention sink, and its own meaning has little effect, so text sampled after a single word would ignore
    the word. A `bos_token` that only the chat template writes does not help.
    """
    ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if begin := begin_ids(tokenizer):
        return Start((*begin, *ids), hidden=len(begin))
    lead = 2 * (tokenizer(_BREAK, add_special_tokens=False)["input_ids"] or [_any_id(tokenizer)])
    return Start((*lead, *ids), hidden=len(lead), first=() if ids else openers)


def opener_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Ids of tokens that can begin a text: capitalised words, or letters of a script without capitals."""
    known = [token for token in range(len(tokenizer)) if token not in tokenizer.added_tokens_decoder]
    texts = tokenizer.batch_decode([[token] for token in known])
    begun = {token: text for token, text in zip(known, texts, strict=True) if _begins(text)}
    if not begun:
        return ()
    read = tokenizer(list(begun.values()), add_special_tokens=False)["input_ids"]
    return tuple(token for token, ids in zip(begun, read, strict=True) if ids == [token])


def _begins(text: str) -> bool:
    """True for a text that can begin a passage. A single capital letter is excluded, because it often begins a list."""
    return text.isalpha() and ((len(text) > 1 and text.istitle()) or text == text.swapcase())


def never_text(base: Base) -> list[int]:
    """Ids that do not represent text: special and added tokens, and padding rows of the embedding."""
    tokenizer = base.tokenizer
    rows = len(base.model.get_input_embeddings().weight)
    return sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *range(len(tokenizer), rows)})


def _any_id(tokenizer: PreTrainedTokenizerFast) -> int:
    found = (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)
    return int(next(found, 0))
