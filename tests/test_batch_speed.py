"""The speed benchmarks compare like with like: tested with a published shape made tiny."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.batch_speed import as_markdown, compare, sameness, shaped_work
from benchmarks.common.peak_memory import peak_memory
from benchmarks.compose_speed import draw, gram_products
from benchmarks.editor_speed import measure

TINY = ("hidden=64", "layers=3", "d_ff=96", "heads=2", "kv_heads=2", "vocabulary=16384")


def test_both_ways_take_the_same_steps_to_the_same_updates_on_a_random_model_of_a_shape() -> None:
    work = shaped_work("llama-3-8b", TINY, count=2, seed=1, steps=3)
    assert (len(work.base.layout.layers), work.made.site.d_in, work.made.site.d_out) == (3, 96, 64)
    before = work.base.state_digest()
    table, compiled = compare(work, [256, 4096], Console(file=io.StringIO()), whole=True)
    without = ["in float32 throughout", "and every form from the start", "and every token of a row", "and every block"]
    names = ["one at a time", "batched, 256 tokens", "batched, 4096 tokens", *(f"… {mean}" for mean in without)]
    assert [row.name for row in table] == names
    assert all(row.edits == 2 and row.seconds > 0 and row.cpu_seconds > 0 for row in table)
    alone, *same, forms, tokens, blocks = compiled
    for one, other in [*((alone, way) for way in same), (tokens, blocks)]:
        found = sameness(one, other)
        assert found["same_steps"] == 1
        # sums in another order, and products in bfloat16 or not, carried on from step to step
        assert found["largest_relative_change"] < 0.02
    # Every form from the start takes other steps, and so does what an update leaks to earlier tokens.
    assert sameness(alone, forms)["largest_relative_change"] > 0.02
    assert sameness(forms, tokens)["largest_relative_change"] > 0.02
    assert work.base.state_digest() == before
    few = as_markdown(work, [replace(table[0], edits=1), *table[1:]], compiled).splitlines()
    ratios = [line.split(" | ")[4:6] for line in few if line.startswith(("| one", "| batched"))]
    assert ratios == [["1.00", "1.00"], ["–", "–"], ["–", "–"]]  # other edits than those done one at a time
    assert "–" not in as_markdown(work, table, compiled)


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="reads this process's memory")
def test_memory_that_earlier_work_freed_counts_in_the_peak() -> None:
    def fill() -> list[torch.Tensor]:
        return [torch.zeros(2**14) for _ in range(1000)]  # 64 KiB each

    earlier = fill()
    last = torch.zeros(2**14)  # so that the allocator keeps what is below it
    del earlier
    with peak_memory() as memory:
        held = fill()
        time.sleep(0.05)
        assert memory() > 40
    assert len(held) == 1000
    assert last.numel()


def test_products_in_float32_miss_the_constraints_of_keys_that_nearly_coincide() -> None:
    found = gram_products(*draw(8, 64, 16), repeats=1, console=Console(file=io.StringIO()))
    nearly, apart = (found[keys]["constraint_error"] for keys in ("nearly coinciding", "apart"))
    assert apart["float64"] < 1e-6
    assert nearly["float32"] > 10 * nearly["float64"] > 0


@pytest.mark.parametrize("change", ["width=64", "layers", "layers=two", "layers=0", "layers=-1", "=3"])
def test_a_change_of_an_invalid_shape_is_reported_in_one_line(change: str) -> None:
    with pytest.raises(SystemExit, match=f"FIELD one of hidden, layers, .*; got '{change}'"):
        shaped_work("llama-3-8b", [*TINY, change], count=1, seed=1, steps=1)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused() -> None:
    with pytest.raises(SystemExit, match="vocabulary must be at least"):
        shaped_work("llama-3-8b", [*TINY, "vocabulary=100"], count=1, seed=1, steps=1)


def test_every_method_is_timed_on_a_random_model_of_a_shape() -> None:
    once, costs, base = measure("llama-3-8b", TINY, count=1, steps=2)
    assert all(seconds > 0 for seconds in once.values())
    assert [cost.name for cost in costs] == ["r-ROME", "MEND", "KnowledgeEditor", "FT-M", "LoRA"]
    assert all(cost.seconds > 0 and cost.memory >= 0 for cost in costs)
    assert costs[0].rank == 1
    assert base.model.config.hidden_size == 64
