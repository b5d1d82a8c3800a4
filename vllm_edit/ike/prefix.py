"""The IKE prefix of a request: demonstrations, then the edited fact, within a token budget.

Pure Python on stored texts and stored token counts: no tokenizer, no model and no torch on the request path. The
prefix depends on the prompt only through *which* edits the prompt is about, so that every prompt about one fact has
the same prefix and an engine's prefix cache holds it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllm_edit.errors import EditError
from vllm_edit.ike import template
from vllm_edit.ike.retrieval import nearest_first
from vllm_edit.text.matching import words
from vllm_edit.text.subjects import Subjects

if TYPE_CHECKING:  # its module imports torch; only its attributes are read here
    from vllm_edit.artefacts.compiled import Demonstration
    from vllm_edit.edit import Edit

PATTERN = ("retain", "update", "retain", "update", "retain", "update", "retain", "copy")
"""The repeating order of kinds in which demonstrations are chosen: copy : update : retain = 1 : 3 : 4.

Every prefix of the order is close to the ratio, so that a tight budget affects all kinds alike. Retain comes first
because it protects locality (arXiv 2305.12740, Table 4).
"""
MAX_EDITS = 4
BUDGET_STEP = 64
"""The budget of bank demonstrations is rounded down to this step, so that prompts of similar length share a prefix."""


class Edited(Protocol):
    """The input of a prefix: a patch's name and its edits, such as a manifest."""

    @property
    def patch(self) -> str: ...

    @property
    def edits(self) -> tuple[Edit, ...]: ...


@dataclass(frozen=True)
class Prefix:
    """Text to put before a prompt, its length in tokens as counted at compile time, and the indices of its edits."""

    text: str
    tokens: int
    edits: tuple[int, ...]


def wrap(prefix: Prefix, prompt: str) -> str:
    """The prompt as it is sent in IKE mode. In a chat, `prompt` is the content of the last user turn."""
    return prefix.text + prompt


def build_prefix(
    edited: Edited,
    demonstrations: Sequence[Demonstration],
    prompt: str,
    budget: int,
    *,
    limit: int = 32,
    subjects: Subjects | None = None,
    read: Callable[[str], str] = words,
) -> Prefix:
    """The prefix for one prompt: bank demonstrations (nearest last), self-copies, then the fact (arXiv 2305.12740 §3).

    Up to `MAX_EDITS` edits are chosen by `relevant_edits`. The most relevant one is the `New Fact` of the last block;
    the others are present as their self-copies before it. Bank demonstrations, at most `limit`, are those nearest to
    that fact (not to the prompt), in the ratio of `PATTERN`. Blocks beyond `budget` tokens are dropped, least similar
    first: bank demonstrations, then the other edits' self-copies, then the fact's own. The fact is never dropped.

    `subjects` may be a cached `subjects_of` the edits; by default they are indexed here. `read` may be `Shelf.read`,
    which caches the words of stored texts. Nothing keeps the prompt.

    Raises:
        EditError: no demonstrations are stored for the patch, or the fact alone exceeds the budget.
    """
    chosen = relevant_edits(edited.edits, prompt, subjects, read)
    main = chosen[-1]
    fact_block = _of_edit(demonstrations, "fact", main)
    if fact_block is None:
        raise EditError(f"{edited.patch} was compiled without IKE demonstrations; compile it again to use mode ike")
    if fact_block.tokens > budget:
        raise EditError(
            f"the IKE prefix of {edited.patch} needs at least {fact_block.tokens} tokens, {budget} are left in the "
            "model's context: shorten the prompt or the answer, or serve the patch in mode weights"
        )
    left = budget - fact_block.tokens

    copies: list[Demonstration] = []
    for index in reversed(chosen):
        copy = _of_edit(demonstrations, "copy", index)
        if copy is None or copy.tokens > left:
            break
        copies.insert(0, copy)
        left -= copy.tokens

    left -= budget % BUDGET_STEP
    nearest = _nearest(demonstrations, fact_block.fact, min(limit, len(demonstrations)), left, read)
    blocks = [*nearest, *copies]
    text = "".join(template.demonstration(block.fact, block.prompt, block.answer) for block in blocks)
    tokens = fact_block.tokens + sum(block.tokens for block in blocks)
    named = tuple(sorted({main, *(copy.edit for copy in copies if copy.edit is not None)}))
    return Prefix(text + template.query(fact_block.fact, ""), tokens, named)


def subjects_of(edits: Sequence[Edit]) -> Subjects:
    """An index of the edits' names: subjects and aliases."""
    return Subjects([(edit.subject, *edit.aliases) for edit in edits])


def relevant_edits(
    edits: Sequence[Edit], prompt: str, subjects: Subjects | None = None, read: Callable[[str], str] = words
) -> list[int]:
    """Indices of the edits that a prompt is about, the most relevant **last**, at most `MAX_EDITS`.

    Candidates are the edits whose subject or alias the prompt mentions, or all edits if it mentions none (so a single
    edit is always chosen). Candidates are ranked by the similarity of their prompt to this one.
    """
    named = (subjects or subjects_of(edits)).mentioned([prompt])
    candidates = named or range(len(edits))
    ranked = nearest_first(prompt, [edits[index].prompt for index in candidates], read)
    return [candidates[rank] for rank in ranked[:MAX_EDITS]][::-1]


def _nearest(
    demonstrations: Sequence[Demonstration], fact: str, limit: int, budget: int, read: Callable[[str], str]
) -> list[Demonstration]:
    """Bank demonstrations nearest to `fact`, in `PATTERN`'s ratio, as many as fit; the most similar last."""
    bank = [item for item in demonstrations if item.edit is None]
    ranked = nearest_first(fact, [item.fact for item in bank], read)
    waiting = {kind: [rank for rank in ranked if bank[rank].kind == kind] for kind in set(PATTERN)}
    chosen: set[int] = set()
    for place in range(limit):
        queue = waiting[PATTERN[place % len(PATTERN)]]
        if not queue or bank[queue[0]].tokens > budget:
            break
        chosen.add(queue[0])
        budget -= bank[queue.pop(0)].tokens
    return [bank[rank] for rank in reversed(ranked) if rank in chosen]


def _of_edit(demonstrations: Sequence[Demonstration], kind: str, edit: int) -> Demonstration | None:
    return next((item for item in demonstrations if item.edit == edit and item.kind == kind), None)
