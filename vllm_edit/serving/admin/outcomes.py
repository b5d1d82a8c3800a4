"""`/v1/edits/outcomes`: outcomes of answers, reported by the tenant that received them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from vllm_edit.serving.admin.authorization import OUTCOMES
from vllm_edit.serving.admin.dependencies import Dependencies, caller_of
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.serving.outcomes import Outcome, record


class Recorded(BaseModel):
    """`recorded` is False if the same outcome was reported before; it counts once."""

    recorded: bool


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(route_class=ValidatedRoute)

    @router.post(OUTCOMES)
    async def report(outcome: Outcome, request: Request) -> Recorded:
        """Report an outcome with a key of the answer's tenant, once for each metric and answer."""
        service = dependencies.service
        tenant = caller_of(request).tenant
        new = await record(
            service.answers,
            dependencies.registry,
            dependencies.outcomes,
            tenant,
            outcome.id,
            outcome.metric,
            outcome.value,
        )
        service.metrics.outcomes.labels("recorded" if new else "repeated").inc()
        return Recorded(recorded=new)

    return router
