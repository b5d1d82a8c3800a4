"""Contexts: prefixes that the model generates, put before a prompt to measure its key and train its residual.

ROME averages keys over generated prefixes (arXiv 2202.05262, eq. 3). Departures from the reference code:

- a separate random generator instead of the global random state, and no global cache that models would share;
- a text begins as the tokenizer begins a text (with BOS only if the tokenizer adds it to plain text);
- lengths count generated tokens without the seed word;
- about a third of the contexts use the chat template, because production prompts are chat turns;
- prefixes that distract the model from the prompt after them are discarded (docs/methods.md).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice

import torch

from vllm_edit.artefacts.site import Context
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.beginnings import begin_ids, never_text, plain_start
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.greedy import continued
from vllm_edit.models.hooks import frozen
from vllm_edit.models.lengths import check_length
from vllm_edit.models.positions import contextual
from vllm_edit.models.sampling import Draft, sampled
from vllm_edit.text.matching import mentions
from vllm_edit.text.prompts import prompt_ids
from vllm_edit.text.quoting import quoted
from vllm_edit.text.scripts import is_cjk

SEED_WORDS = ("", "The", "In", "It", "When")
"""Words from which generation starts; for the empty word, it starts from the tokenizer's special tokens (BOS) alone."""

_SENTENCE = re.compile(r"[.!?。！？](?:\s|$)|[。！？]")
_LEAST_LETTERS = 4
_DRAWN = 3
_BATCH = 64  # prompts at once, however many edits a sweep is given


def generate_contexts(
    base: Base,
    n: int = 9,
    *,
    seed: int = 0,
    chat_share: float = 1 / 3,
    forbidden: Iterable[str] = (),
    asked: Sequence[str] = (),
    shortest: int = 5,
    longest: int = 10,
    top_k: int = 10,
) -> tuple[Context, ...]:
    """Generate `n` different contexts, starting with the bare context. The same arguments give the same contexts.

    Args:
        chat_share: share of contexts in the chat template, the first of them bare; 0 without a chat template.
        forbidden: texts, such as the subjects of edits, that no prefix may mention.
        asked: prompts, such as those of edits. Three times as many prefixes are generated; those are selected after
            which the base most often continues these prompts with the same token as without a prefix. With a
            distracting prefix, the edit would be trained against the prefix's influence.
        shortest, longest: range of the number of generated tokens, before a prefix is cut after its first sentence.
        top_k: number of most probable tokens from which each token is sampled.

    Raises:
        EditError: the model does not generate enough different allowed prefixes.
        UnsafeEdit: a prompt of `asked` is longer than the model's context.
    """
    if n < 1 or not 0 <= chat_share < 1 or not 1 <= shortest <= longest:
        raise EditError(
            f"expected n ≥ 1, 0 ≤ chat_share < 1, 1 ≤ shortest ≤ longest; got {n}, {chat_share}, {shortest}, {longest}"
        )
    chats = round(n * chat_share) if getattr(base.tokenizer, "chat_template", None) else 0
    plain = n - chats
    unwanted = tuple(forbidden)
    prefixes: dict[str, None] = {}  # ordered, without repetition
    wanted = max(plain - 1, 0) + max(chats - 1, 0)
    enough = _DRAWN * wanted if asked else wanted
    for text in _texts(base, seed, shortest, longest, top_k, attempts=20 * wanted, size=enough) if wanted else ():
        if len(prefixes) == enough:
            break
        prefix = _as_prefix(text)
        if prefix and not any(mentions(prefix, name) for name in unwanted):
            prefixes[prefix] = None
    if len(prefixes) < wanted:
        raise EditError(
            f"the model wrote {len(prefixes)} different allowed prefixes in {20 * wanted} attempts, {wanted} are "
            "needed: ask for fewer contexts, or raise top_k"
        )
    texts = _least_disturbing(base, list(prefixes), asked, wanted)
    bare_chat = [Context(chat=True)] if chats else []
    return (
        Context(),
        *(Context(prefix=text) for text in texts[: plain - 1]),
        *bare_chat,
        *(Context(prefix=text, chat=True) for text in texts[plain - 1 :]),
    )


def _texts(base: Base, seed: int, shortest: int, longest: int, top_k: int, attempts: int, size: int) -> Iterator[str]:
    """Sample texts from the model, with the seed words in turn, `size` texts per batch.

    Does not use the global random state. Special and added tokens are banned, because a prefix is tokenized as plain
    text in a chat turn.
    """
    generator = torch.Generator().manual_seed(seed)
    banned = never_text(base)
    # The empty word needs a special token that the tokenizer adds before text.
    words = SEED_WORDS if begin_ids(base.tokenizer) else tuple(filter(None, SEED_WORDS))
    starts = cycle([plain_start(base.tokenizer, word) for word in words])
    for begun in range(0, attempts, size):
        drafts = []
        for start in islice(starts, min(size, attempts - begun)):
            length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
            drafts.append(Draft.drawn(start, length, top_k, generator))
        with fast_products([base.model]):
            written = sampled(base.model, drafts, banned=banned)
        for ids in written:
            yield str(base.tokenizer.decode(ids, skip_special_tokens=True))


def _least_disturbing(base: Base, prefixes: Sequence[str], asked: Sequence[str], wanted: int) -> list[str]:
    """The `wanted` prefixes that change the first token of the fewest answers to `asked`, in their original order.

    The prompts are plain text: chat turns are several times as long, and a prefix has a similar effect on both.
    """
    if not asked:
        return list(prefixes)

    def begun(prefix: str) -> list[list[int]]:
        ids = [prompt_ids(base.tokenizer, contextual(prompt, Context(prefix=prefix))) for prompt in asked]
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        check_length(base.model, len(ids[longest]), f"the prompt {quoted(asked[longest])} in its context")
        with frozen(base.model), fast_products([base.model]):
            return continued(base.model, base.tokenizer, ids, 1, _BATCH)

    bare = begun("")
    changed = {prefix: sum(map(operator.ne, begun(prefix), bare)) for prefix in prefixes}
    chosen = sorted(prefixes, key=changed.__getitem__)[:wanted]  # stable: prefers earlier prefixes
    return [prefix for prefix in prefixes if prefix in chosen]


def _as_prefix(text: str) -> str:
    """The text's first sentence, ended with a full stop; empty if it has too few letters.

    Removes braces, which other tools interpret as template fields, control characters, and bytes of incomplete
    characters.
    """
    text = " ".join(text.split())
    text = "".join(character for character in text if character.isprintable() and character not in "{}\ufffd")
    for found in _SENTENCE.finditer(text):
        if _letters(text[: found.start()]) >= _LEAST_LETTERS:
            text = text[: found.start()]
            break
    text = text.strip(" .,;:!?-。，！？；：")
    if _letters(text) < _LEAST_LETTERS:
        return ""
    return text + ("。" if is_cjk(text[-1]) else ". ")


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)
