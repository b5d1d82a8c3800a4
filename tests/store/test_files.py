"""Files appear whole or not at all, and a disk that cannot hold them is left as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vllm_edit.store.files import LocalFiles

# The limit on a file's size is the system's own: the write fails in the middle, as on a full disk.
TOO_LARGE = """
import resource, sys
from pathlib import Path
from vllm_edit.errors import Unavailable
from vllm_edit.store.files import LocalFiles
files = LocalFiles(Path(sys.argv[1]))
files.write("kept/a", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: files.write("kept/a", b"x" * 2000),
    lambda: files.write_folder("patches/p", {"small": b"s", "deep/large": b"x" * 2000, "marker": b"m"}, "marker"),
):
    try:
        write()
    except Unavailable as error:
        print(error)
"""


WRITTEN = ("kept/a", "patches/p")


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", TOO_LARGE, tmp_path], capture_output=True, text=True, check=True)
    told = [f"{tmp_path / what} cannot be written: File too large; mend that and try again" for what in WRITTEN]
    assert ran.stdout.splitlines() == told
    files = LocalFiles(tmp_path)
    assert files.read("kept/a") == b"old"
    assert not files.exists("patches/p")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "kept" / "a"]


def test_locks_keep_processes_apart(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from vllm_edit.store.files import LocalFiles
files = LocalFiles(Path(sys.argv[1]))
for _ in range(50):
    with files.locked("count"):
        files.write("count", b"%d" % (int(files.read("count")) + 1))
"""
    files = LocalFiles(tmp_path)
    files.write("count", b"0")
    counting = [subprocess.Popen([sys.executable, "-c", program, tmp_path]) for _ in "1234"]
    assert [one.wait(timeout=300) for one in counting] == [0] * 4
    assert files.read("count") == b"200"
