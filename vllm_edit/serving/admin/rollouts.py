"""`/v1/edits/rollouts`: create, ramp, compare and end rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Request
from pydantic import Field

from vllm_edit.errors import EditError
from vllm_edit.evaluation.questions import keeping_questions
from vllm_edit.names import REASON_LENGTH
from vllm_edit.registry.rollouts import RolloutEntryRecord
from vllm_edit.registry.servers import AcknowledgedRecord
from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.draft import draft
from vllm_edit.rollout.rollout import Rollout, RolloutRecord
from vllm_edit.rollout.rollout_report import ReportRecord
from vllm_edit.rollout.schedule import parse_schedule
from vllm_edit.rollout.shadow import shadow_of
from vllm_edit.rollout.sticky import SOURCES, Source
from vllm_edit.serving.admin.authorization import PREFIX
from vllm_edit.serving.admin.dependencies import Because, Dependencies, who
from vllm_edit.serving.admin.validation import ValidatedRoute

Arm = Annotated[str, Field(max_length=170, description="capital, capital@4f1c, capital:ike or base")]
Header = Annotated[str, Field(max_length=64)]
Step = Literal["pause", "kill", "promote"]


class NewRollout(Because):
    """The options of `vllm-edit rollout create`, under the same names."""

    name: str = Field(max_length=63)
    tenant: str = Field(max_length=63)
    treatment: Arm
    control: Arm | None = Field(None, description="default: what the tenant is served now")
    split: float = Field(50.0, description="per cent on treatment, of the users that take part")
    metrics: list[Annotated[str, Field(max_length=160)]] = Field([], max_length=64, description="rating:1..5")
    users: dict[str, Side] = Field({}, max_length=10_000, description="users who are always on that side")
    order: tuple[Source, ...] = SOURCES
    user_header: Header = "x-user-id"
    session_header: Header = "x-session-id"
    salt: str | None = Field(None, max_length=64)
    alpha: float = 0.05
    limits: list[Annotated[str, Field(max_length=160)]] = Field(
        [], max_length=32, description="errors=kill, errors+1%=kill, slower:2s=warn, locality+5%=kill, solved=pause"
    )
    shadow: float | None = Field(
        None,
        ge=0,
        le=100,
        description="per cent of the requests that the other arm answers once more, only to compare both",
    )
    shadow_texts: bool = Field(False, description="store the texts of both, and not only whether they are the same")
    range: str | None = Field(None, max_length=64, description="per cent of the users, 0..40; default: all users")
    override: str = Field("", max_length=REASON_LENGTH)


class Ramp(Because):
    """Either a percentage or a schedule."""

    percent: float | None = Field(None, ge=0, le=100)
    schedule: str | None = Field(None, max_length=1000, description="1% 1h, 10% 1d, 50%")


class NewShadow(Because):
    """The share of answers that the other arm repeats; 0 for none."""

    percent: float = Field(ge=0, le=100)
    texts: bool = Field(False, description="store the texts of both")


@dataclass(frozen=True)
class Moved(RolloutRecord):
    """A changed rollout, and the servers that follow it."""

    acknowledged: AcknowledgedRecord

    @classmethod
    def of(cls, rollout: Rollout, acknowledged: AcknowledgedRecord) -> Self:
        return cls(**vars(rollout.as_record()), acknowledged=acknowledged)


def routes(dependencies: Dependencies) -> APIRouter:
    router = APIRouter(prefix=f"{PREFIX}/rollouts", route_class=ValidatedRoute)

    def probed(patch: str) -> bool:
        return bool(keeping_questions(dependencies.service.store.manifest(patch).edits, chat=True))

    @router.get("")
    async def list_rollouts(tenant: str | None = None) -> list[RolloutEntryRecord]:
        """Rollouts, the newest first."""
        entries = await dependencies.read(dependencies.registry.rollouts.newest_first, tenant)
        return [entry.as_record() for entry in entries]

    @router.post("")
    async def create(asked: NewRollout, request: Request) -> RolloutRecord:
        """Create a rollout. It serves nobody before its first `ramp`."""
        made = await dependencies.read(
            draft,
            asked.name,
            asked.tenant,
            resolve=dependencies.service.store.resolve,
            served=dependencies.registry.served,
            treatment=asked.treatment,
            control=asked.control,
            split=asked.split,
            metrics=asked.metrics,
            users=asked.users,
            order=asked.order,
            user_header=asked.user_header,
            session_header=asked.session_header,
            salt=asked.salt,
            alpha=asked.alpha,
            limits=asked.limits,
            users_range=asked.range,
            probed=probed,
            shadow=asked.shadow,
            shadow_texts=asked.shadow_texts,
        )
        entered, _ = await dependencies.change(
            dependencies.registry.rollouts.create,
            made,
            control_served=asked.control is None,
            override=asked.override,
            why=asked.why,
            by=who(request, asked.who),
        )
        return entered.as_record()

    @router.get("/{name}")
    async def status(name: str) -> ReportRecord:
        """The arms' traffic and comparison; the intervals stay valid however often they are read."""
        return (await dependencies.read(dependencies.registry.rollouts.report, name)).as_record()

    @router.post("/{name}/ramp")
    async def ramp(name: str, asked: Ramp, request: Request) -> Moved:
        """Set the percentage of users who take part, now or step by step."""
        return await ramp_rollout(dependencies, name, asked, by=who(request, asked.who))

    @router.post("/{name}/shadow")
    async def shadow(name: str, asked: NewShadow, request: Request) -> Moved:
        """Let the other arm repeat a share of the answers after the clients have them; 0 ends it."""
        moved, followed = await dependencies.change(
            dependencies.registry.rollouts.shadow,
            name,
            shadow_of(asked.percent, texts=asked.texts),
            why=asked.why,
            by=who(request, asked.who),
        )
        return Moved.of(moved, followed)

    @router.post("/{name}/{verb}")
    async def step(name: str, verb: Step, request: Request, asked: Because | None = None) -> Moved:
        """`pause` leaves every user on their arm; `kill` moves all to control; `promote` moves all to treatment."""
        asked = asked or Because()
        return await step_rollout(dependencies, name, verb, asked, by=who(request, asked.who))

    return router


async def ramp_rollout(dependencies: Dependencies, name: str, asked: Ramp, by: str) -> Moved:
    """Set the percentage of users who take part, now or step by step, and wait for the servers."""
    rollouts = dependencies.registry.rollouts
    if (asked.percent is None) == (asked.schedule is None):
        raise EditError("expected either percent or schedule")
    if asked.percent is not None:
        moved, followed = await dependencies.change(rollouts.ramp, name, asked.percent, why=asked.why, by=by)
    else:
        schedule = parse_schedule(asked.schedule or "")
        moved, followed = await dependencies.change(rollouts.follow, name, schedule, why=asked.why, by=by)
    return Moved.of(moved, followed)


async def step_rollout(dependencies: Dependencies, name: str, verb: Step, asked: Because, by: str) -> Moved:
    """Pause, kill or promote a rollout, and wait for the servers."""
    rollouts = dependencies.registry.rollouts
    steps = {"pause": rollouts.pause, "kill": rollouts.kill, "promote": rollouts.promote}
    moved, followed = await dependencies.change(steps[verb], name, why=asked.why, by=by)
    return Moved.of(moved, followed)
