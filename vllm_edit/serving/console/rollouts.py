"""Pages of the rollouts: the list, and one rollout with its arms, their intervals, and the forms that move it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form as FromForm
from fastapi import Request, Response
from fastapi.routing import APIRouter

from vllm_edit.serving.admin.dependencies import Because, Dependencies
from vllm_edit.serving.admin.rollouts import Ramp, Step, ramp_rollout, step_rollout
from vllm_edit.serving.console.display import followed, percent
from vllm_edit.serving.console.form import Form
from vllm_edit.serving.console.intervals import draw
from vllm_edit.serving.console.pages import Pages
from vllm_edit.serving.console.route import console_router

_DONE = {
    "pause": "is paused: every user stays on their arm",
    "kill": "is killed: everyone is served control",
    "promote": "is promoted: everyone is served treatment",
}


class RampForm(Ramp, Form):
    """The percentage of users who take part."""


class StepForm(Because, Form):
    """A pause, a kill or a promotion."""


def routes(dependencies: Dependencies, pages: Pages) -> APIRouter:
    router = console_router(pages)

    @router.get("/rollouts")
    async def rollouts(request: Request) -> Response:
        """All rollouts, the newest first."""
        entries = await dependencies.read(dependencies.registry.rollouts.newest_first)
        return pages.show(request, "rollouts.html", entries=entries)

    @router.get("/rollouts/{name}")
    async def rollout(request: Request, name: str, live: bool = True) -> Response:
        """The arms' traffic and comparisons. The page renews them while `live`."""
        report = await dependencies.read(dependencies.registry.rollouts.report, name)
        drawn = [draw(comparison) for comparison in report.comparisons]
        live = live and report.rollout.open
        return pages.show(request, "rollout.html", rollout=report.rollout, report=report, drawn=drawn, live=live)

    @router.post("/rollouts/{name}/ramp")
    async def ramp(name: str, asked: Annotated[RampForm, FromForm()], request: Request) -> Response:
        moved = await ramp_rollout(dependencies, name, asked, by=pages.by(request))
        notice = f"{name} is ramped to {percent(moved.share)} of the users: {followed(moved.acknowledged)}"
        return pages.go(request, f"rollouts/{name}", notice)

    @router.get("/rollouts/{name}/{verb}")
    async def confirm(request: Request, name: str, verb: Step) -> Response:
        """Ask before a step that cannot be taken back."""
        rollout = await dependencies.read(dependencies.registry.rollouts.find, name)
        return pages.show(request, "step.html", rollout=rollout, verb=verb)

    @router.post("/rollouts/{name}/{verb}")
    async def step(name: str, verb: Step, asked: Annotated[StepForm, FromForm()], request: Request) -> Response:
        moved = await step_rollout(dependencies, name, verb, asked, by=pages.by(request))
        return pages.go(request, f"rollouts/{name}", f"{name} {_DONE[verb]}. {followed(moved.acknowledged)}")

    return router
