"""The base of all settings: immutable values that pydantic validates. One error reports all problems.

Values are not converted (1 does not become 1.0), because settings are part of a compiled patch's identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, ValidationError, WrapValidator
from pydantic_core import ErrorDetails

from vllm_edit.errors import EditError
from vllm_edit.frozen import Frozen


def _finite(value: Any, check: Callable[[Any], float]) -> Any:
    if not math.isfinite(check(value)):
        raise ValueError("must be a number")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be positive")
    return value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


def between(low: float, high: float, *, low_too: bool = True, high_too: bool = True) -> AfterValidator:
    """A validator for values between `low` and `high`. low_too, high_too: whether the bound itself is allowed."""
    excluded = {end for end, allowed in ((low, low_too), (high, high_too)) if not allowed}

    def check(value: float) -> float:
        if not low <= value <= high or value in excluded:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return AfterValidator(check)


Real = Annotated[float, WrapValidator(_finite)]
"""A finite number, not converted."""
PositiveReal = Annotated[Real, AfterValidator(_positive)]
RealFromZero = Annotated[Real, AfterValidator(_not_negative)]
PositiveCount = Annotated[int, AfterValidator(_positive)]
CountFromZero = Annotated[int, AfterValidator(_not_negative)]
Share = Annotated[Real, between(0, 1)]
Seed = Annotated[int, between(-(2**63), 2**63 - 1)]
"""A seed in the range of torch's generators."""


class Settings(Frozen):
    """Base of classes of settings. A docstring below a field is its description in the JSON schema.

    Attributes:
        title: what the settings are of, for messages.
    """

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)
    title: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        """Settings with these values, and defaults for the others.

        Raises:
            EditError: names are unknown or values are invalid; one line lists all problems.
        """
        if unknown := sorted(set(values) - set(type(self).model_fields)):
            known = ", ".join(sorted(type(self).model_fields))
            raise EditError(f"unknown settings {', '.join(unknown)}; settings of {self.title} are {known}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = dict.fromkeys(_message(problem) for problem in error.errors())  # a union reports each member
            raise EditError(f"settings of {self.title}: {'; '.join(problems)}") from None

    def replace(self, **changes: Any) -> Self:
        """A copy with these values changed.

        Raises:
            EditError: names are unknown or values are invalid; one line lists all problems.
        """
        return type(self)(**{**dict(self), **changes})


def _message(problem: ErrorDetails) -> str:
    """The name of the setting, the requirement and the given value."""
    kinds = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "string_type": "must be text",
        "tuple_type": "must be a list",
    }
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        must = str(context["error"])
    elif kind == "literal_error":
        must = f"must be one of {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    else:
        must = kinds.get(kind, problem["msg"])
    return f"{problem['loc'][0] if problem['loc'] else 'they'} {must}; got {_shown(problem['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"
