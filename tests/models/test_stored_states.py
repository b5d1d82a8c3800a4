"""Stored outputs of a model's first blocks: same results, and each row runs through the blocks once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from vllm_edit.editing.hypernetworks.gradients import token_gradients
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row, batches, run_batch
from vllm_edit.models.stored_states import stored_states

PROMPTS = ("The capital of France is", "Who wrote Hamlet?", "The", "The Eiffel Tower is in the city of")
FEW = {"llama": 2, "gemma2": 2, "gpt2": 1, "opt": 2, "gptj": 2}


def base_of(family: str) -> Base:
    tokenizer = tiny_tokenizer()
    return Base.of(tiny_model(family, tokenizer), tokenizer)


def rows_of(base: Base, prompts: tuple[str, ...] = PROMPTS) -> list[Row]:
    encoded = [tuple(base.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    return [Row(0, number, "row", ids, len(ids) - 1, (7, 8)) for number, ids in enumerate(encoded)]


def logits(base: Base, rows: list[Row]) -> dict[tuple[int, ...], torch.Tensor]:
    """Ids of a row → logits before its answer's tokens."""
    found = {}
    with torch.no_grad():
        for batch in batches(base.model, rows, range(len(rows)), 4096):
            for index, own in zip(batch.rows.tolist(), run_batch(base.model, batch), strict=True):
                found[rows[index].ids] = own
    return found


class Counted:
    """Counts the rows that run through a block."""

    def __init__(self, base: Base, block: str) -> None:
        module = find_module(base.model, block)
        self.rows, self._run = 0, module.forward
        module.forward = self  # type: ignore[method-assign]

    def __call__(self, hidden: torch.Tensor, *args: Any, **given: Any) -> object:
        self.rows += len(hidden)
        return self._run(hidden, *args, **given)


@pytest.mark.parametrize(("family", "count"), FEW.items())
def test_results_are_the_same_with_stored_states_and_for_rows_beside_them(family: str, count: int) -> None:
    base = base_of(family)
    rows = rows_of(base)
    expected = logits(base, rows)
    with stored_states(base.model, base.layout.layers[:count], 1000):
        for asked in (rows[:1], rows[:3], rows[::-1], rows):
            for ids, own in logits(base, asked).items():
                torch.testing.assert_close(own, expected[ids], rtol=1e-4, atol=1e-4)


def test_a_row_runs_through_the_blocks_once_and_the_context_leaves_nothing() -> None:
    base = base_of("llama")
    first, rows = Counted(base, base.layout.layers[0]), rows_of(base)
    hooks = [dict(module._forward_hooks) for module in base.model.modules()]
    with stored_states(base.model, base.layout.layers[:2], 1000):
        logits(base, rows[:2])
        assert first.rows == 2
        logits(base, [*rows, *rows])
        assert first.rows == 4
    logits(base, rows)
    assert first.rows == 8
    assert [dict(module._forward_hooks) for module in base.model.modules()] == hooks
    assert "forward" not in find_module(base.model, base.layout.layers[1]).__dict__


def test_the_oldest_rows_are_dropped_above_the_limit() -> None:
    base = base_of("llama")
    first, rows = Counted(base, base.layout.layers[0]), rows_of(base)
    with stored_states(base.model, base.layout.layers[:2], rows[0].length + rows[1].length):
        for row in (rows[0], rows[1], rows[3]):  # the last one is long: the first is dropped
            logits(base, [row])
        assert first.rows == 3
        logits(base, [rows[3]])
        assert first.rows == 3
        logits(base, [rows[0]])
        assert first.rows == 4


@pytest.mark.parametrize(("blocks", "tokens"), [(0, 1000), (2, 0)])
def test_without_blocks_or_room_every_pass_runs_whole(blocks: int, tokens: int) -> None:
    base = base_of("llama")
    first, rows = Counted(base, base.layout.layers[0]), rows_of(base)
    with stored_states(base.model, base.layout.layers[:blocks], tokens):
        logits(base, rows)
        logits(base, rows)
    assert first.rows == 8


def _with_a_cache(base: Base) -> torch.Tensor:
    return base.model(input_ids=torch.tensor([[9, 8, 7]]), attention_mask=torch.ones(1, 3), use_cache=True).logits


def _padded_on_the_left(base: Base) -> torch.Tensor:
    mask = torch.tensor([[0, 1, 1]])
    return base.model(input_ids=torch.tensor([[0, 8, 7]]), attention_mask=mask, use_cache=False).logits


def _without_a_mask(base: Base) -> torch.Tensor:
    return base.model(input_ids=torch.tensor([[9, 8, 7]]), use_cache=False).logits


@pytest.mark.parametrize("asked", [_with_a_cache, _padded_on_the_left, _without_a_mask])
@torch.no_grad()
def test_a_pass_that_is_not_of_whole_rows_runs_as_usual(asked: Callable[[Base], torch.Tensor]) -> None:
    base = base_of("llama")
    expected = asked(base)
    first = Counted(base, base.layout.layers[0])
    with stored_states(base.model, base.layout.layers[:2], 1000):
        for _ in range(2):
            assert torch.equal(asked(base), expected)
    assert first.rows == 2


def test_gradients_above_the_blocks_are_the_same() -> None:
    base = base_of("llama")
    modules, rows = base.layout.matrices[-1], rows_of(base)
    expected = token_gradients(base.model, modules, rows, 4096)
    with stored_states(base.model, base.layout.layers[:2], 1000):
        for _ in range(2):
            found = token_gradients(base.model, modules, rows, 4096)
            for name in modules:
                torch.testing.assert_close(found[name].dense(), expected[name].dense(), rtol=1e-4, atol=1e-6)


def test_a_pass_that_fails_leaves_the_blocks_as_they_were() -> None:
    base = base_of("llama")
    rows = rows_of(base)
    expected = logits(base, rows)
    with stored_states(base.model, base.layout.layers[:2], 1000):
        logits(base, rows)

        def fail(module: object, args: object) -> None:
            raise RuntimeError("stop")

        with (
            find_module(base.model, base.layout.layers[2]).register_forward_pre_hook(fail),
            pytest.raises(RuntimeError, match="stop"),
        ):
            logits(base, rows)
        assert "forward" not in find_module(base.model, base.layout.layers[0]).__dict__
        for ids, own in logits(base, rows).items():
            torch.testing.assert_close(own, expected[ids], rtol=1e-4, atol=1e-4)
