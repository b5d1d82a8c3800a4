"""The end of the program: one line and an exit code for every error, and no traceback by default."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cli.program import Program
from vllm_edit.cli import schema
from vllm_edit.errors import EditError
from vllm_edit.store.store import Store

PROGRAM = [sys.executable, "-m", "vllm_edit.cli"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Traces go to a folder of the test; `vllm-edit schema` is the failing command."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return monkeypatch


def fails_with(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(value: object) -> NoReturn:
        raise error

    patch.setattr(schema, "print_json", fail)


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [KeyError("prompt"), RuntimeError("two\nlines \x1b[31m"), Panic("at src/lib.rs")])
def test_an_unforeseen_error_is_one_line_exit_70_and_a_trace_in_a_file(
    program: Program, failing: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    fails_with(failing, error)
    ran = program("schema")
    assert (ran.code, ran.out, ran.err.count("\n")) == (70, "", 1)
    assert "schema" in ran.err
    assert type(error).__name__ in ran.err
    assert "\x1b" not in ran.err
    (trace,) = tmp_path.glob("*.trace")
    assert str(trace) in ran.err
    assert "Traceback" in trace.read_text(encoding="utf-8")
    assert trace.stat().st_mode & 0o077 == 0, "it may hold what only this user may read"


@pytest.mark.parametrize("arguments", [("--debug", "schema"), ("schema", "--debug")])
def test_debug_shows_the_trace(program: Program, failing: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    fails_with(failing, KeyError("prompt"))
    ran = program(*arguments)
    assert ran.code == 70
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("vllm-edit: ")


def test_control_c_in_a_librarys_import_is_control_c(program: Program, failing: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("Could not import module 'AutoModel'")
    error.__context__ = ImportError("torch")
    error.__context__.__cause__ = KeyboardInterrupt()
    fails_with(failing, error)
    ran = program("schema")
    assert (ran.code, ran.err) == (130, "")


def test_control_c_while_the_program_is_imported_ends_it_without_a_traceback() -> None:
    code = """
import builtins, sys
importing = builtins.__import__
def interrupted(name, *rest):
    if name == "typer":
        raise KeyboardInterrupt
    return importing(name, *rest)
builtins.__import__ = interrupted
from vllm_edit.cli import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (130, "")


def test_a_trace_that_cannot_be_written_is_no_second_error(
    program: Program, failing: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails_with(failing, KeyError("prompt"))
    failing.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    ran = program("schema")
    assert (ran.code, ran.err.count("\n")) == (70, 1)
    assert "could not be written" in ran.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EditError("expected one"), "expected one"),
        (PermissionError(errno.EACCES, "Permission denied", "l.txt"), "l.txt: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"folder\x1b"), "folder\\x1b: Is a directory"),
    ],
)
def test_an_error_that_the_user_can_fix_exits_1(
    program: Program, failing: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    fails_with(failing, error)
    ran = program("schema")
    assert (ran.code, ran.err) == (1, f"vllm-edit: {message}\n")
    assert not list(tmp_path.glob("*.trace"))


def test_thousands_of_problems_are_not_all_reported(program: Program, failing: pytest.MonkeyPatch) -> None:
    fails_with(failing, EditError("\n".join(f"line {number}: no" for number in range(4_448))))
    ran = program("schema")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 201
    assert ran.err.endswith("vllm-edit: line 199: no\nvllm-edit: and 4,248 more problems\n")


def test_an_error_of_the_system_without_a_file_is_not_taken_for_the_users(
    program: Program, failing: pytest.MonkeyPatch
) -> None:
    fails_with(failing, OSError("cannot connect"))
    assert program("schema").code == 70


@pytest.mark.parametrize("arguments", [("schema",), ("list", "--json")])
def test_a_reader_that_closes_the_pipe_ends_the_program(store: Store, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*PROGRAM, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device needs /dev/full")
@pytest.mark.parametrize("arguments", [("schema",), ("--help",), ("key", "--help")])
def test_output_that_finds_no_room_is_reported_in_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
        silent = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=full, timeout=300)
    assert (ran.returncode, ran.stderr) == (1, "vllm-edit: No space left on device\n")
    assert silent.returncode == 1


def test_any_text_is_printed_whatever_the_terminals_encoding(store: Store) -> None:
    store.registry.create_api_key(None, label="für 法國")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    listed = subprocess.run([*PROGRAM, "key", "list"], capture_output=True, env=environment, timeout=300)
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert "für \\u6cd5\\u570b".encode("latin-1") in listed.stdout
    as_json = subprocess.run([*PROGRAM, "key", "list", "--json"], capture_output=True, env=environment, timeout=300)
    assert re.search(rb'"label": "f\\u00fcr \\u6cd5\\u570b', as_json.stdout)


def test_with_a_closed_stderr_no_error_goes_to_stdout(tmp_path: Path) -> None:
    for words in (("list", "--json"), ("--debug", "list", "--json")):
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *PROGRAM, *words, "--store", str(tmp_path / "absent")]
        ran = subprocess.run(command, stdout=subprocess.PIPE, timeout=300)
        assert (ran.returncode, ran.stdout) == (1, b"")
