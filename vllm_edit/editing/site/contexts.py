"""Contexts: texts the model wrote itself, put before a prompt when its key is measured and its residual is trained.

ROME averages keys over prefixes that the model generates (arXiv 2202.05262, eq. 3). Departures from the reference code:
a generator of its own instead of the global random state, no module-global cache that a second model would inherit,
text that begins as the tokenizer begins a text (its BOS only where it puts one before plain text), lengths that count
generated tokens without the seed, and about a third of the contexts in the chat template, since production prompts are
chat turns, and no prefix that the model would rather go on about than answer what follows it (docs/methods.md).
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
from vllm_edit.prompting import prompt_ids
from vllm_edit.scripts import is_cjk
from vllm_edit.text import mentions, quoted

SEED_WORDS = ("", "The", "In", "It", "When")
"""Texts that generation starts from; the empty one stands for what the tokenizer puts before a text (BOS) alone."""

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
    """`n` different contexts; the first is the bare one, and the same arguments give the same contexts.

    chat_share: share of contexts in the chat template (0 for a tokenizer without one); the first of them is bare too.
    forbidden: texts, such as the subjects of edits, that no prefix may mention.
    asked: prompts, such as those of edits. Of three times as many prefixes those are kept after which the base goes on
    with them most often as it does without a prefix. Under another an edit would be taught against what the base says.
    shortest, longest: generated tokens of a prefix, before it is cut at the end of its first sentence.

    Raises:
        EditError: the model does not write enough different texts that are allowed.
        UnsafeEdit: a prompt of `asked` is longer than the model reads.
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
    """Texts sampled from the model, one seed word after the other; `size` of them are sampled at once.

    No global random state is read or changed. Special and added tokens are banned: a prefix is text, and would not be
    read back as those tokens in a turn.
    """
    generator = torch.Generator().manual_seed(seed)
    banned = never_text(base)
    # Without a word, text begins after what the tokenizer puts before it, and nowhere where that is nothing.
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
    """The `wanted` prefixes after which the base begins most answers to `asked` as without one, in their order.

    Asked as plain text: chat turns are several times as long, and a prefix disturbs both alike.
    """
    if not asked:
        return list(prefixes)

    def begun(prefix: str) -> list[list[int]]:
        ids = [prompt_ids(base.tokenizer, contextual(prompt, Context(prefix=prefix))) for prompt in asked]
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        told = f"the prompt {quoted(asked[longest])} in its context"
        check_length(base.model, len(ids[longest]), told)
        with frozen(base.model), fast_products([base.model]):
            return continued(base.model, base.tokenizer, ids, 1, _BATCH)

    bare = begun("")
    changed = {prefix: sum(map(operator.ne, begun(prefix), bare)) for prefix in prefixes}
    kept = sorted(prefixes, key=changed.__getitem__)[:wanted]  # stable: of equals those drawn first
    return [prefix for prefix in prefixes if prefix in kept]


def _as_prefix(text: str) -> str:
    """The text's first sentence, closed with a full stop; empty if nothing readable is left.

    Braces go, since other tools read them as a template's; so do control characters and the bytes of a character that
    was cut in two.
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
