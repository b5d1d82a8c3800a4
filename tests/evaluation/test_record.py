"""The record of a long evaluation: a damaged file, or another kind of file, is reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_edit.errors import EditError
from vllm_edit.evaluation.record import Record


@pytest.mark.parametrize(
    "content",
    [
        b"3\n",
        b"[]\n",
        b'{"measures": 3}\n',
        b'{"measures": null}\n',
        b'"x"\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"\n",
    ],
)
def test_a_file_that_is_not_a_record_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(content)
    with pytest.raises(EditError, match=r"record\.jsonl: expected the record of an evaluation") as refused:
        Record.open(path, {"site": "a"})
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [b'[{"prompt": "The capital of France is"}]', b"my only notes", b" ", b'{"measures":{"site":"a","form":1}}'],
)
def test_a_file_of_one_line_without_its_end_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(EditError, match=r"data\.json: expected the record of an evaluation"):
        Record.open(path, {"site": "a"})
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_of_something_else_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    Record.open(path, {"site": "a"}).add({"patches": []})
    with pytest.raises(EditError, match="differs in site"):
        Record.open(path, {"site": "b"})
    assert Record.open(path, {"site": "a"}).entries == [{"patches": []}]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["measures"]["site"] == "a"


def test_a_record_that_another_process_wrote_to_is_not_written_further(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    first, second = (Record.open(path, {"site": "a"}) for _ in range(2))
    first.add({"number": 1})
    with pytest.raises(EditError, match="another process writes to the record"):
        second.add({"number": 1})
    first.add({"number": 2})
    assert Record.open(path, {"site": "a"}).entries == [{"number": 1}, {"number": 2}]
