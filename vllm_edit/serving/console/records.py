"""A patch's records as its page shows them: measures as tables, everything else as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from vllm_edit.artefacts.reports import EditReport
from vllm_edit.serving.admin.edits import RecordInfo

R = TypeVar("R", bound=BaseModel)


class Measured(BaseModel):
    """A metric's value in a mode, of an evaluation or a gate."""

    model_config = ConfigDict(extra="ignore")

    mode: str
    metric: str
    protocol: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int


@dataclass(frozen=True)
class Metric:
    """A metric's values, by mode. n: its number of prompts."""

    metric: str
    protocol: str
    n: int
    by_mode: dict[str, Measured]


@dataclass(frozen=True)
class ShownRecord:
    """A record. measures: of an evaluation or a gate. edits: of a compilation. failures: of a gate. Each is empty if
    the record has none that can be read. data: the record's other fields."""

    kind: str
    at: datetime
    measures: list[Metric]
    edits: list[EditReport]
    failures: list[str]
    data: dict[str, JsonValue]

    @property
    def modes(self) -> list[str]:
        """The measured modes, in the record's order."""
        return list(dict.fromkeys(mode for metric in self.measures for mode in metric.by_mode))


def shown_records(records: Iterable[RecordInfo]) -> list[ShownRecord]:
    """The records, the newest first."""
    return [_shown(record) for record in sorted(records, key=lambda record: record.at, reverse=True)]


def _shown(record: RecordInfo) -> ShownRecord:
    measures, edits = _read(Measured, record.data.get("measures")), _read(EditReport, record.data.get("edits"))
    failures = record.data.get("failures")
    listed = [str(failure) for failure in failures] if isinstance(failures, list) else []
    shown = {name for name, found in (("measures", measures), ("edits", edits), ("failures", listed)) if found}
    rest: dict[str, JsonValue] = {
        name: value for name, value in record.data.items() if name not in shown and value not in (None, [], {})
    }
    return ShownRecord(record.kind, record.at, _by_metric(measures), edits, listed, rest)


def _by_metric(measures: Iterable[Measured]) -> list[Metric]:
    found: dict[tuple[str, str], Metric] = {}
    for measure in measures:
        key = (measure.metric, measure.protocol)
        found.setdefault(key, Metric(*key, measure.n, {})).by_mode[measure.mode] = measure
    return list(found.values())


def _read(kind: type[R], found: JsonValue) -> list[R]:
    """The items that a record lists; empty if it has none, or has them in another form."""
    try:
        return [kind.model_validate(item) for item in found] if isinstance(found, list) else []
    except ValidationError:
        return []
