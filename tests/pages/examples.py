"""A report of two patches with all parts, and a parsed page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

from vllm_edit.evaluation.report import Answer, Cost, Drift, Measure, Mode, Report

_VOID = ("meta", "link", "br", "img", "input", "hr")


def measure(metric: str, mode: Mode, value: float, edits: int = 4) -> Measure:
    return Measure(
        mode=mode, metric=metric, protocol="generation", value=value, low=max(0.0, value - 0.125),
        high=min(1.0, value + 0.0625), interval="wilson", n=2 * edits, edits=edits,
    )  # fmt: skip


def answer(metric: str, weights: str, right: bool, patch: str = "acme@1", prompt: str = "The CEO is") -> Answer:
    return Answer(
        patch=patch, edit=0, subject="Acme", relation="ceo", metric=metric, tag="", prompt=prompt, chat=False,
        expected="Ann", texts={"base": "Marjorie", "weights": weights}, right={"base": False, "weights": right},
    )  # fmt: skip


def report(**changes: object) -> Report:
    shares: dict[Mode, tuple[float, float]] = {
        "base": (0.0, 0.125),
        "weights": (0.9375, 0.8125),
        "ike": (0.6875, 0.5625),
    }
    measures = (
        *(measure("reliability", mode, share) for mode, (share, _) in shares.items()),
        *(measure("paraphrase", mode, share) for mode, (_, share) in shares.items()),
        measure("locality", "weights", 0.9875),
    )
    made = Report(
        patches=("acme@1", "globex@2"),
        engine="hf float32 cpu",
        modes=("base", "weights", "ike"),
        edits=4,
        split="gate",
        max_tokens=16,
        measures=measures,
        relations={name: measures for name in ("ceo", "city")},
        sizes={size: measures for size in (1, 3)},
        methods=("rome",),
        costs=(
            Cost(mode="base", answers=8, tokens_added=0, seconds_per_answer=0.1, latency_s=0.1625, latency_n=4),
            Cost(mode="ike", answers=8, tokens_added=431, seconds_per_answer=0.2, latency_s=0.2125, latency_n=4),
        ),
        drift=Drift(texts=2, tokens=99, base=8.0, edited=8.5, value=0.0625),
        answers=(
            answer("reliability", "Ann\nBob", True),
            answer("paraphrase", "Carl", False),
            answer("locality", "Marjorie", True),
            answer("locality", "Ann", False),
        ),
    )
    return made.model_copy(update=changes)


@dataclass
class Parsed(HTMLParser):
    """A page as a strict reader sees it: every element is closed in order.

    Attributes:
        tags: number of each element.
        attributes: all attributes, (element, name, value).
        texts: all texts but those of the style sheet.
    """

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, page: str) -> Parsed:
        parsed = cls()
        HTMLParser.__init__(parsed)
        parsed.feed(page)
        parsed.close()
        return parsed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def values(self, name: str) -> list[str]:
        return [value for _, given, value in self.attributes if given == name]


def problems(page: str) -> list[str]:
    """What keeps a page from being one valid, self-contained and accessible file."""
    parsed = Parsed.of(page)
    ids = parsed.values("id")
    links = [value for name in ("src", "href", "xlink:href", "action", "data") for value in parsed.values(name)]
    labels = [label for value in parsed.values("aria-labelledby") for label in value.split()]
    found = [f"{tag} is closed out of order" for tag in parsed.wrong] + [f"{tag} is not closed" for tag in parsed.open]
    found += [f"the id {name} is given {count} times" for name, count in Counter(ids).items() if count > 1]
    found += [f"a link leaves the page: {link}" for link in links if not link.startswith("#")]
    found += [f"a link has no target: {link}" for link in links if link.startswith("#") and link[1:] not in ids]
    found += [f"a label has no target: {label}" for label in labels if label not in ids]
    found += [f"a handler: {name}" for _, name, _ in parsed.attributes if name.startswith("on")]
    styles = [*parsed.values("style"), page.partition("<style>")[2].partition("</style>")[0]]
    found += [f"a style loads a file: {style}" for style in styles if "@import" in style or "url(http" in style]
    for tag in ("script", "link", "img", "iframe", "object", "embed", "metadata"):
        found += [f"the page has {tag}"] * parsed.tags[tag]
    roles = parsed.values("role").count("img")
    if not parsed.tags["svg"] == roles == parsed.tags["desc"]:
        found.append(f"{parsed.tags['svg']} drawings, {roles} with a role, {parsed.tags['desc']} with a description")
    return found
