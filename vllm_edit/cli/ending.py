"""How the program ends: every error is one line on stderr, and the exit code says whose fault it is.

1: the user's, or the machine's (a file, a full disk). 2: wrong usage. 70: an error that nobody foresaw, whose trace is
kept in a file. 130 and 141: Ctrl-C and a reader who left, as a shell reports them.
"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import typer

from vllm_edit.cli.output import print_error
from vllm_edit.errors import EditError

UNFORESEEN = 70
"""EX_SOFTWARE of sysexits.h."""
INTERRUPTED = 130
READER_LEFT = 141
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Errors of disks and limits, which the system reports without a file's name when it reads or writes."""
_LONGEST = 500
"""Characters of an unforeseen error's own message."""

_MOST = 200
"""Problems that are told of what was given."""


@dataclass
class Invocation:
    """What was asked for. doing: the command, by name. debug: show the trace of an error."""

    doing: str = "vllm-edit"
    debug: bool = False


@contextmanager
def ending(invocation: Invocation) -> Iterator[None]:
    """Report what is raised inside in one line and end the program. Typer's own errors and exits pass.

    Raises:
        SystemExit: with one of the codes above.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _abandon_stdout()
        raise SystemExit(READER_LEFT) from None
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, SystemExit | GeneratorExit | typer.Abort) or hasattr(error, "exit_code"):  # Typer's
            raise
        if _interrupted(error):
            raise SystemExit(INTERRUPTED) from None
        if invocation.debug:
            traceback.print_exc()
        code, told = _judge(error, invocation)
        with suppress(OSError):  # nobody can be told on a stderr that is full or closed
            print_error(told)
        raise SystemExit(code) from None


def flush() -> None:
    """Write what is printed while an error can still be reported: the interpreter's own flush is too late for it."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
            raise


def _interrupted(error: BaseException) -> bool:
    """True where Ctrl-C is behind it: libraries that import in a `try` make another error of it."""
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _judge(error: BaseException, invocation: Invocation) -> tuple[int, str]:
    """The exit code, and what is printed."""
    if isinstance(error, EditError):
        problems = str(error).split("\n")
        if len(problems) > _MOST:
            problems[_MOST:] = [f"and {len(problems) - _MOST:,} problems more"]
        return 1, "\n".join(problems)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _OF_THE_MACHINE):
        said = error.strerror or str(error)
        return 1, said if error.filename is None else f"{_name(error.filename)}: {said}"
    told = " ".join(str(error).split())
    if len(told) > _LONGEST:
        told = f"{told[:_LONGEST]} …"
    what = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return UNFORESEEN, f"an error that nobody foresaw, in `{invocation.doing}`: {what}; {_keep(error)}"


def _name(file: str | bytes | int) -> str:
    """A file's name as the error holds it: text, bytes, or the number of an open file."""
    return os.fsdecode(file) if isinstance(file, bytes) else str(file)


def _keep(error: BaseException) -> str:
    """Write the trace to a file that only this user can read. Returns where it is."""
    told = [
        f"{datetime.now(UTC).isoformat(timespec='seconds')}  {shlex.join(sys.argv)}",
        f"vllm-edit {version('vllm-edit')}, Python {platform.python_version()}, {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="vllm-edit-", suffix=".trace", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("\n".join(told))
    except OSError as refused:
        return f"its trace could not be written ({refused.strerror}): --debug shows it"
    return f"its trace is in {file.name} (--debug shows it)"


def _abandon_stdout() -> None:
    """What is still to be written goes nowhere: at exit the interpreter would try again, and complain."""
    with suppress(OSError, ValueError):  # a stream that is no file, in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
