"""Text files of users: UTF-8 in every form; other encodings are reported with the line wherever a text is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_edit.cli.model_inputs import texts_of
from vllm_edit.datasets import read_edits
from vllm_edit.editing.network_files import CARD_FILE, load
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Patch
from vllm_edit.text.utf8 import NotUTF8, read_text

LATIN = "Paris is a city.\nOrléans is another.\n".encode("latin-1")


@pytest.mark.parametrize("content", ["é\nb\n".encode("utf-8-sig"), "é\r\nb\r\n".encode(), "é\rb\r".encode()])
def test_a_mark_and_other_line_ends_are_no_part_of_the_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert read_text(path) == "é\nb\n"


@pytest.mark.parametrize(
    ("content", "line"), [(LATIN, 2), ("a".encode("utf-16"), 1), (b"a\n\n\xed\xa0\x80", 3), (b"a\n\xf0\x9f", 2)]
)
def test_another_encoding_is_reported_with_its_line(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "l1.txt"
    path.write_bytes(content)
    with pytest.raises(NotUTF8, match=rf"l1\.txt: line {line}: not UTF-8"):
        read_text(path)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("l1.txt", lambda path: texts_of("atlas", path)),
        ("l1.yaml", Patch.load),
        ("l1.yaml", Bank.load),
        ("l1.json", read_edits),
        (CARD_FILE, lambda path: load(path.parent)),
        ("books.yaml", lambda path: Facts.load(path.parent)),
        ("books.csv", lambda path: Facts.load(path.parent)),
        ("hops.yaml", lambda path: Facts.load(path.parent)),
    ],
)
def test_it_is_reported_wherever_a_text_is_read(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    for table in ("books.csv", "books.yaml"):
        (tmp_path / table).write_bytes((tables_folder() / table).read_bytes())
    path = tmp_path / name
    path.write_bytes(LATIN)
    with pytest.raises(EditError, match=rf"{name}: line 2: not UTF-8") as refused:
        read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("books.yaml", "relations: [author]", "books.yaml: relations: "),
        ("books.yaml", "relations: {author: {held_out: 3}}", "books.yaml: relations.author.held_out: "),
        ("books.yaml", "- [", "books.yaml: line 1: not valid YAML"),
        ("books.yaml", "a: 2001-99-99", "books.yaml: line 1: not valid YAML"),
        ("books.yaml", "a: {}\na: {}\n", "books.yaml: line 2: a is given twice, first in line 1"),
        ("books.yaml", "[" * 5000, "books.yaml: not valid YAML"),
        ("books.csv", "title,author\n1984,Orwell\n", "books.csv: expected columns subject, aliases"),
        ("books.csv", "subject,aliases\n" + "a" * 200_000, "books.csv: not a table of comma-separated values"),
        ("hops.yaml", "- {first: 3}", "hops.yaml: 0.first: "),
    ],
)
def test_invalid_fact_tables_are_reported_with_file_and_field(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    for table in ("books.csv", "books.yaml"):
        (tmp_path / table).write_bytes((tables_folder() / table).read_bytes())
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EditError, match=message):
        Facts.load(tmp_path)
