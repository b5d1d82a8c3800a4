"""`vllm-edit serve` and `vllm-edit flags`: vLLM's server with the flags that a store needs."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.output import print_json, print_line

if TYPE_CHECKING:
    from vllm_edit.serving.profile import Profile
    from vllm_edit.store.store import Store as Opened

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer's context settings of both commands: unknown flags are passed on to vLLM."""

Store = Annotated[str | None, typer.Option(help="The store's folder or URL [default: $VLLM_EDIT_STORE or .vllm-edit].")]
AllowOpen = Annotated[bool, typer.Option("--allow-open", help="Serve without API keys on a non-loopback address.")]


def serve(context: typer.Context, store: Store = None, allow_open: AllowOpen = False) -> None:
    """Serve a store's patches: `vllm-edit serve [MODEL] [any vllm serve flag]`. MODEL comes first."""
    from vllm_edit.engine.lora_support import check_lora_support
    from vllm_edit.serving.preflight import check_start

    opened = _opened(store)
    chosen = _profile(opened, context.args, allow_open)
    if folder := check_start(opened, chosen):
        check_lora_support(folder)
    command = [sys.executable, "-m", "vllm_edit.serving.launch", *chosen.command()]
    os.execve(sys.executable, command, {**os.environ, **chosen.environment})


def flags(
    context: typer.Context,
    store: Store = None,
    allow_open: AllowOpen = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the command that `serve` would start: environment, model and engine flags, for stock `vllm serve`.

    A model on this machine must be the store's base. The command may be for another machine, where the model is.
    """
    from vllm_edit.serving.preflight import check_base

    opened = _opened(store)
    chosen = _profile(opened, context.args, allow_open)
    if os.path.isdir(chosen.model) or not os.path.isabs(chosen.model):
        check_base(opened, chosen)
    if as_json:
        print_json({"model": chosen.model, "flags": chosen.flags, "environment": chosen.environment})
        return
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in chosen.environment.items())
    print_line(f"{environment} vllm {shlex.join(chosen.command())}")


def _opened(store: str | None) -> Opened:
    from vllm_edit.store.store import Store as Opened

    return Opened.open(store)


def _profile(opened: Opened, arguments: list[str], allow_open: bool) -> Profile:
    from vllm_edit.serving.profile import profile
    from vllm_edit.serving.served_model import served_model

    site = opened.site()
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    path, name = served_model(named or site.model)
    rest = arguments if named is None else arguments[1:]
    url = opened.url if "://" in opened.url else os.path.abspath(opened.url)
    return profile(site, url, path, name, rest, allow_open, _keyed(opened))


def _keyed(opened: Opened) -> bool | None:
    """Return whether the registry has API keys; None if it cannot be read, since a server may start without it.

    Raises:
        Incompatible: the registry belongs to another store.
    """
    from vllm_edit.errors import EditError, Incompatible

    try:
        return opened.registry.snapshot().keyed
    except Incompatible:
        raise
    except EditError:
        return None
