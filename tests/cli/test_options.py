"""Values that users give on the command line: times and seeds."""

from __future__ import annotations

import pytest
import typer

from vllm_edit.cli.options import future, seed_of


@pytest.mark.parametrize(
    "text", ["", "0d", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00+14:00", "2030-99-99", "9" * 30]
)
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        future(text)


@pytest.mark.parametrize("text", ["", "x", "1.5", "nan", str(2**63), str(-(2**63)), "9" * 5_000])
def test_a_seed_that_no_generator_takes_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        seed_of(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("number", [0, -1, 2**63 - 1, -(2**63) + 1])
def test_every_other_whole_number_is_a_seed(number: int) -> None:
    assert seed_of(str(number)) == number
