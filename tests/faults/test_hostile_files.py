"""Hostile files and values instead of a command's inputs: one line, and no incomplete store."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
import typer
from typer.core import TyperGroup

from tests.cli.program import Ran
from tests.faults.commands import COMMANDS, Samples, Trial, assert_whole
from tests.faults.sizes import Sizes
from vllm_edit.cli import app, main
from vllm_edit.progress import Progress

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
ROOT = Path(__file__).parents[2]


def run_here(*arguments: object) -> Ran:
    """Run the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["vllm-edit", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    return Ran(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def samples() -> Iterator[Samples]:
    def make(*arguments: object) -> None:
        ran = run_here(*arguments)
        assert ran.code == 0, (arguments, ran.err)

    with tempfile.TemporaryDirectory() as folder:
        yield Samples(Path(folder), make)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No command starts another program, asks the hub or uses this machine's own stores."""

    def execve(*arguments: object) -> NoReturn:
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("VLLM_EDIT_STORE", "VLLM_EDIT_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


def test_every_command_is_tried() -> None:
    def names(command: object, before: str = "") -> Iterator[str]:
        if isinstance(command, TyperGroup):
            context = typer.Context(command)  # type: ignore[arg-type]
            for name in command.list_commands(context):
                yield from names(command.get_command(context, name), f"{before}{name} ")
        else:
            yield before.strip()

    known = set(names(typer.main.get_command(app)))
    tried = {next(name for name in known if f"{command} ".startswith(f"{name} ")) for command in COMMANDS}
    assert tried == known


def test_no_hostile_file_or_value_ends_in_a_traceback_or_half_a_store(
    samples: Samples, tmp_path: Path, sizes: Sizes, progress: Progress, record_property: Record
) -> None:
    counts, failed = Counter[int](), []
    for number in range(sizes.hostile_files):
        progress("commands", number, sizes.hostile_files)
        trial = samples.trial(number, tmp_path / str(number), Random(number))
        ran = run_here(*trial.arguments)
        counts[ran.code] += 1
        if problem := problem_of(trial, ran):
            failed.append(problem)
        assert_whole(trial)
        clear(trial.folder)
    assert not failed, "\n".join([f"{len(failed)} of {sizes.hostile_files}:", *failed])
    record_property("commands", sum(counts.values()))
    record_property("of them refused", counts[1] + counts[2])


def test_no_hostile_file_ends_a_process_in_a_traceback(
    samples: Samples, tmp_path: Path, sizes: Sizes, progress: Progress, record_property: Record
) -> None:
    counts, failed = Counter[int](), []
    drawn = Random(0)
    for number in range(sizes.hostile_processes):
        progress("processes", number, sizes.hostile_processes)
        folder = tmp_path / str(number)
        trial = samples.trial(drawn.randrange(1000), folder, drawn, not_serving)
        ran = run_apart(trial)
        counts[ran.code] += 1
        if problem := problem_of(trial, ran):
            failed.append(problem)
        assert_whole(trial)
        clear(folder)
    assert not failed, "\n".join([f"{len(failed)} of {sizes.hostile_processes}:", *failed])
    record_property("processes", sum(counts.values()))
    record_property("of them refused", counts[1] + counts[2])


def not_serving(command: str) -> bool:
    """Other tests start servers."""
    return not command.startswith(("serve ", "demo "))


def run_apart(trial: Trial) -> Ran:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(trial.folder),
        "TMPDIR": str(trial.folder),
    }
    trial.folder.mkdir(exist_ok=True)
    command = [*without_rights(), sys.executable, "-m", "vllm_edit.cli", *map(os.fsencode, trial.arguments)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=trial.folder, timeout=600)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def without_rights() -> list[str]:
    """The beginning of a command that removes root's right to read forbidden files."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def problem_of(trial: Trial, ran: Ran) -> str:
    """The problem with a command's end; empty if there is none."""
    if ran.code not in (0, 1, 2):
        found = re.search(r"in (\S+\.trace)", ran.err)
        trace = Path(found[1]).read_text(encoding="utf-8") if found and Path(found[1]).exists() else ""
        return f"{trial} exits {ran.code}: {ran.err[-600:]}{trace[-3000:]}"
    output = ran.out + ran.err
    if "Traceback" in output:
        return f"{trial} shows a traceback: {ran.err[-3000:]}"
    output = output.replace("\r", "")  # of the libraries' own progress bars
    if driving := sorted(
        {character for character in output if unicodedata.category(character) in ("Cc", "Cs") and character != "\n"}
    ):
        return f"{trial} prints {driving}"
    if "errors.pydantic.dev" in output:
        return f"{trial} prints what is for developers: {ran.err[-600:]}"
    if ran.code == 1 and not re.search(r"^vllm-edit: ", ran.err, re.MULTILINE) and "--json" not in trial.arguments:
        return f"{trial} does not say why it exits 1: {ran.err[-600:]}"
    return ""


def clear(folder: Path) -> None:
    """Faster than `shutil.rmtree`, and for any kind of file."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)
