"""A real PostgreSQL of a test's own: on a free loopback port, in its own directory, killed and started at will."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.redis_server import free_port

PLACES: Final = (
    Path("/usr/lib/postgresql/15/bin"),
    Path("/usr/lib/postgresql/17/bin"),
    Path("/usr/lib/postgresql/16/bin"),
)
USER: Final = "headrace"
_START_LIMIT_S: Final = 30.0
_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")


def binaries() -> Path | None:
    """The folder with PostgreSQL's programs; None where it is not installed."""
    found = [place for place in PLACES if (place / "postgres").exists()]
    if found:
        return found[0]
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """One cluster and its server; the data outlive `kill` and `start`. Never runs as root, which PostgreSQL refuses."""

    def __init__(self, *, durable: bool = False) -> None:
        """`durable`: every commit is on disk. It survives kill -9 without that; only a power cut would tell."""
        place = binaries()
        assert place is not None, "PostgreSQL is not installed"
        self._bin = place
        self._durable = durable
        self.port = free_port()
        # Not below pytest's folders, which no other user may enter.
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
        self._uid, self._gid = _somebody()
        if self._uid is not None:
            os.chown(self.directory, self._uid, self._gid or 0)
        self.process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        """The URL for `HEADRACE_DATABASE_URL`."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it takes connections, at most 30 s."""
        words = [
            *(str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1"),
            *("-k", str(self.directory), "-c", "shared_buffers=16MB", "-c", "max_connections=60"),
            *("-c", f"fsync={'on' if self._durable else 'off'}"),
        ]
        with (self.directory / "server.log").open("ab") as log:
            self.process = process = subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                user=self._uid,
                group=self._gid,
            )
        limit = time.monotonic() + _START_LIMIT_S
        while not self._ready():
            assert process.poll() is None and time.monotonic() < limit, self.log()
            time.sleep(0.02)

    def _ready(self) -> bool:
        words = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return self._listens() and subprocess.run(words, check=False, capture_output=True).returncode == 0

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as connection:
                connection.sendall(_SSL_REQUEST)
                return connection.recv(1) in (b"N", b"S")
        except OSError:
            return False

    def query(self, sql: str) -> list[str]:
        """The rows of a statement, each as one line of text."""
        words = [
            "psql",
            "-X",
            "-A",
            "-t",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            USER,
            "-d",
            "postgres",
            "-c",
            sql,
        ]
        return self._run(*words).splitlines()

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(8)}"
        self.query(f"CREATE DATABASE {name} STRATEGY FILE_COPY")  # in half the time, where nothing waits for the disk
        return self.url.removesuffix("postgres") + name

    def log(self) -> str:
        """The end of what it has said."""
        return (self.directory / "server.log").read_text(errors="replace")[-3000:]

    def freeze(self) -> None:
        """SIGSTOP to all of its processes: it holds its connections and answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            # The first of them before the others are looked for: stopped, it begins no more.
            os.kill(self.process.pid, number)
            for pid in _children(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill(self) -> None:
        """The immediate shutdown, as after a crash: what was committed stays."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Ends it and deletes its data."""
        self.thaw()
        self._end(signal.SIGINT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            self.process.wait(15)

    def _run(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *words],
            cwd=self.directory,
            check=True,
            capture_output=True,
            text=True,
            user=self._uid,
            group=self._gid,
        )
        return done.stdout


def _children(pid: int) -> list[int]:
    """A process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _somebody() -> tuple[int | None, int | None]:
    """The user and group to start programs as: somebody who is not root, which PostgreSQL refuses to be."""
    if os.getuid() != 0:
        return None, None
    known = {row.pw_name: (row.pw_uid, row.pw_gid) for row in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]
