"""A matplotlib figure as SVG inside a page: in the page's colours and font, with a text alternative.

The SVG has no colour of its own. A drawing uses the colours of `colour`, and they become CSS variables, which the page
defines for light and for dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from vllm_edit.text.printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = tuple(f"series-{number}" for number in range(1, 7))
COLOURS = ("ink", "grid", "base", "weights", "ike", "control", "treatment", *SERIES)
"""The CSS variables that a drawing may use."""

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#0101([0-9a-f]{2})")
_FONT = re.compile(r"font(?:-family)?: [^;]*'[^;]*;?")
_LINK = "{http://www.w3.org/1999/xlink}href"


def colour(name: str) -> str:
    """The colour that becomes the CSS variable `--name`."""
    return f"#0101{COLOURS.index(name):02x}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in CSS pixels, to be drawn on inside the block.

    Text is drawn as it is: a dollar sign is no formula.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no global state, no window

    ink, grid = colour("ink"), colour("grid")
    style: Any = {
        "svg.hashsalt": "vllm-edit",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 12,
        "axes.titlesize": 13,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width / 72, height / 72), facecolor="none")


def as_svg(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Convert a figure to SVG for a page.

    Args:
        figure: a figure that was made by `drawing`.
        key: a name that no other drawing of the page has, of letters, digits and hyphens.
        title: the name of the drawing for readers who do not see it.
        description: the values that it shows, as text.
    """
    written = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text with a font that has the character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows the elements of SVG without a namespace
        _adapt(element, key)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-text",
    }
    for place, (name, text) in enumerate((("title", title), ("desc", description))):
        labelled = ElementTree.Element(name, id=f"{key}-{name.replace('desc', 'text')}")
        labelled.text = printable(text)
        root.insert(place, labelled)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, key: str) -> None:
    """Give the element unique ids, and the page's colours and font, in place."""
    attributes = element.attrib
    if target := attributes.pop(_LINK, None):
        attributes["href"] = f"#{key}-{target.removeprefix('#')}"
    if element.tag == "g":
        attributes.pop("id", None)  # nothing refers to a group
    if "id" in attributes:
        attributes["id"] = f"{key}-{attributes['id']}"
    if "clip-path" in attributes:
        attributes["clip-path"] = _REFERENCE.sub(rf"url(#{key}-\1)", attributes["clip-path"])
    if "style" in attributes:
        plain = _FONT.sub("", attributes["style"])
        attributes["style"] = _COLOUR.sub(lambda found: f"var(--{COLOURS[int(found[1], 16)]})", plain).strip()
