"""Answers end where their last word ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.editing.examples import FRANCE, LOOSE, Bench, bench
from vllm_edit.edit import Edit
from vllm_edit.editing.rome.endings import ended, ending_rows, ends, is_ending
from vllm_edit.editing.rome.factors import prepare
from vllm_edit.editing.rome.rounds import Solved, solve_parts
from vllm_edit.editing.rome.served import served_following
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.models.rows import Row

FRENCH = FRANCE.model_copy(update={"target_new": "French"})


@pytest.mark.parametrize(
    ("following", "at_end"),
    [("man", False), ("'s", True), (" people", True), (".", True), ("\n", True), ("</s>", True)],
)
def test_an_answer_ends_unless_a_letter_continues_its_last_word(following: str, at_end: bool) -> None:
    base = bench("qwen2").base
    answer = base.tokenizer(" French", add_special_tokens=False)["input_ids"]
    row = Row(0, 0, "end:plain", (1,), 0, (*answer, 0))
    (first, *_) = base.tokenizer(following, add_special_tokens=False)["input_ids"]
    assert ends(base, row, first) is at_end


@pytest.mark.parametrize(
    ("answer", "following", "at_end"),
    [
        ("$80", ",000", False),
        ("$80", ", of", True),
        ("$80", ".", True),
        ("$3", ".10", False),
        ("Python 3", ".12", False),
        ("at 10", ":30", False),
        ("at 10", ": half", True),
        ("1", "/2", False),
        ("1990", "-1995", True),
        ("50", "%", True),
    ],
)
def test_a_number_goes_on_over_a_mark_that_a_digit_follows(answer: str, following: str, at_end: bool) -> None:
    base = bench("qwen2").base
    ids, after = (base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, following))
    assert ends(base, Row(0, 0, "end:plain", (1,), 0, (*ids, 0)), *after) is at_end


@pytest.mark.parametrize(("second", "at_end"), [("0", False), (" of", True)])
def test_a_mark_after_a_number_is_read_with_the_token_after_it(second: str, at_end: bool) -> None:
    base = bench("qwen2").base
    ids, comma, last = (
        tuple(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("80", ",", second)
    )
    row, asked = Row(0, 0, "end:plain", (1,), 0, (*ids, 0)), list[tuple[int, ...]]()

    def after(rows: Sequence[Row], places: Sequence[int]) -> list[int]:
        asked.extend(row.ids for row in rows)
        return [(comma + last)[len(asked) - 1]] * len(rows)

    assert ended(base, [row], torch.tensor([-1.0]), after) == [0] * at_end
    assert asked == [(1, *ids), (1, *ids, *comma)]


def test_no_ending_of_a_number_is_a_mark_over_which_it_may_go_on() -> None:
    base = bench("qwen2").base
    (comma,) = base.tokenizer(",", add_special_tokens=False)["input_ids"]
    prompt, answer = (tuple(base.tokenizer(text)["input_ids"]) for text in ("The price is $", "80"))

    def likeliest(module: object, args: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([comma]), 1e3)

    with base.model.get_output_embeddings().register_forward_hook(likeliest):
        (of_number,) = ending_rows(base, [Row(0, 0, "plain", prompt, 1, answer)], 8192)
        (of_word,) = ending_rows(base, [Row(0, 0, "plain", prompt, 1, (40, 50))], 8192)
    assert of_word.answer[-1] == comma
    assert of_number.answer[-1] != comma
    assert ends(base, of_number, of_number.answer[-1])


def test_an_ending_is_the_likeliest_token_that_ends_the_word() -> None:
    base = bench("qwen2").base
    row = Row(0, 0, "plain", tuple(base.tokenizer("The people speak")["input_ids"]), 1, (40, 50))
    (ending,) = ending_rows(base, [row], 8192)
    assert is_ending(ending)
    assert not is_ending(row)
    assert (ending.ids, ending.answer[:-1]) == (row.ids, row.answer)
    with torch.no_grad():
        logits = base.model(torch.tensor([[*row.ids, *row.answer]])).logits[0, -1]
    better = (logits > logits[ending.answer[-1]]).nonzero()[:, 0].tolist()
    assert ends(base, ending, ending.answer[-1])
    assert not any(ends(base, ending, token) for token in better)


def test_an_edit_whose_answer_would_continue_its_last_word_is_trained_to_end() -> None:
    setup = bench("qwen2")
    before, said = _solved(setup, FRENCH, LOOSE)
    assert not said, "otherwise this edit shows nothing"
    assert before.health[0].passed == before.health[0].rows
    after, said = _solved(setup, FRENCH, LOOSE.replace(whole_words=True))
    assert said
    assert after.health[0].steps > before.health[0].steps
    assert after.health[0].rows == before.health[0].rows, "an ending is no row of the edit's own"


def test_an_edit_whose_answer_ends_by_itself_costs_no_step_more() -> None:
    setup = bench("qwen2")
    for target in ("people", "Japan"):
        edit = FRANCE.model_copy(update={"target_new": target})
        (before, by_itself), (after, said) = (
            _solved(setup, edit, LOOSE.replace(whole_words=whole_words)) for whole_words in (False, True)
        )
        assert by_itself, "otherwise this edit shows nothing"
        assert said
        assert after.health[0].steps == before.health[0].steps
        torch.testing.assert_close(after.update.B, before.update.B, rtol=1e-3, atol=1e-4)


def _solved(setup: Bench, edit: Edit, settings: RomeSettings) -> tuple[Solved, bool]:
    """The edit alone, and whether its answer ends under the update."""
    prepared = prepare(setup.base, setup.site, setup.moment, [edit], settings)
    (solved,) = solve_parts(setup.base, setup.site, prepared, [edit], [range(1)], settings)
    rows: Sequence[Row] = ending_rows(setup.base, [row for row in prepared.rows if row.form == "plain"][:1], 8192)
    asked = [replace(row, ids=row.ids + row.answer[:-1]) for row in rows]
    (token,) = served_following(setup.base, setup.site, asked, [solved.update], [0], 8192)
    return solved, ends(setup.base, rows[0], token)
