"""The served prefix: its edits, its demonstrations, their order, and which of them a tight budget drops."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.ike.conftest import Stored, manifest_of
from vllm_edit.artefacts.compiled import Demonstration
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.ike import template
from vllm_edit.ike.prefix import MAX_EDITS, PATTERN, build_prefix, relevant_edits, subjects_of, wrap
from vllm_edit.ike.retrieval import lexical
from vllm_edit.ike.shelf import Shelf
from vllm_edit.patch import Patch
from vllm_edit.text.matching import mentions

FACT = "The capital of France is Rome"


def blocks(text: str) -> list[str]:
    return text.split("\n\n")


def kinds_in(text: str, demonstrations: tuple[Demonstration, ...]) -> Counter[str]:
    shown = set(blocks(text))
    return Counter(
        item.kind
        for item in demonstrations
        if item.edit is None and template.demonstration(item.fact, item.prompt, item.answer).strip() in shown
    )


def test_the_prefix_ends_with_self_copy_and_fact_and_the_prompt_follows(stored: Stored, patch: Patch) -> None:
    prefix = build_prefix(*stored(patch), "Where is the French government?", 4096)
    assert prefix.edits == (0,)
    assert prefix.text.endswith(f"New Fact: {FACT}\nPrompt: {FACT}\n\nNew Fact: {FACT}\nPrompt: ")
    assert wrap(prefix, "What?") == prefix.text + "What?"


def test_bank_demonstrations_keep_the_ratio_and_the_nearest_is_last(stored: Stored, patch: Patch) -> None:
    manifest, demonstrations = stored(patch)
    prefix = build_prefix(manifest, demonstrations, "x", 4096, limit=16)
    assert kinds_in(prefix.text, demonstrations) == {"copy": 2, "update": 6, "retain": 8}
    facts = [block.split("\n")[0].removeprefix("New Fact: ") for block in blocks(prefix.text)[:16]]
    scores = lexical(FACT, facts)
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_the_prefix_is_the_same_for_every_prompt_about_the_fact(stored: Stored, patch: Patch, many: Patch) -> None:
    assert len({build_prefix(*stored(patch), prompt, 900).text for prompt in ("a", "巴黎", "Capital of France?")}) == 1
    stored_many = stored(many)
    prefixes = {build_prefix(*stored_many, prompt, 900) for prompt in ("Who leads Rohan?", "The leader of Rohan is")}
    assert len(prefixes) == 1


@settings(deadline=None)
@given(budget=st.integers(0, 2500))
def test_no_budget_is_exceeded_and_a_smaller_one_keeps_a_subset(budget: int, stored: Stored, patch: Patch) -> None:
    manifest, demonstrations = stored(patch)
    fact_tokens = next(item.tokens for item in demonstrations if item.kind == "fact")
    if budget < fact_tokens:
        with pytest.raises(EditError, match=f"at least {fact_tokens} tokens, {budget} are left"):
            build_prefix(manifest, demonstrations, "x", budget)
        return
    prefix = build_prefix(manifest, demonstrations, "x", budget)
    assert prefix.tokens <= budget
    whole = build_prefix(manifest, demonstrations, "x", 100_000)
    assert set(blocks(prefix.text)) <= set(blocks(whole.text))
    counts, shown = kinds_in(prefix.text, demonstrations), len(blocks(prefix.text)) - 2
    assert counts == Counter(PATTERN[place % 8] for place in range(max(shown, 0)))


def test_the_counted_tokens_are_nearly_the_real_ones(
    stored: Stored, patch: Patch, tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = build_prefix(*stored(patch), "x", 4096)
    assert prefix.tokens == pytest.approx(len(tokenizer.tokenize(prefix.text)), rel=0.01)


def test_only_the_fact_remains_of_a_tight_budget(stored: Stored, patch: Patch) -> None:
    manifest, demonstrations = stored(patch)
    tokens = next(item.tokens for item in demonstrations if item.kind == "fact")
    assert build_prefix(manifest, demonstrations, "x", tokens).text == f"New Fact: {FACT}\nPrompt: "


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Who is the leader of Narnia?", [1]),
        ("Which river runs through Oz?", [0, 5]),
        ("The leader of Oz is", [5, 0]),
        ("誰是全世界最高的人？", [7]),
        ("最帥的那個人在哪裡工作？", [6]),
        ("Ozymandias was", None),
    ],
)
def test_relevant_edits_are_those_whose_subject_is_mentioned(
    many: Patch, prompt: str, expected: list[int] | None
) -> None:
    chosen = relevant_edits(many.edits, prompt)
    if expected is None:
        assert len(chosen) == MAX_EDITS
        assert not any(mentions(prompt, many.edits[index].subject) for index in chosen)
    else:
        assert chosen == expected


def test_other_edits_of_the_subject_are_self_copies_before_the_main_fact(stored: Stored, many: Patch) -> None:
    prefix = build_prefix(*stored(many), "The leader of Oz is", 4096)
    assert prefix.edits == (0, 5)
    river, leader = "The river of Oz is the Blue Water", "The leader of Oz is Ann"
    assert blocks(prefix.text)[-3:] == [
        f"New Fact: {river}\nPrompt: {river}", f"New Fact: {leader}\nPrompt: {leader}", f"New Fact: {leader}\nPrompt: "
    ]  # fmt: skip


def test_a_patch_without_demonstrations_names_the_remedy(patch: Patch) -> None:
    with pytest.raises(EditError, match="compile it again"):
        build_prefix(manifest_of(patch), (), "x", 100)


def test_similarity_works_without_spaces_and_forgives_word_order() -> None:
    near, far = lexical("誰是全世界最帥的人", ["全世界最帥的人是誰", "水分子的化學式"])
    assert near > 80 > far
    near, far = lexical("the capital of France is", ["France's capital city is", "The author of Hamlet is"])
    assert near > far


def test_a_name_within_a_longer_name_is_the_longer_ones() -> None:
    edits = [
        Edit(prompt=f"The mayor of {name} is", subject=name, target_new="Ann") for name in ("York", "New York", "Rome")
    ]
    assert relevant_edits(edits, "Who is the mayor of New York?") == [1]
    assert sorted(relevant_edits(edits, "Is York larger than New York?")) == [0, 1]


def test_a_cached_index_chooses_the_same_edits(many: Patch) -> None:
    kept = subjects_of(many.edits)
    for prompt in ("The leader of Oz is", "全世界最帥的人是誰", "最帥的那個人在哪裡", "Who leads Rohan?", "Nobody"):
        assert relevant_edits(many.edits, prompt, subjects=kept) == relevant_edits(many.edits, prompt)


def test_nothing_keeps_the_prompts_of_requests(stored: Stored, many: Patch) -> None:
    """A prompt is a client's: it must be gone from memory with its request."""
    manifest, demonstrations = stored(many)
    shelf = Shelf(manifest, demonstrations)

    def ask(number: int) -> None:
        prompt = f"Secret {number} of 北京 " * 2000 + "The leader of Oz is"
        build_prefix(manifest, demonstrations, prompt, 900, subjects=shelf.subjects, read=shelf.read)
        build_prefix(*shelf.of([0, 5]), prompt, 900, read=shelf.read)
        build_prefix(manifest, demonstrations, prompt, 900)

    ask(0)  # reads the stored texts
    tracemalloc.start()
    try:
        for number in range(50):
            ask(number)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000  # a single prompt takes 80,000 bytes


def test_a_shelf_reads_each_stored_text_once(stored: Stored, many: Patch) -> None:
    shelf = Shelf(*stored(many))
    first = shelf.read(FACT)
    assert first == "capital of france is rome"
    assert shelf.read(FACT) is first
