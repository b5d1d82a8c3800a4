"""The base of settings: values are checked, not converted, and cannot be changed in place."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import ValidationError

from vllm_edit.errors import EditError
from vllm_edit.settings import PositiveCount, Real, Settings


class Example(Settings):
    title: ClassVar[str] = "an example"

    steps: PositiveCount = 3
    """Number of steps."""
    rate: Real = 0.5
    """Step length."""


def test_values_are_kept_as_given() -> None:
    assert dict(Example(rate=1)) == {"steps": 3, "rate": 1}
    assert type(Example(rate=1).rate) is int
    assert hash(Example()) == hash(Example().replace())


def test_one_error_names_all_invalid_values() -> None:
    with pytest.raises(EditError) as raised:
        Example(steps=0, rate="fast")
    assert str(raised.value) == (
        "settings of an example: steps must be positive; got 0; rate must be a number; got 'fast'"
    )
    with pytest.raises(EditError, match="unknown settings stepz; settings of an example are rate, steps"):
        Example().replace(stepz=1)
    with pytest.raises(EditError, match="steps must be positive; got -1"):
        Example().replace(steps=-1)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().steps = 4  # type: ignore[misc]


def test_a_docstring_below_a_field_is_its_description() -> None:
    assert Example.model_json_schema()["properties"]["steps"]["description"] == "Number of steps."
