"""The base of measurements that are recorded as JSON.

A reader ignores the fields that it does not know, and missing fields take their defaults, so that records of older and
newer versions can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import ConfigDict, ValidationError

from vllm_edit.errors import Corrupt
from vllm_edit.frozen import Frozen
from vllm_edit.invalid import problems_of
from vllm_edit.json_value import JSONObject, JSONValue


class Recorded(Frozen):
    """A measurement, or a part of one."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def of(cls, record: Mapping[str, JSONValue]) -> Self:
        """The report that a record holds.

        Raises:
            Corrupt: a field has a value of another type.
        """
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = problems_of(error, "the record")[0]
            raise Corrupt(f"expected a {cls.__name__}; got another record ({first}); remove it") from error

    def as_record(self) -> JSONObject:
        """The report as JSON values, without the fields that were not measured."""
        return self.model_dump(mode="json", exclude_none=True)
