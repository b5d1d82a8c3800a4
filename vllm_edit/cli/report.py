"""`vllm-edit report`: everything that is recorded in a store, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, StoreOption
from vllm_edit.cli.output import print_json, print_line
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from vllm_edit.evaluation.report import Report


def report(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML page to write.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE.json]…", help="Also show reports of `eval --json`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum patches, and rollouts, with a section.")] = 20,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write one HTML page with the gates, evaluations and rollouts of a store.

    The page has a table of contents, compares the patches, and shows the last report of each. It needs no other file.
    """
    from vllm_edit.pages.page import check_page
    from vllm_edit.pages.report_pages import store_page
    from vllm_edit.pages.store_part import store_part
    from vllm_edit.store.store import Store

    check_page(out)
    part = store_part(Store.open(store), {str(path): _read(path) for path in files or ()}, limit)
    out.write_text(store_page(part), encoding="utf-8")
    shown = {"page": str(out), "patches": len(part.patches), "files": len(part.files), "rollouts": len(part.rollouts)}
    print_json(shown) if json else print_line(f"wrote {out}: {part.summary[0]}")


def _read(path: Path) -> Report:
    from json import loads

    from vllm_edit.errors import Corrupt
    from vllm_edit.evaluation.report import Report

    try:
        record = loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise EditError(f"{path}: expected a report of `vllm-edit eval --json`, got {type(record).__name__}")
        return Report.of(record)
    except Corrupt as error:
        raise EditError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise EditError(f"{path}: expected a report of `vllm-edit eval --json`, which is JSON: {error}") from error
