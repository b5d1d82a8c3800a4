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
_FAST = ("-c", "fsync=off", "-c", "full_page_writes=off")  # a commit outlives the server, if not the machine


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return Path(found).resolve().parent if found else next(iter(folders), None)


class Cluster:
    """A server that can be stopped and started again, and makes databases."""

    def __init__(self, bin: Path, folder: Path, who: dict[str, Any]) -> None:
        self._bin, self._folder, self._who, self._numbers = bin, folder, who, count()
        self._data = folder / "data"
        self._server: subprocess.Popen[bytes] | None = None

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"registry{next(self._numbers)}"
        with psycopg.connect(f"host={self._folder} user=tests dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tests@/{name}?host={self._folder}"

    def initialise(self) -> None:
        settings = ("--username=tests", "--auth=trust", "--no-sync", "--locale=C.UTF-8")
        command = [self._bin / "initdb", "--pgdata", self._data, *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._who)

    def start(self) -> None:
        command = [self._bin / "postgres", "-D", self._data, "-k", self._folder, "-c", "listen_addresses=", *_FAST]
        with (self._folder / "log").open("a") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, **self._who)
        ends = time.monotonic() + _START_SECONDS
        while self._server.poll() is None and time.monotonic() < ends:
            try:
                psycopg.connect(f"host={self._folder} user=tests dbname=postgres", connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")

    def stop(self) -> None:
        """Stop at once, as if the machine failed; committed data is there again after the next start."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait()


@contextmanager
def running(bin: Path) -> Iterator[Cluster]:
    """A server that is removed afterwards, with its files. PostgreSQL refuses root, so root runs it as another user."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-edit-pg-"))
    who: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
    cluster = Cluster(bin, folder, who)
    try:
        cluster.initialise()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
