"""Reads the records of a JSON file: a list, one record per line (JSONL), or a list per field (EasyEdit's columns)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.datasets.values import mapping
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONValue
from vllm_edit.text.utf8 import decoded

SUFFIXES = (".json", ".jsonl")
_ROW = {
    "prompts": "prompt",
    "rephrase_prompts": "rephrase_prompt",
    "locality_inputs": "locality",
    "portability_inputs": "portability",
}
"""EasyEdit's name of a column → the field's name in a record."""
_MOST_DIGITS = 4000
_GROUPED = ("locality", "portability")


@dataclass(frozen=True)
class Unread:
    """A line that is not JSON, and the reason."""

    reason: str


def records_in(path: Path) -> Sequence[JSONValue | Unread]:
    """The records in order, unchecked; `Unread` for a line that is not JSON.

    UTF-8, UTF-16 and UTF-32 are read, with or without a byte order mark.

    Raises:
        EditError: the file cannot be read, or holds no records.
    """
    try:
        content = path.read_bytes()
        text = decoded(content, path, json.detect_encoding(content))
    except (OSError, ValueError) as error:
        raise EditError(f"{path}: expected a JSON data set: {error}") from None
    records: Sequence[JSONValue | Unread]
    try:
        records = _rows(_json(text))
    except (ValueError, RecursionError) as error:
        by_lines = path.suffix.lower() == ".jsonl" or str(error).startswith("Extra data")
        records = [_line(line) for line in text.split("\n") if line.strip()] if by_lines else []
        if all(isinstance(record, Unread) for record in records):
            raise EditError(f"{path}: expected a JSON data set: {error}") from None
    if not records:
        raise EditError(f"{path}: expected a JSON list of records, a record a line, or a list for each field")
    return records


def _json(text: str) -> JSONValue:
    """Parse JSON. A number with too many digits for Python's integers becomes a float; numbers are never answers."""
    data: JSONValue = json.loads(
        text, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else float(digits)
    )
    return data


def _rows(data: JSONValue) -> Sequence[JSONValue]:
    """The records of a parsed file; empty if it is neither a list nor a non-empty mapping."""
    if isinstance(data, list):
        return data
    columns = {_ROW.get(name, name): column for name, column in mapping(data).items()}
    prompts = columns.get("prompt", columns.get("src"))
    if not isinstance(prompts, list):
        return [columns] if columns else []
    return [
        {
            name: _row_of_groups(column, row) if name in _GROUPED else _cell(column, row)
            for name, column in columns.items()
        }
        for row in range(len(prompts))
    ]


def _row_of_groups(groups: JSONValue, row: int) -> JSONValue:
    """One row of the probe groups, given as a mapping of groups with columns, or as a list with one entry per row."""
    if not isinstance(groups, dict):
        return _cell(groups, row)
    return {
        name: {field: _cell(column, row) for field, column in mapping(group).items()} for name, group in groups.items()
    }


def _cell(column: JSONValue, row: int) -> JSONValue:
    """A column's value in a row; None if the column is too short. A value that is not a list applies to all rows."""
    if not isinstance(column, list):
        return column
    return column[row] if row < len(column) else None


def _line(line: str) -> JSONValue | Unread:
    try:
        return _json(line)
    except (ValueError, RecursionError) as error:
        return Unread(f"not JSON: {error}")
