"""`vllm-edit tenant`: tenants, and the patches that they are served."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import (
    WAIT_S,
    JsonOption,
    StoreOption,
    TenantArgument,
    UntilOption,
    WaitOption,
    WhoOption,
    WhyOption,
)
from vllm_edit.cli.output import print_json, print_line, print_table, when
from vllm_edit.cli.propagation import report_change
from vllm_edit.cli.tenant_key import app as key_app

if TYPE_CHECKING:
    from vllm_edit.registry.publications import Publication

app = group("Tenants, and the patches that they are served.")
app.add_typer(key_app, name="key")


@app.command()
def create(name: TenantArgument, who: WhoOption = "", store: StoreOption = None, json: JsonOption = False) -> None:
    """Create a tenant; it is served the base model until its first publication."""
    from vllm_edit.serving.served_model import check_not_a_base, served_model
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    check_not_a_base(name, served_model(opened.site().model))
    tenant = opened.registry.create_tenant(name, by=who)
    print_json(asdict(tenant)) if json else print_line(f"tenant {name} created")


@app.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List tenants with what each is served, including its rollout."""
    from vllm_edit.rollout.arm import Arm
    from vllm_edit.store.store import Store

    tenants = Store.open(store).registry.tenants()
    if json:
        print_json([asdict(tenant) for tenant in tenants])
        return
    rows = [
        (
            tenant.name,
            Arm(tenant.mode, tenant.active).short,
            when(tenant.valid_until) if tenant.valid_until else "",
            ", ".join((tenant.rollout, *tenant.beside)) if tenant.rollout else "",
            f"{tenant.treated:g} %: {Arm.of(tenant.treatment).short}" if tenant.treatment else "",
        )
        for tenant in tenants
    ]
    print_table(("TENANT", "SERVED", "UNTIL", "ROLLOUT", "TREATMENT"), rows)


@app.command()
def publish(
    tenant: TenantArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="capital, capital@4f1c, or the full name.")],
    why: WhyOption = "",
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Publish although its gate did not accept it; needs --who.")
    ] = "",
    until: UntilOption = None,
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a compiled patch to a tenant. Waits until all running servers follow, and reports those that do not."""
    from vllm_edit.store.store import Store

    if override and not who:
        raise typer.BadParameter("--override needs the name of who decides: add --who")
    opened = Store.open(store)
    registry, full = opened.registry, opened.resolve(name)
    changed = registry.publish(tenant, full, why=why, override=override, by=who, valid_until=until)
    line = f"tenant {tenant} is served {full}"
    if not changed:
        line += " already: nothing changed, and no reason or name is recorded"
    report_change(registry, wait, line, {"tenant": tenant, "active": full, "changed": changed}, json)


@app.command()
def rollback(
    tenant: TenantArgument,
    to: Annotated[
        str | None, typer.Option(metavar="NAME", help="An earlier publication; default: the previous publication.")
    ] = None,
    why: WhyOption = "",
    who: WhoOption = "",
    wait: WaitOption = WAIT_S,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Serve the tenant its previous publication, or the base model if there is none."""
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    target = None if to is None else opened.resolve(to)
    active = opened.registry.rollback(tenant, to=target, why=why, by=who)
    line = f"tenant {tenant} is served {active or 'the base model'}"
    report_change(opened.registry, wait, line, {"tenant": tenant, "active": active}, json)


@app.command()
def holdout(
    tenant: TenantArgument,
    percent: Annotated[float, typer.Argument(metavar="PERCENT", help="Percentage of the users; 0 for none.")],
    why: WhyOption = "",
    who: WhoOption = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Keep a share of the users out of all rollouts that are made from now on."""
    from vllm_edit.store.store import Store

    changed = Store.open(store).registry.set_holdout(tenant, percent, why=why, by=who)
    line = f"tenant {tenant}: {changed.holdout:g} % of the users take part in no rollout"
    print_json(asdict(changed)) if json else print_line(line)


@app.command()
def history(tenant: TenantArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show a tenant's publications, newest first. While a rollout decides, none of them is active."""
    from datetime import UTC, datetime

    from vllm_edit.names import short
    from vllm_edit.registry.publications import served
    from vllm_edit.store.store import Store

    registry = Store.open(store).registry
    publications = registry.history(tenant)
    if json:
        print_json([_as_json(publication) for publication in publications])
        return
    now = datetime.now(UTC)
    active, deciding = served(publications, now), registry.state(tenant).deciding
    in_force = f"behind rollout {', '.join(rollout.name for rollout in deciding)}" if deciding else "active"
    rows = []
    for entry in publications:
        ended = "ended" if entry.ended(now) else ""
        state = in_force if entry is active else "rolled back" if entry.rolled_back else ended
        why = " / ".join(text for text in (entry.why, entry.rolled_back_why) if text)
        until = when(entry.valid_until) if entry.valid_until else ""
        rows.append((when(entry.at), short(entry.name), state, until, entry.by, why))
    print_table(("AT", "NAME", "STATE", "UNTIL", "BY", "WHY"), rows)


def _as_json(publication: Publication) -> dict[str, object]:
    return asdict(publication) | {"rolled_back": publication.rolled_back}
