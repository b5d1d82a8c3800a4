"""Errors and exit codes: every error is one line on stderr, and the exit code gives its kind.

1: an error of the user or the machine (a file, a full disk). 2: wrong usage. 70: an unexpected error; its traceback is
written to a file. 130 and 141: Ctrl-C and a closed pipe, as a shell reports them.
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
"""Errors of disks and limits, which reads and writes report without a file's name."""
_LONGEST = 500
"""Maximum characters of an unexpected error's message."""

_MOST = 200
"""Maximum number of reported problems."""


@dataclass
class Invocation:
    """The program's invocation. `doing`: the command's name; `debug`: print the traceback of an error."""

    doing: str = "vllm-edit"
    debug: bool = False


@contextmanager
def ending(invocation: Invocation) -> Iterator[None]:
    """Report an exception of the block in one line and exit. Typer's own errors and exits pass through.

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
    except BaseException as error:  # a panic of a Rust library is not an Exception
        if isinstance(error, SystemExit | GeneratorExit | typer.Abort) or hasattr(error, "exit_code"):  # Typer's
            raise
        if _interrupted(error):
            raise SystemExit(INTERRUPTED) from None
        if invocation.debug:
            traceback.print_exc()
        code, message = _exit_of(error, invocation)
        with suppress(OSError):  # stderr may be full or closed
            print_error(message)
        raise SystemExit(code) from None


def flush() -> None:
    """Flush stdout while an error can still be reported; the interpreter's own flush at exit is too late."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
            raise


def _interrupted(error: BaseException) -> bool:
    """True if Ctrl-C caused the error: libraries that import in a `try` raise another error from it."""
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _exit_of(error: BaseException, invocation: Invocation) -> tuple[int, str]:
    """Return the exit code and the message."""
    if isinstance(error, EditError):
        problems = str(error).split("\n")
        if len(problems) > _MOST:
            problems[_MOST:] = [f"and {len(problems) - _MOST:,} more problems"]
        return 1, "\n".join(problems)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _OF_THE_MACHINE):
        reason = error.strerror or str(error)
        return 1, reason if error.filename is None else f"{_name(error.filename)}: {reason}"
    message = " ".join(str(error).split())
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]} …"
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return UNFORESEEN, f"unexpected error in `{invocation.doing}`: {what}; {_write_trace(error)}"


def _name(file: str | bytes | int) -> str:
    """Return the file's name as text; an error holds text, bytes, or the number of an open file."""
    return os.fsdecode(file) if isinstance(file, bytes) else str(file)


def _write_trace(error: BaseException) -> str:
    """Write the traceback to a file that only this user can read, and return a message with its path."""
    lines = [
        f"{datetime.now(UTC).isoformat(timespec='seconds')}  {shlex.join(sys.argv)}",
        f"vllm-edit {version('vllm-edit')}, Python {platform.python_version()}, {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="vllm-edit-", suffix=".trace", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("\n".join(lines))
    except OSError as refused:
        return f"its trace could not be written ({refused.strerror}): --debug shows it"
    return f"its trace is in {file.name} (--debug shows it)"


def _abandon_stdout() -> None:
    """Discard unwritten output: the interpreter would try to flush it at exit, and print an error."""
    with suppress(OSError, ValueError):  # in tests, the stream may not be a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
