"""`vllm-edit answer ID` and `vllm-edit answers`: the patch that answered a request, from the registry's log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import MOST, JsonOption, StoreOption
from vllm_edit.cli.output import print_fields, print_json, print_table, when

if TYPE_CHECKING:
    from vllm_edit.registry.answers import AnswerEntry


def answer(
    id: Annotated[str, typer.Argument(metavar="ID", help="The answer's X-VLLM-Edit-Id.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show how a request was answered: tenant, exact patch and adapter, mode, arm, reason, tokens and times."""
    from vllm_edit.store.store import Store

    found = Store.open(store).registry.answers.find(id)
    if json:
        print_json(found)
        return
    asked = f"{found.route}, model {found.asked}" if found.asked else found.route
    print_fields(
        {
            "answer": found.id,
            "at": when(found.at),
            "asked": asked,
            "prompt": found.prompt,
            "tenant": found.tenant,
            "key": found.key,
            "patch": found.patch,
            "answered by": found.adapter or "the base model",
            "mode": found.mode,
            "subjects": ", ".join(found.subjects or ()),
            "key groups": ", ".join(map(str, found.groups or ())),
            "arm": f"{found.arm} of rollout {found.rollout}" if found.rollout else found.arm,
            "reason": found.reason,
            "ended": _ended(found),
            "tokens": _tokens(found),
            "seconds": _seconds(found),
            "decided by": f"{found.server}, generation {found.generation}"
            if found.generation is not None
            else found.server,
        }
    )


def answers(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant's answers.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of answers.")] = 20,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the last answers, the newest first."""
    from vllm_edit.store.store import Store

    found = Store.open(store).registry.answers.newest(tenant, limit)
    if json:
        print_json(found)
        return
    rows = [
        (
            entry.id,
            when(entry.at),
            entry.tenant,
            entry.adapter or "base",
            entry.mode,
            entry.arm,
            entry.reason,
            entry.status,
            entry.ended,
            None if entry.seconds is None else f"{entry.seconds:.3g}",
        )
        for entry in found
    ]
    print_table(("ID", "AT", "TENANT", "ANSWERED BY", "MODE", "ARM", "REASON", "STATUS", "ENDED", "SECONDS"), rows)


def _ended(found: AnswerEntry) -> str:
    how = {"left": "the client left first", "broken": "broken off"}.get(found.ended or "", found.ended or "")
    return f"{how}, status {found.status}" if found.status is not None else f"{how}, before it began"


def _tokens(found: AnswerEntry) -> str:
    counts = [
        (found.prompt_tokens, "of the prompt"),
        (found.ike_tokens or None, "of them added by mode ike"),
        (found.completion_tokens, "of the answer"),
    ]
    return ", ".join(f"{count} {what}" for count, what in counts if count is not None)


def _seconds(found: AnswerEntry) -> str:
    durations = [
        (found.seconds, "in all"),
        (found.first_token_seconds, "to the first token"),
        (found.router_seconds, "in the router"),
    ]
    return ", ".join(f"{seconds:.3g} {what}" for seconds, what in durations if seconds is not None)
