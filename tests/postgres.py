"""A PostgreSQL server for tests: a cluster of its own in a temporary folder, on a socket there, on no network."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

_START_SECONDS = 120  # a limit for a busy machine
_FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return Path(found).resolve().parent if found else next(iter(folders), None)


class Cluster:
    """Makes databases in a running server."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"registry{next(self._numbers)}"
        with psycopg.connect(f"host={self._folder} user=tests dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tests@/{name}?host={self._folder}"


@contextmanager
def running(bin: Path) -> Iterator[Cluster]:
    """A server that is gone, with its files, afterwards. PostgreSQL refuses root, who lends it another user."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-edit-pg-"))
    who: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
    data = folder / "data"
    try:
        made = [bin / "initdb", "--pgdata", data, "--username=tests", "--auth=trust", "--no-sync", "--locale=C.UTF-8"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **who)
        command = [bin / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", *_FAST]
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, **who) as server:
            try:
                _wait(folder, server)
                yield Cluster(folder)
            finally:
                server.send_signal(signal.SIGQUIT)  # at once: nobody needs the data, and clients may still be connected
    finally:
        shutil.rmtree(folder)


def _wait(folder: Path, server: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < ends:
        try:
            psycopg.connect(f"host={folder} user=tests dbname=postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
