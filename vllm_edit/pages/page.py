"""A page: a template, filled with values, as one HTML file that needs no other file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from vllm_edit.errors import EditError
from vllm_edit.files import check_folder_of
from vllm_edit.pictures import check_library
from vllm_edit.text.printable import printable

SUFFIXES = (".html", ".htm")
"""Suffixes of pages. Another suffix is refused, so that no patch or data set is replaced by mistake."""


def render(template: str, **values: object) -> str:
    """Fill a template of `templates/`. Every value is escaped, and control characters are shown as escapes.

    Args:
        template: the name of the template, without its suffix.
        values: the template's variables. Only `Markup` is inserted as it is.
    """
    environment = Environment(
        loader=PackageLoader("vllm_edit.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
    )
    return environment.get_template(f"{template}.html.j2").render(values)


def check_page(path: Path) -> None:
    """Raise before anything is computed if a page could not be written afterwards.

    Raises:
        EditError: another suffix than those of a page, a missing folder, a path that is a folder, or no matplotlib.
    """
    check_folder_of(path)
    if path.is_dir():
        raise EditError(f"expected a file to write the page into, got the folder {path}: name a file, as page.html")
    if path.suffix.lower() not in SUFFIXES:
        raise EditError(f"expected a page named *{' or *'.join(SUFFIXES)}; got {path}")
    check_library("a page")
