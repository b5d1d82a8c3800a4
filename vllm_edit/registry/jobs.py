"""The queue of patches to compile: servers add jobs, workers work on them, one worker on a job at a time.

A worker claims the oldest job with a lease and extends it with heartbeats. A job whose lease has ended is claimed
again, by any worker, at most `MOST_ATTEMPTS` times. Every write of a worker names its claim, so a worker that lost its
job (it was cancelled, or the worker was silent for too long) writes nothing more. The database's own clock measures
leases.

Submitting, starting, ending and cancelling are audited changes. Heartbeats with the progress are a log.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import JsonValue
from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, update

from vllm_edit.errors import Corrupt, EditError, NotFound, TooMany
from vllm_edit.json_value import JSONObject
from vllm_edit.names import shown
from vllm_edit.registry import tables, tenants
from vllm_edit.registry.database import Database
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.registry.tables import jobs
from vllm_edit.registry.transactions import Change, Changes

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
OPEN: tuple[State, ...] = ("queued", "running")
"""States of a job that has not ended."""

LEASE_S = 30.0
LONGEST_LEASE_S = 3600.0
"""No lease ends later than this, unless the database's clock was set back: the job is then free."""
MOST_ATTEMPTS = 3
"""Number of times that a job is started: its worker may have died because of it."""
MOST_OPEN = 16
"""Maximum number of one author's jobs that have not ended."""

_STEP_LENGTH = 64
_ERROR_LENGTH = 8_000
_ID = "job-"


class JobLost(EditError):
    """The job was cancelled, or another worker has claimed it: its former worker must stop."""


@dataclass(frozen=True)
class Job:
    """A patch to compile.

    Attributes:
        tenant: the author's tenant; None for an administrator's job.
        by: who submitted it.
        state: `queued`, `running`, `done` (compiled, and judged by its gate), `failed` or `cancelled`.
        attempts: how often a worker has started it.
        worker: the last worker, as host:pid.
        step, step_done, step_total: the last reported progress: the step's name, its completed and its total units.
        name: the compiled patch, once it is about to be saved.
        result: name, status and report of the compiled patch, and its gate; None until the job is done.
        error: why the job failed, in one line.
    """

    id: str
    patch: str
    tenant: str | None
    by: str
    state: State
    method: str
    settings: dict[str, JsonValue]
    digest: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempts: int
    worker: str | None
    step: str
    step_done: int
    step_total: int
    name: str | None
    result: dict[str, JsonValue] | None
    error: str

    @property
    def open(self) -> bool:
        """True if the job has not ended."""
        return self.state in OPEN


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a job, valid while its heartbeats extend the lease.

    Attributes:
        job: the job as claimed.
        request: what to compile.
        holder: identifies the worker's process; `job.worker` is the part for display.
        lease_s: seconds from a heartbeat to the end of the lease.
    """

    job: Job
    request: JobRequest
    holder: str
    lease_s: float


class Jobs:
    """A registry's jobs."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def submit(
        self, request: JobRequest, *, tenant: str | None = None, author: str | None = None, by: str = "", why: str = ""
    ) -> Job:
        """Queue a patch, and return its job; an equal request of the same tenant that is still open is that job.

        Args:
            request: what to compile.
            tenant: the author's tenant; None for an administrator.
            author: the id of the author's API key; None for no limit on the number of open jobs.
            by: who submits it.
            why: reason for the audit.

        Raises:
            TooMany: the author has `MOST_OPEN` open jobs.
            EditError: the request is invalid, or a patch of this name exists that the tenant did not submit.
        """
        request.check()
        with self._database.read() as connection:  # a change takes the lock of all writers, and every server reads it
            if (known := _same(connection, request, tenant)) is not None:
                return known
            _check_room(connection, author)
        with self._changes.make("job.submit", tenant=tenant, by=by, why=why) as change:
            connection = change.connection
            if tenant is not None:
                tenants.require(connection, tenant)
            if (known := _same(connection, request, tenant)) is not None:
                return known
            _check_room(connection, author)
            if tenant is not None:
                _check_name_free(connection, request.patch.name, tenant)
            id = f"{_ID}{secrets.token_hex(16)}"
            connection.execute(
                insert(jobs).values(
                    id=id,
                    patch=request.patch.name,
                    tenant=tenant,
                    author=author,
                    by=change.who,
                    state="queued",
                    method=request.method,
                    settings=json.dumps(dict(request.settings)),
                    digest=request.digest,
                    request=request.dump(),
                    created_at=datetime.now(UTC),
                    attempts=0,
                    step="",
                    step_done=0,
                    step_total=0,
                    error="",
                )
            )
            job = _find(connection, id)
            change.record(None, _audited(job) | {"digest": job.digest, "edits": len(request.patch.edits)})
            return job

    def find(self, id: str, tenant: str | None = None) -> Job:
        """Return a job; with `tenant`, only if it is that tenant's.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.read() as connection:
            return _find(connection, id, tenant)

    def newest(self, tenant: str | None = None, state: State | None = None, limit: int = 50) -> list[Job]:
        """Return the last jobs of all or of one tenant, in one state or in any, the newest first."""
        wanted = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        if state is not None:
            wanted = wanted.where(jobs.c.state == state)
        with self._database.read() as connection:
            if tenant is not None:
                tenants.require(connection, tenant)
                wanted = wanted.where(jobs.c.tenant == tenant)
            return [_job(row) for row in connection.execute(wanted)]

    def cancel(self, id: str, tenant: str | None = None, *, by: str = "", why: str = "") -> Job:
        """Cancel a job that has not ended. Its worker stops at its next step; a patch that it had saved stays.

        Args:
            id: the job's id.
            tenant: if given, the job must be that tenant's.
            by: who cancels it.
            why: reason for the audit.

        Raises:
            NotFound: there is no such job.
            EditError: the job has ended.
        """
        of = self.find(id, tenant).tenant
        with self._changes.make("job.cancel", tenant=of, by=by, why=why) as change:
            old = _find(change.connection, id, tenant)
            if old.state == "cancelled":
                return old
            if not old.open:
                raise EditError(f"job {id} has ended already ({old.state}); there is nothing to cancel")
            return _end(change, old, "cancelled", jobs.c.id == id)

    def claim(self, holder: str, lease_s: float = LEASE_S) -> Claim | None:
        """Claim the oldest job that no worker works on; None if there is none.

        A job that was started `MOST_ATTEMPTS` times without an end fails instead.

        Args:
            holder: identifies the worker's process, `host:pid:…`.
            lease_s: seconds until another worker may claim the job, without a heartbeat; at most `LONGEST_LEASE_S`.

        Raises:
            EditError: the lease is too long.
        """
        if lease_s > LONGEST_LEASE_S:
            raise EditError(f"expected a lease of at most {LONGEST_LEASE_S:g} seconds, got {lease_s:g}")
        while (free := self._oldest_free()) is not None:
            job, text = free
            if job.attempts >= MOST_ATTEMPTS:
                times = f"{job.attempts} times; the last was {job.worker}"
                self._give_up(job, f"its worker died or could not go on, {times}")
                continue
            try:
                request = JobRequest.load(text)
            except Corrupt as error:
                self._give_up(job, str(error))
                continue
            if (claim := self._start(job, request, holder, lease_s)) is not None:
                return claim
        return None

    def beat(self, claim: Claim, step: str = "", done: int = 0, total: int = 0) -> bool:
        """Extend the lease and log the progress. False if the claim is lost."""
        progress = {"step": step[:_STEP_LENGTH], "step_done": done, "step_total": total}
        lease = self._database.clock + claim.lease_s
        with self._database.log(following=True) as connection:
            return bool(connection.execute(update(jobs).where(_held(claim)).values(lease=lease, **progress)).rowcount)

    def note_name(self, claim: Claim, name: str) -> None:
        """Note the compiled patch's name before it is saved: a later attempt continues with the saved patch.

        Raises:
            JobLost: the claim is lost.
        """
        with self._database.log() as connection:
            if not connection.execute(update(jobs).where(_held(claim)).values(name=name)).rowcount:
                raise _lost(claim)

    def finish(self, claim: Claim, name: str, result: JSONObject) -> Job:
        """End a job that was compiled and judged.

        Raises:
            JobLost: the claim is lost.
        """
        return self._conclude(claim, "job.finish", "done", name=name, result=json.dumps(result))

    def fail(self, claim: Claim, error: str) -> Job:
        """End a job that cannot be compiled, with the reason.

        Raises:
            JobLost: the claim is lost.
        """
        return self._conclude(claim, "job.fail", "failed", error=_storable(error))

    def release(self, claim: Claim, *, counts: bool) -> None:
        """Return a job to the queue, at its former place.

        Args:
            claim: the claim; nothing happens if it is lost.
            counts: whether the attempt counts: not if its worker was only stopped.
        """
        tenant, by = claim.job.tenant, f"worker {claim.job.worker}"
        with self._changes.make("job.release", tenant=tenant, by=by) as change:
            attempts = claim.job.attempts if counts else claim.job.attempts - 1
            freed = {"state": "queued", "worker": None, "lease": None, "attempts": attempts}
            if change.connection.execute(update(jobs).where(_held(claim)).values(**freed)).rowcount:
                change.record(_audited(claim.job), _audited(_find(change.connection, claim.job.id)))

    def _conclude(self, claim: Claim, what: str, state: State, **ended: object) -> Job:
        with self._changes.make(what, tenant=claim.job.tenant, by=f"worker {claim.job.worker}") as change:
            return _end(change, _find(change.connection, claim.job.id), state, _held(claim), **ended)

    @property
    def _free(self) -> ColumnElement[bool]:
        """True for a job that is queued, or whose worker is silent."""
        clock, lease = self._database.clock, jobs.c.lease
        silent = or_(lease < clock, lease > clock + LONGEST_LEASE_S + 1)  # the last: the clock was set back
        return or_(jobs.c.state == "queued", and_(jobs.c.state == "running", silent))

    def _oldest_free(self) -> tuple[Job, str] | None:
        """The oldest free job with its request. A read takes no lock, so idle workers disturb nobody."""
        oldest = select(jobs).where(self._free).order_by(jobs.c.created_at, jobs.c.id).limit(1)
        with self._database.read() as connection:
            row = connection.execute(oldest).first()
            return None if row is None else (_job(row), row.request)

    def _start(self, job: Job, request: JobRequest, holder: str, lease_s: float) -> Claim | None:
        """Claim a free job; None if another worker was faster."""
        claimed = {"state": "running", "worker": holder, "lease": self._database.clock + lease_s}
        progress = {"step": "", "step_done": 0, "step_total": 0}
        times = {"attempts": job.attempts + 1, "started_at": datetime.now(UTC)}
        started = update(jobs).where(jobs.c.id == job.id, self._free).values(**claimed, **progress, **times)
        with self._changes.make("job.start", tenant=job.tenant, by=f"worker {_shown(holder)}") as change:
            if not change.connection.execute(started).rowcount:
                return None
            new = _find(change.connection, job.id)
            change.record(_audited(job), _audited(new))
            return Claim(new, request, holder, lease_s)

    def _give_up(self, job: Job, error: str) -> None:
        """End a free job that no worker can do."""
        with suppress(JobLost), self._changes.make("job.fail", tenant=job.tenant) as change:
            _end(change, job, "failed", and_(jobs.c.id == job.id, self._free), error=_storable(error))


def _end(change: Change, old: Job, state: State, where: ColumnElement[bool], **ended: object) -> Job:
    """End the job, and record it for the audit. Raises `JobLost` if no row matches `where`."""
    values = {"state": state, "ended_at": datetime.now(UTC), "lease": None, "request": None, **ended}
    if not change.connection.execute(update(jobs).where(where).values(**values)).rowcount:
        raise JobLost(f"job {old.id} is {old.state} and no longer this worker's")
    new = _find(change.connection, old.id)
    change.record(_audited(old), _audited(new))
    return new


def _held(claim: Claim) -> ColumnElement[bool]:
    """True for the job's row while the claim is valid."""
    mine = and_(jobs.c.worker == claim.holder, jobs.c.attempts == claim.job.attempts)
    return and_(jobs.c.id == claim.job.id, jobs.c.state == "running", mine)


def _lost(claim: Claim) -> JobLost:
    return JobLost(f"job {claim.job.id} was cancelled, or another worker has claimed it")


def _same(connection: Connection, request: JobRequest, tenant: str | None) -> Job | None:
    """The tenant's open job with the same request."""
    equal = and_(jobs.c.digest == request.digest, jobs.c.state.in_(OPEN), jobs.c.tenant.is_not_distinct_from(tenant))
    row = connection.execute(select(jobs).where(equal)).first()
    return None if row is None else _job(row)


def _check_room(connection: Connection, author: str | None) -> None:
    if author is None:
        return
    waiting = and_(jobs.c.author == author, jobs.c.state.in_(OPEN))
    if connection.execute(select(func.count()).select_from(jobs).where(waiting)).scalar_one() >= MOST_OPEN:
        raise TooMany(f"key {author} has {MOST_OPEN} jobs that have not ended; wait for one, or cancel one")


def _check_name_free(connection: Connection, patch: str, tenant: str) -> None:
    """Raise if a patch of this name exists, or is to be compiled, that the tenant did not submit.

    Commands resolve a name without a digest to its newest patch, so an author must not add to another's name.
    """
    p = tables.patches.c
    own = select(jobs.c.name).where(jobs.c.tenant == tenant, jobs.c.name.is_not(None))
    foreign = select(p.name).where(p.patch == patch, p.name.not_in(own))
    others = and_(jobs.c.patch == patch, jobs.c.state.in_(OPEN), jobs.c.tenant.is_distinct_from(tenant))
    if connection.execute(foreign).first() or connection.execute(select(jobs.c.id).where(others)).first():
        raise EditError(f"the name {patch!r} is taken by a patch that your tenant did not submit; choose another name")


def _find(connection: Connection, id: str, tenant: str | None = None) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == id)).first() if _is_id(id) else None
    if row is None or tenant not in (None, row.tenant):
        raise NotFound(f"no job {shown(id)}; `vllm-edit job list` and GET /v1/edits/jobs list the ids")
    return _job(row)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isprintable() and text.startswith(_ID) and len(text) <= 40


def _job(row: Row[Any]) -> Job:
    fields = dict(row._mapping)
    for column in ("author", "request", "lease"):
        del fields[column]
    fields["settings"] = json.loads(fields["settings"])
    fields["result"] = None if fields["result"] is None else json.loads(fields["result"])
    fields["worker"] = None if fields["worker"] is None else _shown(fields["worker"])
    return Job(**fields)


def _shown(holder: str) -> str:
    """`host:pid` of a holder."""
    return ":".join(holder.split(":")[:2])


def _audited(job: Job) -> JSONObject:
    """A job in the audit."""
    seen: JSONObject = {
        "id": job.id,
        "patch": job.patch,
        "method": job.method,
        "state": job.state,
        "attempts": job.attempts,
        "name": job.name,
        "gate": (job.result or {}).get("status"),
        "worker": job.worker,
        "error": job.error,
    }
    return {key: value for key, value in seen.items() if value not in (None, "")}


def _storable(text: str) -> str:
    """One line that every database can hold."""
    line = " ".join(text[:_ERROR_LENGTH].split())
    return line.encode(errors="replace").decode().replace("\0", "\ufffd")
