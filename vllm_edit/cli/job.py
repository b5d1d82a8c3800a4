"""`vllm-edit job`: patches that were submitted to a server, and are compiled by workers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import MOST, JsonOption, StoreOption, WhoOption, WhyOption
from vllm_edit.cli.output import print_fields, print_json, print_line, print_table, when

if TYPE_CHECKING:
    from vllm_edit.registry.jobs import Job

app = group("Patches that were submitted to a server, and are compiled by workers.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as in `list`.")]


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant's jobs.")] = None,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only queued, running, done, failed or cancelled jobs.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of jobs.")] = 50,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the last jobs, the newest first."""
    from vllm_edit.registry.jobs import STATES
    from vllm_edit.store.store import Store

    known = next((known for known in STATES if known == state), None)
    if state is not None and known is None:
        raise typer.BadParameter(f"expected one of {', '.join(STATES)}, got {state!r}", param_hint="--state")
    jobs = Store.open(store).registry.jobs.newest(tenant, known, limit)
    if json:
        print_json(jobs)
        return
    rows = [
        (job.id, job.patch, job.state, job.tenant, when(job.created_at), job.by, _progress(job) or _end(job))
        for job in jobs
    ]
    print_table(("ID", "PATCH", "STATE", "TENANT", "SUBMITTED", "BY", "RESULT"), rows)


@app.command()
def show(id: IdArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show a job: who submitted it, its progress, and its gate or the reason why it failed."""
    from vllm_edit.store.store import Store

    job = Store.open(store).registry.jobs.find(id)
    if json:
        print_json(job)
        return
    result = job.result or {}
    failures = result.get("failures")
    print_fields(
        {
            "job": job.id,
            "patch": job.patch,
            "state": job.state,
            "tenant": job.tenant,
            "method": job.method,
            "settings": ", ".join(f"{name}={value}" for name, value in job.settings.items()),
            "submitted": f"{when(job.created_at)} by {job.by}",
            "started": when(job.started_at) if job.started_at else None,
            "ended": when(job.ended_at) if job.ended_at else None,
            "attempts": job.attempts or None,
            "worker": job.worker,
            "progress": _progress(job),
            "compiled": job.name,
            "gate": result.get("status"),
            "failures": "; ".join(map(str, failures)) if isinstance(failures, list) else None,
            "not judged": result.get("not_judged"),
            "error": job.error,
        }
    )


@app.command()
def cancel(
    id: IdArgument, why: WhyOption = "", who: WhoOption = "", store: StoreOption = None, json: JsonOption = False
) -> None:
    """Cancel a job. Its worker stops at its next step; a patch that it had saved stays, unpublished."""
    from vllm_edit.store.store import Store

    job = Store.open(store).registry.jobs.cancel(id, by=who, why=why)
    print_json(asdict(job)) if json else print_line(f"job {job.id} of patch {job.patch} is cancelled")


def _progress(job: Job) -> str:
    if job.state != "running" or not job.step:
        return ""
    return f"{job.step}, {job.step_done:,} of {job.step_total:,}"


def _end(job: Job) -> str:
    return f"{job.name} {(job.result or {}).get('status')}" if job.state == "done" else job.error
