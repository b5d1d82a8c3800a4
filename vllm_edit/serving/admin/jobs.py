"""`/v1/edits/patches` and `/v1/edits/jobs`: submit a patch to be compiled by a worker, and follow its job.

A server only writes and reads jobs; it never compiles. An author sees the jobs of its own tenant, an administrator all.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.patch import Patch
from vllm_edit.registry.job_request import AUTO, JobRequest
from vllm_edit.registry.jobs import Job, State
from vllm_edit.serving.admin.authorization import JOBS, PATCHES
from vllm_edit.serving.admin.dependencies import Because, Dependencies, Who, Why, caller_of, who
from vllm_edit.serving.admin.job_events import JobEvents
from vllm_edit.serving.admin.submitted import JSON_TYPE, YAML_TYPES, read_patch, read_settings
from vllm_edit.serving.admin.validation import ValidatedRoute
from vllm_edit.serving.caller import Caller
from vllm_edit.serving.threads import Threads

Method = Annotated[str, Query(max_length=32, description="rome, memit, …; auto: the store's")]
Setting = Annotated[str, Query(max_length=2_000)]
Settings = Annotated[
    tuple[Setting, ...], Query(alias="set", max_length=64, description="KEY=VALUE, as `compile --set`")
]
Author = Annotated[Who, Query(alias="who")]
Limit = Annotated[int, Query(ge=1, le=1_000)]


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(route_class=ValidatedRoute)
    reading, streams = Threads(1), JobEvents()  # one at a time: to read YAML takes the interpreter's time

    @router.post(PATCHES, status_code=202, openapi_extra={"requestBody": _described_body()})
    async def submit(
        request: Request,
        method: Method = AUTO,
        settings: Settings = (),
        by: Author = "",
        why: Why = "",
    ) -> Job:
        """Queue a patch to be compiled and judged by a worker. Nothing is published.

        The body is the patch, in JSON or YAML. An equal patch with equal settings that is queued or running is the same
        job.
        """
        caller = caller_of(request)
        content_type = request.headers.get("content-type", "")
        patch = await reading.run(read_patch, await request.body(), content_type)
        chosen = await reading.run(read_settings, settings)
        job = await dependencies.read(
            dependencies.registry.jobs.submit,
            JobRequest(patch, method, chosen),
            tenant=caller.tenant,
            author=caller.api_key_id,
            by=who(request, by),
            why=why,
        )
        return _seen(job, caller)

    @router.get(JOBS)
    async def list_jobs(request: Request, state: State | None = None, limit: Limit = 50) -> list[Job]:
        """The last jobs, the newest first: an author's tenant's, or all for an administrator."""
        caller = caller_of(request)
        found = await dependencies.read(dependencies.registry.jobs.newest, caller.tenant, state, limit)
        return [_seen(job, caller) for job in found]

    @router.get(f"{JOBS}/{{id}}")
    async def show(id: str, request: Request) -> Job:
        """A job: its state and progress, and at its end the gate's report, or the reason why it failed."""
        caller = caller_of(request)
        return _seen(await dependencies.read(dependencies.registry.jobs.find, id, caller.tenant), caller)

    @router.get(f"{JOBS}/{{id}}/events", response_class=StreamingResponse)
    async def events(id: str, request: Request) -> StreamingResponse:
        """The job as server-sent events: one at once, one at each change, and the last one at its end."""
        caller = caller_of(request)

        async def read() -> Job:
            return _seen(await dependencies.read(dependencies.registry.jobs.find, id, caller.tenant), caller)

        def goes_on() -> bool:
            key = dependencies.service.watcher.current.snapshot.api_keys.get(caller.api_key_id or "")
            stopping = getattr(getattr(request.app.state, "server", None), "should_exit", False)
            return key is not None and key.counts(datetime.now(UTC)) and not stopping

        return streams.stream(await read(), read, goes_on, caller.api_key_id or "")

    @router.post(f"{JOBS}/{{id}}/cancel")
    async def cancel(id: str, request: Request, asked: Because | None = None) -> Job:
        """Cancel a job. Its worker stops at its next step; a patch that it had saved stays, unpublished."""
        caller, asked = caller_of(request), asked or Because()
        job = await dependencies.read(
            dependencies.registry.jobs.cancel, id, caller.tenant, why=asked.why, by=who(request, asked.who)
        )
        return _seen(job, caller)

    return router


def _seen(job: Job, caller: Caller) -> Job:
    """The job as the caller sees it: the worker's host is for administrators."""
    return job if caller.tenant is None else replace(job, worker=None)


def _described_body() -> JSONObject:
    """The body for OpenAPI: the schema of a patch, with its definitions written out."""
    schema = Patch.model_json_schema()
    whole = _inlined({key: value for key, value in schema.items() if key != "$defs"}, schema["$defs"])
    return {"required": True, "content": {media_type: {"schema": whole} for media_type in (JSON_TYPE, YAML_TYPES[0])}}


def _inlined(schema: JSONValue, definitions: dict[str, JSONValue]) -> JSONValue:
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
