"""The lecture's figure: what an answer means, and the page and picture made of it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import lecture
from benchmarks.lecture import KINDS, LONGEST, ROWS, shortened, write
from vllm_edit.editing.compile import METHODS
from vllm_edit.evaluation.answer_states import Cell
from vllm_edit.evaluation.report import Answer
from vllm_edit.patch import Patch


def answer(metric: str, text: str, right: bool) -> Answer:
    return Answer(
        patch="p", edit=0, subject="s", relation="", metric=metric, tag="", prompt="Who <is> it", chat=False,
        expected="A & B", texts={"base": "before\nmore", "weights": text}, right={"base": False, "weights": right},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "right", "state"),
    [
        ("reliability", True, "followed"),
        ("reverse", False, "missed"),
        ("locality", True, "stayed"),
        ("locality", False, "damaged"),
    ],
)
def test_an_answers_colour_says_whether_it_should_have_changed(metric: str, right: bool, state: str) -> None:
    assert shortened(answer(metric, "new\nline", right), "weights") == Cell("new", state)  # type: ignore[arg-type]


def test_a_long_answer_is_shortened() -> None:
    assert shortened(answer("reliability", "n" * 99, True), "weights") == Cell("n" * LONGEST + "…", "followed")


def test_every_method_has_a_row() -> None:
    assert {row.variant.method for row in ROWS} == set(METHODS)


def test_the_page_and_the_picture_hold_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lecture, "PAGE", tmp_path / "lecture.md")
    monkeypatch.setattr(lecture, "PICTURE", tmp_path / "lecture.svg")
    questions = [answer(metric, "new", True) for metric in KINDS]
    before = [shortened(question, "base") for question in questions]
    table = {"before": before, "X": [Cell("a|b", "damaged"), Cell("", "missed")]}
    write(Patch.load(lecture.PATCH), questions, table, "command")
    page = (tmp_path / "lecture.md").read_text()
    assert "| before |" + " before |" * len(KINDS) in page
    assert r"**a\|b** ✗ | *nothing* ✗ |" in page
    texts = [text.text for text in ElementTree.parse(tmp_path / "lecture.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("before") == 1 + len(KINDS)
    assert {"Who <is> it", "→ A & B", "a|b", "(nothing)"} <= set(texts)


def test_the_landed_page_has_the_rows_of_this_version() -> None:
    page = lecture.PAGE.read_text()
    assert [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")][2:] == [
        "before", *[row.title for row in ROWS], "IKE (a prompt)",
    ]  # fmt: skip
