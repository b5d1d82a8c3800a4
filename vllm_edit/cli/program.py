"""The program as a tree of commands, each imported on demand."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from io import TextIOWrapper
from types import MappingProxyType
from typing import Annotated, Any

import typer

from vllm_edit.cli.ending import Invocation, ending, flush
from vllm_edit.cli.lazy import DEBUG_HELP, LazyGroup
from vllm_edit.cli.output import print_line

_HERE = "vllm_edit.cli"


class _Root(LazyGroup):
    commands_at = MappingProxyType(
        {
            "model": (f"{_HERE}.model", "app"),
            "store": (f"{_HERE}.store", "app"),
            "compile": (f"{_HERE}.compile", "compile_"),
            "recompile": (f"{_HERE}.recompile", "recompile"),
            "worker": (f"{_HERE}.worker", "worker"),
            "job": (f"{_HERE}.job", "app"),
            "compose": (f"{_HERE}.compose", "compose"),
            "eval": (f"{_HERE}.eval", "eval"),
            "report": (f"{_HERE}.report", "report"),
            "list": (f"{_HERE}.patches", "list_"),
            "show": (f"{_HERE}.patches", "show"),
            "diff": (f"{_HERE}.diff", "diff"),
            "sign": (f"{_HERE}.sign", "sign"),
            "signer": (f"{_HERE}.signer", "app"),
            "verify": (f"{_HERE}.maintenance", "verify"),
            "gc": (f"{_HERE}.maintenance", "gc"),
            "export": (f"{_HERE}.patches", "export"),
            "tenant": (f"{_HERE}.tenant", "app"),
            "rollout": (f"{_HERE}.rollout", "app"),
            "answer": (f"{_HERE}.answer", "answer"),
            "answers": (f"{_HERE}.answer", "answers"),
            "key": (f"{_HERE}.key", "app"),
            "audit": (f"{_HERE}.audit", "app"),
            "serve": (f"{_HERE}.serve", "serve"),
            "servers": (f"{_HERE}.servers", "servers"),
            "flags": (f"{_HERE}.serve", "flags"),
            "hypernet": (f"{_HERE}.hypernet", "app"),
            "trace": (f"{_HERE}.trace", "trace"),
            "schema": (f"{_HERE}.schema", "schema"),
            "atlas": (f"{_HERE}.atlas", "app"),
            "demo": (f"{_HERE}.demo", "demo"),
        }
    )

    def invoke(self, ctx: Any) -> Any:
        with ending(ctx.ensure_object(Invocation)):
            result = super().invoke(ctx)
            flush()
            return result


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain text: square brackets in help are not markup
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"vllm-edit {version('vllm-edit')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,
) -> None:
    """Declare a fact, compile it into a low-rank delta, serve it per request from stock vLLM."""
    context.ensure_object(Invocation).debug = debug


def run() -> None:
    """Run the command line, and exit with one of the codes of `ending`."""
    if sys.stderr is None:  # closed; `print` would write to stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # make any text printable in any terminal encoding
            stream.reconfigure(errors="backslashreplace")
    with ending(Invocation()):  # outside of a command: e.g. help that is written to a full disk
        try:
            app()
        finally:
            flush()
