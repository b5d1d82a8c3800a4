"""What pydantic found wrong, as lines for a person."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from vllm_edit.invalid import problems_of


class Pair(BaseModel):
    parts: list[int]

    @model_validator(mode="after")
    def _two(self) -> Pair:
        if len(self.parts) != 2:
            raise ValueError("expected two parts")
        return self


def test_each_problem_names_its_field_and_one_of_no_field_the_whole() -> None:
    with pytest.raises(ValidationError) as fields:
        Pair.model_validate({"parts": [1, "b", "c"]})
    assert [line.partition(": ")[0] for line in problems_of(fields.value)] == ["parts.1", "parts.2"]
    with pytest.raises(ValidationError) as whole:
        Pair(parts=[1])
    assert problems_of(whole.value, "the pair") == ["the pair: Value error, expected two parts"]
