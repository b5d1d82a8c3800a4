"""A command group that imports its commands on demand."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from vllm_edit.cli.ending import Invocation

DEBUG_HELP = "Show the traceback of an error."


class LazyGroup(TyperGroup):
    """Subclasses name their `commands_at`: command → (module, attribute). The attribute is a function or a Typer app.

    Command modules import torch and vLLM only inside functions. A module whose commands pass unknown flags to another
    program defines Typer's context settings for that in `PASS_ON`. Every command accepts --debug, and records its name
    in the program's `Invocation`.
    """

    commands_at: Mapping[str, tuple[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands_at)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands_at:
            return None
        path, attribute = self.commands_at[cmd_name]
        module = import_module(path)
        found = getattr(module, attribute)
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
        else:
            app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
            app.command(context_settings=getattr(module, "PASS_ON", None))(found)
            command = get_command(app)
        command.name = cmd_name
        _add_debug(command)
        return command


def _add_debug(command: Any) -> None:
    """Add the option --debug to the command, or to all commands of a group, in place."""
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            _add_debug(inner)
        return
    app = typer.Typer(add_completion=False)
    app.command()(_with_debug)
    command.params += get_command(app).params


def _note(context: typer.Context, debug: bool) -> None:
    invocation = context.ensure_object(Invocation)
    invocation.doing = context.command_path
    invocation.debug = invocation.debug or debug


def _with_debug(
    debug: Annotated[
        bool, typer.Option("--debug", callback=_note, is_eager=True, expose_value=False, help=DEBUG_HELP)
    ] = False,
) -> None:
    """Declare the option; the function is never called."""
