"""`vllm-edit rollout`: two arms for one tenant, split by a sticky hash and compared; a kill acts at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import WAIT_S, JsonOption, StoreOption, WaitOption, WhoOption, WhyOption
from vllm_edit.cli.output import print_json, print_line, print_table, when
from vllm_edit.cli.propagation import report_change

if TYPE_CHECKING:
    from vllm_edit.registry.registry import Registry
    from vllm_edit.rollout.arm import Side
    from vllm_edit.rollout.rollout import Rollout
    from vllm_edit.rollout.sticky import Source

app = group("Rollouts: compare control and treatment on a tenant's users, then promote or kill.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def create(
    name: NameArgument,
    tenant: Annotated[str, typer.Option(help="Whose requests are split.")],
    treatment: Annotated[str, typer.Option(metavar="ARM", help="capital, capital@4f1c, capital:ike or base.")],
    control: Annotated[str | None, typer.Option(metavar="ARM", help="Default: what the tenant is served now.")] = None,
    split: Annotated[float, typer.Option(help="Percentage on treatment, of the users that take part.")] = 50.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric with its range: solved, rating:1..5, retries:0..10:lower; may be repeated."),
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(metavar="USER=SIDE", help="A user who is always on this side; may be repeated.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="Sources of the sticky key; the first source with a value counts.")
    ] = "user-header,user-field,session-header,api-key",
    user_header: Annotated[str, typer.Option(help="The header that names the user.")] = "x-user-id",
    session_header: Annotated[str, typer.Option(help="The header that names the session.")] = "x-session-id",
    salt: Annotated[
        str | None, typer.Option(help="The same salt and name give the same split again; default: a random salt.")
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(help="Probability, over all metrics (and over all limits), of ever calling equal arms different."),
    ] = 0.05,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="What treatment may not do, and what a server then does (warn, pause or kill): errors=kill, "
            "errors+1%=kill, cut=warn, slower:2s=warn, locality+5%=kill, or a metric: solved=kill; may be repeated."
        ),
    ] = None,
    users_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW..HIGH",
            help="Only these users, in per cent, like 0..40. Rollouts can run together if their ranges do not overlap.",
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Percentage of the requests that the other arm answers once more, only to compare both answers.",
        ),
    ] = None,
    shadow_texts: Annotated[
        bool, typer.Option(help="Store both texts too, until the log of answers is deleted.")
    ] = False,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Serve an arm that its gate did not accept; needs --who.")
    ] = "",
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Create a rollout. It serves nobody before its first `ramp`."""
    from vllm_edit.evaluation.questions import keeping_questions
    from vllm_edit.rollout.draft import draft
    from vllm_edit.store.store import Store

    if override and not who:
        raise typer.BadParameter("--override needs the name of who decides: add --who")
    sources = cast("tuple[Source, ...]", tuple(source.strip() for source in order.split(",")))  # `draft` checks them
    opened = Store.open(store)
    made = draft(
        name,
        tenant,
        resolve=opened.resolve,
        served=opened.registry.served,
        treatment=treatment,
        control=control,
        split=split,
        metrics=metric or (),
        users=dict(_override(text) for text in user or ()),
        order=sources,
        user_header=user_header,
        session_header=session_header,
        salt=salt,
        alpha=alpha,
        limits=limit or (),
        users_range=users_range,
        probed=lambda patch: bool(keeping_questions(opened.manifest(patch).edits, chat=True)),
        shadow=None if shadow is None else _share(shadow),
        shadow_texts=shadow_texts,
    )
    entered = opened.registry.rollouts.create(made, control_served=control is None, override=override, why=why, by=who)
    print_json(entered.as_record()) if json else print_line(_line(entered))


@app.command()
def ramp(
    name: NameArgument,
    to: Annotated[
        str,
        typer.Argument(
            metavar="PERCENT|SCHEDULE",
            help="Percentage of the users that take part; or several, and how long each: '1% 1h, 10% 1d, 50%'.",
        ),
    ],
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Let a share of the users take part; a paused rollout resumes. Users that took part stay on the same side.

    A server takes the later steps of a schedule. `pause`, `kill`, `promote` and the next `ramp` end it.
    """
    from vllm_edit.rollout.buckets import BUCKETS
    from vllm_edit.rollout.schedule import parse_schedule
    from vllm_edit.store.store import Store

    schedule = parse_schedule(to)
    registry = Store.open(store).registry
    if len(schedule.steps) == 1:
        moved = registry.rollouts.ramp(name, schedule.share * 100 / BUCKETS, why=why, by=who)
    else:
        moved = registry.rollouts.follow(name, schedule, why=why, by=who)
    _report(registry, moved, wait, json)


@app.command()
def pause(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Freeze the assignment until the next `ramp`."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _report(registry, registry.rollouts.pause(name, why=why, by=who), wait, json)


@app.command()
def kill(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Serve control to everyone from the next request."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _report(registry, registry.rollouts.kill(name, why=why, by=who), wait, json)


@app.command()
def promote(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Serve treatment to everyone until the tenant's next publication or rollback."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _report(registry, registry.rollouts.promote(name, why=why, by=who), wait, json)


@app.command()
def shadow(
    name: NameArgument,
    percent: Annotated[
        str, typer.Argument(metavar="PERCENT", help="Percentage of the answers that the other arm repeats; 0 ends it.")
    ],
    texts: Annotated[bool, typer.Option(help="Store both texts too, until the log of answers is deleted.")] = False,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Let the other arm repeat a share of the answers, after the clients have them; also before the first ramp."""
    from vllm_edit.rollout.shadow import shadow_of
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    made = shadow_of(_share(percent), texts=texts)
    _report(registry, registry.rollouts.shadow(name, made, why=why, by=who), wait, json)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List rollouts, the newest first."""
    from vllm_edit.store.store import Store

    entries = Store.open(store).registry.rollouts.newest_first(tenant)
    if json:
        print_json([entry.as_record() for entry in entries])
        return
    rows = []
    for entry in entries:
        rollout = entry.rollout
        arms = (rollout.control.short, rollout.treatment.short)
        share, changed = _percent(rollout.share), when(entry.changed_at)
        rows.append((rollout.name, rollout.tenant, _state(rollout), *arms, share, changed))
    print_table(("NAME", "TENANT", "STATE", "CONTROL", "TREATMENT", "SHARE", "CHANGED"), rows)


@app.command()
def status(
    name: NameArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the comparisons: *.png or *.svg.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page with plots.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the arms' traffic and their comparison. The intervals are valid at every look."""
    from vllm_edit.cli.rollout_status import print_status
    from vllm_edit.pages.page import check_page
    from vllm_edit.pages.report_pages import rollout_page
    from vllm_edit.rollout.picture import draw
    from vllm_edit.store.store import Store

    if html is not None:
        check_page(html)
    found = Store.open(store).registry.rollouts.report(name)
    if out is not None:
        draw(found, out)
    if html is not None:
        html.write_text(rollout_page(found), encoding="utf-8")
    if json:
        written = {"picture": str(out) if out else None, "page": str(html) if html else None}
        print_json(asdict(found.as_record()) | written)
    else:
        print_status(found)


def _override(text: str) -> tuple[str, Side]:
    user, _, side = text.rpartition("=")
    if not user or side not in ("control", "treatment"):
        raise typer.BadParameter(f"expected --user USER=control or USER=treatment, got {text!r}")
    return user, "control" if side == "control" else "treatment"


def _share(percent: str) -> float:
    try:
        return float(percent.removesuffix("%").strip())
    except ValueError:
        raise typer.BadParameter(f"expected a percentage like 5 or 5%, got {percent!r}") from None


def _report(registry: Registry, rollout: Rollout, wait_s: float, json: bool) -> None:
    report_change(registry, wait_s, _line(rollout), asdict(rollout.as_record()), json)


def _line(rollout: Rollout) -> str:
    states = {
        "created": "created; it serves nobody before `vllm-edit rollout ramp`",
        "ramping": f"{_percent(rollout.share)} of the users take part, {_percent(rollout.split)} of them on treatment"
        + _next(rollout),
        "paused": f"paused at {_percent(rollout.share)}",
        "killed": "killed" + ("; its tenant is served control" if rollout.governs else "; it decides nothing"),
        "promoted": "promoted; its tenant is served treatment",
    }
    return f"rollout {rollout.name}: {states[rollout.state]}{_shadow(rollout)}"


def _shadow(rollout: Rollout) -> str:
    if not rollout.shadowing or rollout.shadow is None:
        return ""
    return f"; the other arm repeats {_percent(rollout.shadow.share)} of the answers"


def _next(rollout: Rollout) -> str:
    """The next step of the schedule."""
    record = None if rollout.schedule is None else rollout.schedule.as_record()
    return "" if record is None or record.next_at is None else f"; {record.next:g} % from {when(record.next_at)}"


def _state(rollout: Rollout) -> str:
    return f"{rollout.state}, closed" if rollout.closed else rollout.state


def _percent(buckets: int) -> str:
    return f"{buckets / 100:g} %"
