"""The page of an evaluation: it shows the report's values, needs no other file, and escapes every text."""

from __future__ import annotations

import re

import pytest

from tests.faults.hostile_files import ESCAPES
from tests.pages.examples import Parsed, answer, measure, problems, report
from vllm_edit.evaluation.report import Report
from vllm_edit.evaluation.table import measure_text
from vllm_edit.pages.charts import Value, bars
from vllm_edit.pages.drawing import COLOURS, colour
from vllm_edit.pages.report_pages import evaluation_page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; background: url(http://evil.example)",
    "{{ 7 * 7 }} {% raw %} $\\frac{1}{0}$ &lt;",
    "]]>--><!-- \x00 \x1b[31m \ud800 \ufffe \uffff",
    ESCAPES,
)


def bare(**changes: object) -> Report:
    """A report that has only `changes`."""
    nothing = {"answers": None, "costs": (), "relations": {}, "sizes": {}, "drift": None, "methods": (), "measures": ()}
    return report(**{**nothing, **changes})


@pytest.fixture(scope="module")
def page() -> str:
    """The page of `report()`."""
    return evaluation_page(report())


def test_the_page_is_one_valid_file(page: str) -> None:
    assert problems(page) == []


def test_every_measure_and_cost_of_the_report_is_on_the_page(page: str) -> None:
    made = report()
    text = Parsed.of(page).text
    for found in made.measures:
        assert measure_text(found) in text
    assert "Mode ike adds 431 tokens to a prompt, and a single answer takes 212 ms, against 162 ms of base." in text
    assert "In mode weights, 93.8 % of the edited prompts get the new answer (95 % interval 81 to 100 %)" in text
    assert "2 patches: 4 edits by rome, gate probes, asked through hf float32 cpu." in text
    assert "drift +6.25%" in text


def test_the_text_of_each_chart_has_its_values(page: str) -> None:
    descriptions = re.findall(r"<desc id=\"([\w-]+)\">([^<]*)</desc>", page)
    shown = dict(descriptions)
    assert len(shown) == len(descriptions) == 3 + 2 + 3 + 3
    assert shown["evaluation-reliability-text"] == (
        "base: 0 (0 to 0.0625); weights: 0.938 (0.812 to 1); ike: 0.688 (0.562 to 0.75)"
    )
    assert shown["evaluation-relations-locality-text"] == (
        "ceo, weights: 0.988 (0.863 to 1); city, weights: 0.988 (0.863 to 1)"
    )
    assert "ike, reliability: 0.688 (0.562 to 0.75) at 431" in shown["evaluation-tokens-text"]
    assert "ike, paraphrase: 0.562 (0.438 to 0.625) at 212" in shown["evaluation-latency-text"]
    assert shown["evaluation-sizes-locality-text"] == (
        "edits of a patch. weights: 0.988 (0.863 to 1) at 1, 0.988 (0.863 to 1) at 3"
    )


def test_an_answers_colour_and_mark_say_whether_it_should_have_changed(page: str) -> None:
    two = evaluation_page(bare(modes=("base", "weights"), answers=report().answers))
    cells = re.findall(r'<td data-label="weights" class="(\w+)"><span>(?:<span[^>]*>(.)</span> )?([^<]*)</span>', two)
    assert cells == [
        ("followed", "✓", "Ann"), ("missed", "✗", "Carl"), ("stayed", "✓", "Marjorie"), ("damaged", "✗", "Ann"),
    ]  # fmt: skip
    assert "2 of 4 questions not as wanted in some mode" in two
    assert two.count('<td data-label="before" class="before"><span>Marjorie</span>') == 4
    assert page.count('<td data-label="ike" class="missed">refused</td>') == 4, "no answer in a measured mode"
    assert "4 of 4 questions not as wanted in some mode" in page


def test_edits_with_wrong_answers_come_first_and_the_others_are_counted() -> None:
    many = [answer("reliability", "Ann", right=number == 0, patch=f"p{number}") for number in range(203)]
    page = evaluation_page(bare(answers=tuple(many)))
    assert page.count("<details") == 200 + 1
    assert "3 more edits are not shown" in page
    answers = (answer("reliability", "Ann", True, "good"), answer("reliability", "no", False, "bad"))
    mixed = bare(modes=("base", "weights"), answers=answers)
    assert re.findall(r"<summary>Acme, ceo: ([^<]*)", evaluation_page(mixed)) == [
        "1 of 1 questions not as wanted in some mode",
        "all as wanted",
    ]


def test_text_of_answers_patches_and_relations_is_only_text() -> None:
    def with_texts(texts: tuple[str, ...]) -> Report:
        measures = report().measures[:3]
        return report(
            patches=texts,
            measures=measures,
            answers=tuple(answer("reliability", text, True, patch=text, prompt=text) for text in texts),
            relations={text: measures for text in texts},
            sizes={},
            refused={text: text for text in texts},
            unserved={text: {text: text} for text in texts},
            methods=texts,
        )

    page = evaluation_page(with_texts(HOSTILE))
    assert problems(page) == []
    harmless = evaluation_page(with_texts(tuple(f"text {number}" for number in range(len(HOSTILE)))))
    assert Parsed.of(page).tags == Parsed.of(harmless).tags
    text = Parsed.of(page).text
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\x1b" in text
    assert not set(text) & {"\x00", "\x1b", "\ud800", "\u202e"}


def test_a_report_without_answers_costs_and_relations_has_a_page() -> None:
    page = evaluation_page(bare())
    assert problems(page) == []
    assert "Answers before and after" not in page


def test_a_drawing_has_the_pages_colours_and_none_of_its_own() -> None:
    chart = bars("key", "title", {"row": {"weights": Value(0.5, 0.25, 0.75)}}, {"weights": "weights"})
    assert "var(--weights)" in chart
    assert not re.search(r"#[0-9a-f]{6}\b", chart)
    assert len({colour(name) for name in COLOURS}) == len(COLOURS)


def test_the_style_defines_each_colour_for_light_and_for_dark(page: str) -> None:
    style = page.partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for name in COLOURS:
        assert f"--{name}: #" in light
        assert f"--{name}: #" in dark.partition("* {")[0]


def test_the_charts_of_many_relations_show_those_with_the_most_edits() -> None:
    relations = {f"r{number}": (measure("reliability", "weights", 0.5, edits=number),) for number in range(1, 24)}
    page = evaluation_page(bare(relations=relations))
    shown = re.search(r"<desc id=\"evaluation-relations-reliability-text\">([^<]*)<", page)
    assert shown is not None
    assert "r23, weights" in shown[1]
    assert "r4, weights" in shown[1]
    assert "r3, weights" not in shown[1]
    assert "the tables show 3 more" in page
