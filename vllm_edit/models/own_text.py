"""Ordinary text that a model generates itself, on which second moments are measured if no text is given.

There are two kinds. Plain text is generated from the beginning of a text. For a chat, the model gets the chat
template's text before a user's turn, generates the turn, and answers it (as in Magpie, arXiv 2406.08464). The text
therefore has the model's own languages and subjects, and contains the chat template's tokens. A template's text before
the turn is left out if it is longer than a text may be: a system prompt is the same in all chats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError

from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.beginnings import begin_ids, never_text, opener_ids, plain_start
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.greedy import end_ids
from vllm_edit.models.lengths import positions_of
from vllm_edit.models.sampling import Draft, Start, sampled
from vllm_edit.progress import Progress
from vllm_edit.text.prompts import around_turn
from vllm_edit.text.thinking import OFF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHORTEST = 8
"""Minimum number of tokens of a text."""
_SPARE = 1.05
"""Factor of surplus texts in a round, because an extra round for the last few texts would take as many steps."""
_LEAST_DISTINCT = 0.5
"""Minimum share of distinct trigrams of tokens in a text; a text below it is repetitive."""
_MOST_TRIES = 8
"""Maximum number of sampled tokens per requested token, before an error is raised."""


def write_texts(
    base: Base,
    vectors: int,
    *,
    seed: int = 0,
    chat_share: float = 1 / 3,
    longest: int = 64,
    top_k: int = 50,
    batch: int = 256,
    progress: Progress | None = None,
) -> list[str]:
    """Sample distinct texts with at least `vectors` tokens in total, at temperature 1.

    The same arguments on the same device give the same texts. The global random state is neither read nor changed.

    Args:
        vectors: number of tokens, counted by tokenizing the texts.
        chat_share: share of chats (0 for a tokenizer without a chat template). Chats contain the template's special
            tokens; other texts contain no special tokens.
        longest: maximum number of sampled tokens per text.
        top_k: number of most probable tokens from which each token is sampled.
        batch: maximum number of rows per batch; it does not affect the texts except by rounding.

    Raises:
        EditError: the model generates too few distinct texts, or only repetitive ones.
    """
    if vectors < 1 or not 0 <= chat_share <= 1 or longest < _SHORTEST or top_k < 1:
        raise EditError(
            f"expected vectors ≥ 1, 0 ≤ chat_share ≤ 1, longest ≥ {_SHORTEST}, top_k ≥ 1; "
            f"got {vectors}, {chat_share}, {longest}, {top_k}"
        )
    writer = _Writer.of(base, longest, top_k, chat_share, batch)
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, int] = {}  # text → its tokens; ordered, without repetition
    drawn = 0

    def count(tokens: int) -> None:
        nonlocal drawn
        drawn += tokens
        if progress:
            progress("text by the model", min(drawn, vectors), vectors)

    while (written := sum(texts.values())) < vectors:
        if drawn > _MOST_TRIES * (vectors + longest):
            raise EditError(
                f"the model wrote {written:,} tokens of different text while {drawn:,} were drawn, and {vectors:,} are "
                "needed: give text with --texts FILE, a passage per line"
            )
        average = written / len(texts) if texts else longest
        wanted = ceil(_SPARE * (vectors - written) / average)
        for text in writer.round(min(wanted, 4 * batch), generator, count):
            texts[text] = len(base.tokenizer(text)["input_ids"])
    return list(texts)


@dataclass(frozen=True)
class _Writer:
    """Generates rounds of texts.

    plain, chat: starts of the two kinds. ends: ids that end a turn. left_out: the beginning that chats lack.
    """

    base: Base
    plain: Start
    chat: Start | None
    longest: int
    top_k: int
    chat_share: float
    batch: int
    banned: frozenset[int]
    ends: frozenset[int]
    left_out: str

    @classmethod
    def of(cls, base: Base, longest: int, top_k: int, chat_share: float, batch: int) -> _Writer:
        tokenizer = base.tokenizer
        banned, ends = frozenset(never_text(base)), set(end_ids(base.model, tokenizer))
        plain, chat = plain_start(tokenizer, openers=() if begin_ids(tokenizer) else opener_ids(tokenizer)), None
        left_out = ""
        if chat_share and getattr(tokenizer, "chat_template", None):
            around = around_turn(tokenizer)
            before, after = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in around)
            left_out = around[0] if len(before) > longest else ""
            if before and after and _room(base, before + after, longest) >= 2 * _SHORTEST:
                chat = Start(before, hidden=len(before), then=after)
                ends |= banned & set(after[:1])
        share = chat_share if chat else 0
        return cls(base, plain, chat, longest, top_k, share, batch, banned - ends, frozenset(ends), left_out)

    def round(self, count: int, generator: torch.Generator, on_step: Callable[[int], None]) -> list[str]:
        """`count` texts, without those that are empty, repetitive or tokenized as special tokens."""
        # Chats are distributed evenly over the texts, because a later step may read only the first texts.
        chats = [int(self.chat_share * (number + 1)) > int(self.chat_share * number) for number in range(count)]
        drafts = [self._draft(chat, generator) for chat in chats]
        with fast_products([self.base.model]):
            written = sampled(
                self.base.model, drafts, banned=self.banned, ends=self.ends, batch=self.batch, on_step=on_step
            )
        texts = (self._as_chat(ids) if chat else self._as_text(ids) for ids, chat in zip(written, chats, strict=True))
        return [text for text in texts if text]

    def _draft(self, chat: bool, generator: torch.Generator) -> Draft:
        start = self.chat if chat and self.chat else self.plain
        longest = _room(self.base, start.ids + start.then, self.longest) + len(start.then)
        return Draft.drawn(start, longest, self.top_k, generator)

    def _as_chat(self, ids: Sequence[int]) -> str:
        """The turn and its answer (if there is one) in the chat template; empty if either is not valid text."""
        assert self.chat is not None
        turn, answer = _parted(ids, self.chat.then)
        texts = {"user": self._as_text(turn)} | ({} if answer is None else {"assistant": self._as_text(answer)})
        if not all(texts.values()):
            return ""
        turns = [{"role": role, "content": text} for role, text in texts.items()]
        try:
            rendered = str(self.base.tokenizer.apply_chat_template(turns, tokenize=False, **OFF))
        except (TemplateError, TypeError):  # the template forbids such an answer
            return ""
        return _as_read(self.base.tokenizer, rendered.removeprefix(self.left_out))

    def _as_text(self, ids: Sequence[int]) -> str:
        if _loops(ids):
            return ""
        tokenizer = self.base.tokenizer
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        # Remove bytes of incomplete characters, and control characters.
        text = "".join(sign for sign in text if sign.isprintable() or sign.isspace()).replace("\ufffd", "").strip()
        read = tokenizer(text, add_special_tokens=False)["input_ids"]
        return "" if self.banned.intersection(read) or self.ends.intersection(read) else text


def _room(base: Base, ids: Sequence[int], longest: int) -> int:
    """Tokens that can be sampled after `ids`, at most `longest`."""
    most = positions_of(base.model)
    return longest if most is None else max(min(longest, most - len(ids)), 0)


def _parted(ids: Sequence[int], then: Sequence[int]) -> tuple[Sequence[int], Sequence[int] | None]:
    """The ids before and after the first occurrence of `then`; (ids, None) if `then` does not occur."""
    for place in range(len(ids)):
        if tuple(ids[place : place + len(then)]) == tuple(then):
            return ids[:place], ids[place + len(then) :]
    return ids, None


def _loops(ids: Sequence[int]) -> bool:
    """True if most trigrams of the ids are repetitions."""
    threes = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(threes)) < _LEAST_DISTINCT * len(threes)


def _as_read(tokenizer: PreTrainedTokenizerFast, rendered: str) -> str:
    """A rendered chat without the beginning that the tokenizer adds before every text."""
    begin = str(tokenizer.decode(begin_ids(tokenizer)))
    return rendered.removeprefix(begin) if begin else rendered
