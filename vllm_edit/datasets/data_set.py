"""A data set: the edits of a file's records, and the records that were left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_edit.datasets.data_file import SUFFIXES, Unread, records_in
from vllm_edit.datasets.forms import edits_in
from vllm_edit.datasets.values import NoEdit
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONValue
from vllm_edit.patch import Patch

log = logging.getLogger(__name__)


class LeftOut(BaseModel):
    """A record that is not an edit: its index in the file, from 0, and the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    reason: str


@dataclass(frozen=True)
class DataSet:
    """The edits of each record, which belong together (several for MQuAKE, otherwise one), and records left out."""

    records: tuple[tuple[Edit, ...], ...]
    left_out: tuple[LeftOut, ...]

    @property
    def edits(self) -> list[Edit]:
        """All edits, record by record."""
        return [edit for record in self.records for edit in record]

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> DataSet:
        """Read the edits of a file, of at most `limit` records.

        A record that is not an edit (no new answer, no subject in the prompt, nothing to change, unknown form) is left
        out, logged and listed in `left_out`.

        Raises:
            EditError: the file holds no JSON records, or none of them is an edit.
        """
        path = Path(path)
        records, left_out = list[tuple[Edit, ...]](), list[LeftOut]()
        for index, record in enumerate(records_in(path)):
            if limit is not None and len(records) == limit:
                break
            try:
                records.append(_edits(record))
            except NoEdit as error:
                left_out.append(LeftOut(index=index, reason=str(error)))
        if not left_out:
            return cls(tuple(records), ())
        first = f"record {left_out[0].index}: {left_out[0].reason}"
        if not records:
            raise EditError(f"{path}: none of its {len(left_out)} records is an edit; {first}")
        read = len(left_out) + len(records)
        log.warning("%s: %d of %d records are not edits; the first is %s", path.name, len(left_out), read, first)
        return cls(tuple(records), tuple(left_out))


def read_edits(path: str | Path, limit: int | None = None) -> list[Edit]:
    """The edits of `DataSet.load`, and its errors."""
    return DataSet.load(path, limit).edits


def is_data_set(name: str | Path) -> bool:
    """True if a file of this name is read as a data set."""
    return Path(name).suffix.lower() in SUFFIXES


def _edits(record: JSONValue | Unread) -> tuple[Edit, ...]:
    """Raises `NoEdit`."""
    if isinstance(record, Unread):
        raise NoEdit(record.reason)
    fields = edits_in(record)
    try:
        return Patch.model_validate({"name": "record", "edits": fields}).edits
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][0 if len(fields) > 1 else 2 :])
        message = problem["msg"].removeprefix("Value error, ")
        raise NoEdit(f"{place}: {message}" if place else message) from None
