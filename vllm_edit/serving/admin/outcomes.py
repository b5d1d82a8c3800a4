"""`/v1/edits/outcomes`: outcomes of answers, reported by the tenant that received them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.outcomes import UnknownAnswer
from vllm_edit.serving.admin.authorization import OUTCOMES
from vllm_edit.serving.admin.dependencies import Dependencies, caller_of
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.serving.answer_log import AnswerLog
from vllm_edit.serving.threads import Threads

_TRIES = 3  # one log interval apart; two intervals leave another server time to write its log


class Outcome(BaseModel):
    """The outcome of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64, description="the answer's X-VLLM-Edit-Id")
    metric: str = Field(min_length=1, max_length=63, description="a metric of the rollout")
    value: float = Field(allow_inf_nan=False, description="within the metric's range; true and false are 1 and 0")


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


async def record(
    log: AnswerLog, registry: Registry, threads: Threads, tenant: str | None, id: str, metric: str, value: float
) -> bool:
    """Log an outcome of the tenant's answer; `tenant` is None on a server without keys. False if it was logged before.

    A client may report at once, so this server first writes its log. Another server may have answered, so an unknown id
    is looked up again after that server has had time to write its log.

    Raises:
        UnknownAnswer: no rollout decided such an answer of this tenant.
        NotFound: the rollout has no such metric.
        EditError: the value is out of range, another was logged before, or the registry cannot be used.
    """
    tries = 0
    while True:
        await log.flush()
        try:
            return await threads.run(registry.rollouts.record, tenant, id, metric, value)
        except UnknownAnswer:
            tries += 1
            if tries == _TRIES:
                raise
        await asyncio.sleep(log.every_seconds)
