"""`vllm-edit rollout`: two arms for one tenant, split by a sticky hash, compared, and taken back at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_edit.cli.acknowledged import WAIT_S, WaitOption, tell_change
from vllm_edit.cli.group import group
from vllm_edit.cli.output import (
    JsonOption,
    StoreOption,
    WhoOption,
    WhyOption,
    print_json,
    print_line,
    print_table,
    when,
)

if TYPE_CHECKING:
    from vllm_edit.registry.registry import Registry
    from vllm_edit.rollout.arm import Side
    from vllm_edit.rollout.rollout import Rollout

app = group("Rollouts: control and treatment for a tenant's users, compared, and taken back at once.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def create(
    name: NameArgument,
    tenant: Annotated[str, typer.Option(help="Whose requests are split.")],
    treatment: Annotated[str, typer.Option(metavar="ARM", help="capital, capital@4f1c, capital:ike or base.")],
    control: Annotated[str | None, typer.Option(metavar="ARM", help="Default: what the tenant is served now.")] = None,
    split: Annotated[float, typer.Option(help="Per cent on treatment, of the users that take part.")] = 50.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What clients may report, and its range: solved, rating:1..5, retries:0..10:lower. Many."),
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(metavar="USER=SIDE", help="A user who is always on that side. Many.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="Where the sticky key is looked for; the first that says something counts.")
    ] = "user-header,user-field,session-header,api-key",
    user_header: Annotated[str, typer.Option(help="The header that names the user.")] = "x-user-id",
    session_header: Annotated[str, typer.Option(help="The header that names the session.")] = "x-session-id",
    salt: Annotated[
        str | None, typer.Option(help="The same salt and name give the same split again; default: a new one.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Chance, over all metrics, of ever calling equal arms different.")
    ] = 0.05,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Serve an arm that its gate did not accept; needs --who.")
    ] = "",
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a rollout. Nobody is served by it before its first `ramp`."""
    from vllm_edit.rollout.draft import draft
    from vllm_edit.store.store import Store

    if override and not who:
        raise typer.BadParameter("--override is somebody's decision: add --who")
    sources: Any = tuple(source.strip() for source in order.split(","))
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
    )
    entered = opened.registry.rollouts.create(made, override=override, why=why, by=who)
    print_json(entered.as_record()) if json else print_line(_line(entered))


@app.command()
def ramp(
    name: NameArgument,
    percent: Annotated[float, typer.Argument(metavar="PERCENT", help="Of the users, so many take part from now on.")],
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Let a share of the users take part; a paused rollout goes on. Who took part before stays on the same side."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _tell(registry, registry.rollouts.ramp(name, percent, why=why, by=who), wait, json)


@app.command()
def pause(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Leave everyone where they are until the next `ramp`."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _tell(registry, registry.rollouts.pause(name, why=why, by=who), wait, json)


@app.command()
def kill(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Put everyone on control, at the next request."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _tell(registry, registry.rollouts.kill(name, why=why, by=who), wait, json)


@app.command()
def promote(
    name: NameArgument,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Put everyone on treatment, until something is published for the tenant or rolled back."""
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    _tell(registry, registry.rollouts.promote(name, why=why, by=who), wait, json)


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
        print_json([entry.rollout.as_record() | _times(entry) for entry in entries])
        return
    rows = []
    for entry in entries:
        one = entry.rollout
        arms = (one.control.short, one.treatment.short)
        rows.append((one.name, one.tenant, _state(one), *arms, _percent(one.share), when(entry.changed_at)))
    print_table(("NAME", "TENANT", "STATE", "CONTROL", "TREATMENT", "SHARE", "CHANGED"), rows)


@app.command()
def status(
    name: NameArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the comparisons: *.png or *.svg.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the arms' traffic and how they compare. The intervals hold at every look: look as often as you like."""
    from vllm_edit.cli.rollout_status import print_status
    from vllm_edit.rollout.picture import draw
    from vllm_edit.store.store import Store

    found = Store.open(store).registry.rollouts.report(name)
    if out is not None:
        draw(found, out)
    if json:
        print_json(found.as_record() | {"picture": str(out) if out else None})
    else:
        print_status(found)


def _override(text: str) -> tuple[str, Side]:
    user, _, said = text.rpartition("=")
    if not user or said not in ("control", "treatment"):
        raise typer.BadParameter(f"expected --user USER=control or USER=treatment, got {text!r}")
    return user, "control" if said == "control" else "treatment"


def _tell(registry: Registry, rollout: Rollout, wait_s: float, json: bool) -> None:
    tell_change(registry, wait_s, _line(rollout), rollout.as_record(), json)


def _line(rollout: Rollout) -> str:
    told = {
        "created": "created; nobody is served by it before `vllm-edit rollout ramp`",
        "ramping": f"{_percent(rollout.share)} of the users take part, {_percent(rollout.split)} of them on treatment",
        "paused": f"paused at {_percent(rollout.share)}",
        "killed": "killed" + ("; its tenant is served control" if rollout.governs else "; it decides nothing"),
        "promoted": "promoted; its tenant is served treatment",
    }
    return f"rollout {rollout.name}: {told[rollout.state]}"


def _state(rollout: Rollout) -> str:
    return f"{rollout.state}, closed" if rollout.closed else rollout.state


def _percent(buckets: int) -> str:
    return f"{buckets / 100:g} %"


def _times(entry: Any) -> dict[str, Any]:
    return {"created_at": entry.created_at, "changed_at": entry.changed_at}
