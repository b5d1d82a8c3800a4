"""Records: measurements of a compiled patch. They are outside its digest and never overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from vllm_edit.errors import Corrupt
from vllm_edit.files import Files
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.names import check_kind, check_name

_TIME = "%Y%m%dT%H%M%S%f"


@dataclass(frozen=True)
class Record:
    """A compile report, a gate's verdict, an evaluation."""

    name: str
    kind: str
    at: datetime
    data: JSONObject


def add_record(files: Files, name: str, kind: str, data: Mapping[str, JSONValue]) -> Record:
    """Attach `data`, JSON values, to a patch."""
    now = datetime.now(UTC)
    path = f"records/{check_name(name)}/{check_kind(kind)}-{now:{_TIME}}.json"
    files.write(path, json.dumps(dict(data), ensure_ascii=False, indent=2).encode())
    return Record(name, kind, now, dict(data))


def read_records(files: Files, name: str, kind: str | None = None) -> list[Record]:
    """Return a patch's records (of one kind), oldest first."""
    folder = f"records/{check_name(name)}"
    found = []
    for path in files.glob(f"{folder}/{'*' if kind is None else check_kind(kind)}-*.json"):
        of_kind, _, time = path.removeprefix(f"{folder}/").removesuffix(".json").rpartition("-")
        try:
            data = json.loads(files.read(path))
            at = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"{path} cannot be read ({error}); remove it") from error
        found.append(Record(name, of_kind, at, data))
    return sorted(found, key=lambda record: record.at)
