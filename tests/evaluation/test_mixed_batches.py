"""Rows of different patches in one batch, and long common beginnings: the same answers as from one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.deltas.random_deltas import random_delta
from tests.tiny import SENTENCES, tiny_model
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.by_row import applied_by_row
from vllm_edit.deltas.delta import Delta
from vllm_edit.errors import Incompatible
from vllm_edit.evaluation.runners.batching import together
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.models.forced import shared_texts
from vllm_edit.models.layout import find_layout
from vllm_edit.models.shared_prefix import LEAST, sharing
from vllm_edit.patch import Patch

PROMPTS = ("x", "The capital of France is", "Where is the Eiffel Tower? The Eiffel Tower is in the city of")
BEGINNING = " ".join(SENTENCES[:8])
QUESTIONS = ("Who wrote Hamlet?", "The capital of Japan is", "Rome", "What is the capital of Germany? It is")


def patched(patch: Patch, delta: Delta) -> CompiledPatch:
    manifest = Manifest(
        patch=patch.name, method="rome", base="b", site="s", modules=tuple(delta.parts), edits=patch.edits,
        rank=delta.rank, adapter=delta.digest, factors=None, demonstrations=None,
    )  # fmt: skip
    return CompiledPatch(manifest, delta)


def counted(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """The shape of the ids of every forward pass from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_patches_of_different_ranks_and_modules_share_a_batch_and_answer_as_each_does_alone(
    family: str, tokenizer: PreTrainedTokenizerFast, patch: Patch
) -> None:
    model = tiny_model(family, tokenizer)
    down = find_layout(model).down
    patches = [
        None,
        patched(patch, random_delta(model, {down[1]: 1})),
        patched(patch, random_delta(model, {down[1]: 3})),
        patched(patch, random_delta(model, {down[0]: 2, down[2]: 1})),
    ]
    runner = HFRunner(model, tokenizer)
    requests = [Request(prompt, chat, item) for prompt in PROMPTS for chat in (False, True) for item in patches]
    scored = [(request, answer) for request in requests for answer in ("Rome", "a rather long answer")]
    alone = [runner.generate([request], 6)[0] for request in requests]
    scores = [runner.score([pair])[0] for pair in scored]
    read = [runner.read([request])[0] for request in requests[4:]]
    shapes = counted(model)
    assert runner.generate(requests, 6) == alone
    assert shapes[0][0] > len(requests) / len(patches), "rows of several patches in one batch"
    for found, expected in zip(runner.score(scored), scores, strict=True):
        assert found.nll == pytest.approx(expected.nll, abs=1e-4)
        assert found.argmax == expected.argmax
    for reading, expected_reading in zip(runner.read(requests[4:]), read, strict=True):
        assert reading.tokens == expected_reading.tokens
        assert reading.nll == pytest.approx(expected_reading.nll, rel=1e-4)
    assert len({tuple(alone[start::4]) for start in range(4)}) == 4, "every patch answers differently"


def test_a_delta_that_does_not_fit_is_refused_before_any_row_runs(llama: PreTrainedModel) -> None:
    delta = random_delta(llama, {"model.layers.1.mlp.down_proj": 1})
    foreign = Delta({"model.layers.9.mlp.down_proj": next(iter(delta.parts.values()))})
    with (
        pytest.raises(Incompatible, match=r"no module model\.layers\.9"),
        applied_by_row(llama, [delta, foreign, None]),
    ):
        raise AssertionError("not reached")
    assert not any(module._forward_hooks for module in llama.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj", "gemma2"])
def test_a_long_common_beginning_is_read_once_and_changes_no_answer(
    family: str, tokenizer: PreTrainedTokenizerFast, patch: Patch
) -> None:
    model = tiny_model(family, tokenizer)
    delta = patched(patch, random_delta(model, {find_layout(model).down[1]: 2}))
    runner = HFRunner(model, tokenizer)
    requests = [Request(f"{BEGINNING} {question}", patch=item) for item in (None, delta) for question in QUESTIONS]
    scored = [(request, answer) for request in requests for answer in ("Rome", "a rather long answer")]
    alone = [runner.generate([request], 6)[0] for request in requests]
    scores = [runner.score([pair])[0] for pair in scored]
    shapes = counted(model)
    assert runner.generate(requests, 6) == alone
    beginnings = [shape for shape in shapes if shape[0] == 1]
    assert len(beginnings) == 2, "one for each patch"
    assert all(width >= LEAST for _, width in beginnings)
    assert max(width for rows, width in shapes if rows > 1) < LEAST
    for found, expected in zip(runner.score(scored), scores, strict=True):
        assert found.nll == pytest.approx(expected.nll, abs=1e-4)
        assert found.argmax == expected.argmax
    assert len(set(alone)) > 2


def test_a_model_with_a_window_shorter_than_the_text_reads_every_text_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("mistral", tokenizer)
    model.config.sliding_window = 80
    runner = HFRunner(model, tokenizer)
    requests = [Request(f"{BEGINNING} {question}") for question in QUESTIONS]
    alone = [runner.generate([request], 6)[0] for request in requests]
    shapes = counted(model)
    assert runner.generate(requests, 6) == alone
    assert all(rows == len(requests) for rows, _ in shapes)


def test_groups_share_the_common_beginning_of_their_texts_and_leave_each_its_own_end() -> None:
    beginning = list(range(100))
    texts = [[*beginning, 1, 2], [*beginning, 1, 3, 4], beginning, [7] * 90, [*beginning, *range(500, 700)]]
    groups = sharing(texts, [len(text) - 1 for text in texts], range(5))
    assert sorted(sorted(rows) for rows, shared in groups if shared) == [[0, 1, 2]]
    assert [shared for _, shared in groups] == [99, 0]
    assert sorted(groups[-1][0]) == [3, 4], "alone, or with less than half in common"
    assert sharing(texts[:2], [50, 102], range(2)) == [([0, 1], 0)], "only so much may be shared"


def test_batches_keep_to_their_rows_and_to_the_sum_of_their_weights() -> None:
    texts = [[0] * length for length in (3, 1, 2, 5, 4)]
    rows = [batch.rows for batch in together(texts, [None] * 5, 2, weights=[4, 1, 1, 9, 1], most=5)]
    assert rows == [[3], [4, 0], [2, 1]]
    assert [batch.rows for batch in together(texts, [None] * 5, 9)] == [[3, 4, 0, 2, 1]]


def test_a_batch_with_enough_rows_ends_where_the_next_would_be_mostly_padding() -> None:
    texts = [[0] * 8] * 20 + [[0] * 6] * 3 + [[0] * 5] * 3
    assert [len(batch.rows) for batch in together(texts, [None] * 26, 64)] == [23, 3]
    assert [len(batch.rows) for batch in together(texts[12:], [None] * 14, 64)] == [14]


def test_an_answer_of_one_token_rides_along_with_a_longer_one_to_the_same_prompt() -> None:
    one, other = object(), object()
    prompts: Sequence[Sequence[int]] = [[1, 2], [1, 2], [1, 2], [1, 2], [5]]
    texts, places = shared_texts(prompts, [[9], [7, 8], [9], [7, 6, 5], [9]], [one, one, other, one, one])
    assert [(tuple(text.ids), list(text.places), list(text.tokens)) for text in texts] == [
        ((1, 2, 7, 6), [1, 2, 3, 1, 2, 1], [7, 6, 5, 7, 8, 9]),
        ((1, 2), [1], [9]),
        ((5,), [0], [9]),
    ]
    assert places == [(0, slice(5, 6)), (0, slice(3, 5)), (1, slice(0, 1)), (0, slice(0, 3)), (2, slice(0, 1))]


def test_the_head_computes_only_the_requested_positions(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    seen: list[int] = []
    head = llama.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    try:
        HFRunner(llama, tokenizer).score([(Request(PROMPTS[2]), "Rome"), (Request(PROMPTS[1]), "Paris")])
    finally:
        handle.remove()
    tokens = [len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for answer in ("Rome", "Paris")]
    assert seen == [sum(tokens)]


def test_the_model_is_bit_for_bit_unchanged(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, patch: Patch
) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    made = [patched(patch, random_delta(llama, {find_layout(llama).down[1]: rank})) for rank in (1, 2)]
    HFRunner(llama, tokenizer).generate([Request(PROMPTS[1], patch=item) for item in made], 3)
    assert not any(module._forward_hooks for module in llama.modules())
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())
