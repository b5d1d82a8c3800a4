"""Base of all settings: frozen dataclasses that pydantic validates. One error reports all problems.

Values are not converted (1 does not become 1.0), because settings are part of a compiled patch's identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import wraps
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, ValidationError, WrapValidator
from pydantic_core import ErrorDetails

from vllm_edit.errors import EditError
from vllm_edit.patch import Scope

T = TypeVar("T")
RUN_TIME = ("batch_tokens", "on_missed")
"""Settings that do not affect the result."""


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


class MethodSettings:
    """Base of settings classes, which need the decorator `checked`.

    method: name of the method. scoped: defaults that differ for a patch with scope subject.
    """

    method: ClassVar[str]
    scoped: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @classmethod
    def of(cls, values: Mapping[str, Any], scope: Scope = "all") -> Self:
        """Settings from plain values, such as those of the CLI or a manifest. scope: the scope of the compiled patch.

        Raises:
            EditError: names are unknown or values are invalid; one line lists all problems.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        if unknown := sorted(set(values) - known):
            raise EditError(
                f"unknown settings {', '.join(unknown)}; settings of {cls.method} are {', '.join(sorted(known))}"
            )
        return cls(**{**(cls.scoped if scope == "subject" else {}), **values})

    def lasting(self) -> dict[str, Any]:
        """All settings except the run-time settings, by name."""
        return {key: value for key, value in asdict(self).items() if key not in RUN_TIME}  # type: ignore[call-overload]


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that validates its values; invalid ones raise EditError, one line for all problems."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True))(cls)
    validate = made.__init__

    @wraps(validate)
    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            validate(self, *values, **named)
        except ValidationError as error:
            problems = dict.fromkeys(_message(problem) for problem in error.errors())  # a union reports each member
            raise EditError(f"settings of {getattr(cls, 'method', cls.__name__)}: {'; '.join(problems)}") from None

    made.__init__ = init
    return cast("type[T]", made)


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
