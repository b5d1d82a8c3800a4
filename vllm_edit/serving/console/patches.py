"""Pages of the compiled patches: the list, and one patch with its edits, records and differences to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.routing import APIRouter

from vllm_edit.artefacts.edit_changes import compare_edits
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.serving.admin.dependencies import Dependencies
from vllm_edit.serving.admin.edits import PatchInfo, patch_info
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.records import shown_records
from vllm_edit.serving.console.route import console_router
from vllm_edit.serving.model_field import Catalogue

_ROWS = 100
_LONGEST = 200  # characters of a query

Page = Annotated[int, Query(ge=1, le=100_000)]
Reference = Annotated[str, Query(max_length=_LONGEST)]


@dataclass(frozen=True)
class PatchRow:
    """A patch of the list. tenants: those that are served it. arms: `spring (treatment)`, of rollouts that decide."""

    entry: PatchEntry
    tenants: tuple[str, ...]
    arms: tuple[str, ...]
    resident: bool


@dataclass(frozen=True)
class Pager:
    """A page of a long list. page: from 1. pages: their number."""

    page: int
    pages: int
    first: int
    last: int
    count: int

    @classmethod
    def of(cls, count: int, page: int) -> Pager:
        pages = max(1, -(-count // _ROWS))
        page = min(page, pages)
        return cls(page, pages, (page - 1) * _ROWS, min(page * _ROWS, count), count)


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("")
    async def first_page(request: Request) -> Response:
        """The console's first page."""
        return pages.go(request, "patches")

    @router.get("/patches")
    async def patches(request: Request, search: Reference = "", page: Page = 1) -> Response:
        """The compiled patches, the newest first."""
        catalogue, resident = dependencies.service.watcher.current, dependencies.service.residency.names
        found = [entry for entry in catalogue.snapshot.patches if search.strip().lower() in entry.name]
        pager = Pager.of(len(found), page)
        rows = _rows(found[pager.first : pager.last], catalogue, resident)
        return pages.show(request, "patches.html", rows=rows, pager=pager, search=search)

    @router.get("/patches/{name}")
    async def patch(request: Request, name: str, against: Reference = "", page: Page = 1) -> Response:
        """A patch, by its name or the beginning of its digest; with `against`, its differences to another."""
        found = await dependencies.read(patch_info, dependencies, name)
        other: PatchInfo | None = None
        if against:
            other = await dependencies.read(patch_info, dependencies, against)
        catalogue, resident = dependencies.service.watcher.current, dependencies.service.residency.names
        [row] = _rows([found.entry], catalogue, resident)
        pager = Pager.of(len(found.manifest.edits), page)
        return pages.show(
            request,
            "patch.html",
            row=row,
            manifest=found.manifest,
            edits=list(enumerate(found.manifest.edits))[pager.first : pager.last],
            pager=pager,
            records=shown_records(found.records),
            names=catalogue.newest_first[:_ROWS],
            other=other,
            changes=None if other is None else compare_edits(other.manifest.edits, found.manifest.edits),
        )

    return router


def _rows(entries: Iterable[PatchEntry], catalogue: Catalogue, resident: Iterable[str]) -> list[PatchRow]:
    tenants: dict[str, list[str]] = {}
    for tenant, arm in sorted(catalogue.served(datetime.now(UTC)).items()):
        tenants.setdefault(arm.name or "", []).append(tenant)
    arms = _arms(catalogue)
    in_engine = set(resident)
    return [
        PatchRow(
            entry,
            tuple(tenants.get(entry.name, ())),
            tuple(arms.get(entry.name, ())),
            entry.name in in_engine,
        )
        for entry in entries
    ]


def _arms(catalogue: Catalogue) -> Mapping[str, list[str]]:
    """Patch → the arms of running rollouts that serve it."""
    found: dict[str, list[str]] = {}
    for rollout in catalogue.snapshot.all_governing:
        for side, arm in (("control", rollout.control), ("treatment", rollout.treatment)):
            if rollout.running and arm.name is not None:
                found.setdefault(arm.name, []).append(f"{rollout.name} ({side})")
    return found
