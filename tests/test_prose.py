"""The pages and the code's docstrings use the field's words, and each sentence begins with its subject."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANUAL = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "api.md")
"""The written pages: docs/api.md is generated from docstrings."""
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *MANUAL,
        *(ROOT / "vllm_edit").rglob("README.md"),
    ]
)
MODULES = sorted((ROOT / "vllm_edit").rglob("*.py"))

AVOIDED = {
    r"told": "the field says: reported, printed, returned, given in the prompt",
    r"desk": "name the object: dependencies, authorization",
    r"care": "name the work: maintenance, verification",
    r"material": "name the data: second moment, network, inputs",
    r"spoken": "name the data: the text of a request",
    r"g(?:ive|ives|ave|iving) way": "name the effect: is left out, is removed, is replaced",
    r"mend(?:s|ed|ing)?": "a reader takes it for the method MEND: fix, repair, correct",
    r"whoever|whomever": "name the person or the program",
}
"""Words that once were a private dialect of this project, as patterns, and the words to use instead."""

LED_BY_A_CLAUSE = re.compile(r"(?:^|(?<=[.:;] ))(?:What|Whatever|Who|Whoever|Whom|Whose)\b[^.?!]*(?=[.!]|$)")
"""A sentence whose subject is a relative clause ("What cannot be drawn is …"), and no question."""

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`[^`\n]*`|(?:\[[\w/]+\.md)?\]\([^)\s]*\)|\"[^\"\n]*\"")
_LABEL = re.compile(r"^\s*\w+: ")


def paragraphs(text: str) -> Iterator[str]:
    """A page's paragraphs and list items, each in one line, without headings, tables, code and quotations."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-|]|\d+\.) )", _FENCE.sub("", text)):
        if not block.lstrip().startswith(("#", "|", "<!--")):
            yield _QUOTED.sub("", " ".join(block.split())).removeprefix("- ")


def tables(text: str) -> Iterator[str]:
    """The rows of a page's tables, without code and quotations."""
    for line in _FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            yield _QUOTED.sub("", line)


def comments(source: str) -> Iterator[str]:
    """The docstrings of a module, line by line, and its comments, without code, quotations and names of arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for line in node.value.value.splitlines():
                yield _QUOTED.sub("", _LABEL.sub("", line))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield _QUOTED.sub("", token.string.removeprefix("# "))


def problems(texts: Iterator[str]) -> list[str]:
    """Each avoided word in the texts, with its remedy. The method's name MEND is another word."""
    return [
        f"{found[0]!r} in {text!r}: {remedy}"
        for text in texts
        for word, remedy in AVOIDED.items()
        for found in re.finditer(rf"\b(?:{word})\b", text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_fields_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert problems(paragraphs(text)) == []
    assert problems(tables(text)) == []


def test_docstrings_and_comments_use_the_fields_words() -> None:
    found = {
        str(path.relative_to(ROOT)): listed
        for path in MODULES
        if (listed := problems(comments(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_of_a_page_begins_with_a_relative_clause(page: Path) -> None:
    texts = paragraphs(page.read_text(encoding="utf-8"))
    assert [found[0] for text in texts for found in LED_BY_A_CLAUSE.finditer(text)] == []


@pytest.mark.parametrize("page", MANUAL, ids=lambda page: page.name)
def test_each_page_of_the_manual_begins_with_its_purpose(page: Path) -> None:
    title, purpose, *_ = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    assert title.startswith("# ")
    assert purpose.startswith("This page ")


@pytest.mark.parametrize("text", ["It is told in one line.", "The key gives way.", "Mended by mending it."])
def test_an_avoided_word_is_found(text: str) -> None:
    assert problems(iter([text]))


@pytest.mark.parametrize(
    "text", ["The method MEND is trained.", "A `told` field.", 'It reports "was told".', "Careful."]
)
def test_a_similar_word_a_name_and_a_quotation_are_no_problem(text: str) -> None:
    assert problems(paragraphs(text)) == []


def test_a_clause_as_a_subject_is_found_and_a_question_is_not() -> None:
    assert LED_BY_A_CLAUSE.search("What cannot be drawn is refused.")
    assert LED_BY_A_CLAUSE.search("It stays. Who waits gets a note.")
    assert not LED_BY_A_CLAUSE.search("What is refused? The router refuses requests that cannot be served.")
    assert not LED_BY_A_CLAUSE.search("The text says what it does.")
