"""A failover group of a test's own: a master, two replicas, three sentinels of Debian's Redis, on private ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hiredis import Reader, ReplyError, pack_command

from tests.support.redis_server import RedisServer, binaries, free_port

SERVICE: Final = "headrace"
# How long a server may say nothing until a sentinel takes it for dead; a production's is 5 to 30 s.
DOWN_AFTER_MS: Final = 1_000
# A sentinel looks at its servers every ten seconds and distrusts a busy machine's clock for thirty; tests need less.
_PERIODS_MS: Final = {
    "INFO-PERIOD": 500,
    "PUBLISH-PERIOD": 500,
    "PING-PERIOD": 200,
    "ASK-PERIOD": 200,
    "SLAVE-RECONF-TIMEOUT": 3_000,
    "MIN-LINK-RECONNECT-PERIOD": 500,
    "TILT-TRIGGER": 20_000,
    "TILT-PERIOD": 1_000,
}
_SENTINEL: Final = """
port {port}
bind 127.0.0.1
dir {directory}
logfile {directory}/sentinel-{number}.log
sentinel monitor {service} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {service} {down_after_ms}
sentinel failover-timeout {service} 5000
sentinel parallel-syncs {service} 2
"""


def ask(port: int, *words: str | int) -> Any:
    """A command's raw reply from whatever speaks Redis's protocol at this port. Raises OSError, ReplyError."""
    reader = Reader()
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(pack_command(words))  # pyright: ignore[reportArgumentType]
        while (reply := reader.gets()) is False:
            received = connection.recv(65_536)
            if not received:
                raise ConnectionError("the server closed the connection")
            reader.feed(received)
    if isinstance(reply, ReplyError):
        raise reply
    return reply


def wait(probe: Callable[[], object], limit_s: float, what: str) -> None:
    """Returns once the probe counts as true; while it can't be answered it counts as false."""
    limit = time.monotonic() + limit_s
    while not _answered(probe):
        if time.monotonic() > limit:
            raise RuntimeError(what)
        time.sleep(0.02)


def _answered(probe: Callable[[], object]) -> object:
    try:
        return probe()
    except (OSError, ReplyError):
        return None


class FailoverGroup:
    """Three servers, of which the sentinels keep one as the master. `urls` have the shape that Headrace takes."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self.sentinel_ports = [free_port() for _ in range(3)]
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self.servers: dict[int, RedisServer] = {}
        for number in range(3):
            place = directory / f"server-{number}"
            place.mkdir(parents=True)
            link = ("--replicaof", f"127.0.0.1 {next(iter(self.servers))}") if self.servers else ()
            # A replica is sent the whole data at once, not after the five seconds in which others might ask too.
            server = RedisServer(
                binaries()["redis"], place, options=(*link, "--repl-diskless-sync-delay", "0", *options)
            )
            self.servers[server.port] = server

    @property
    def url(self) -> str:
        """The group's address."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinel_ports)}/{SERVICE}/0"

    @property
    def master(self) -> RedisServer:
        """The server that most sentinels take for the master."""
        named = [port for port in map(self._named, self.sentinel_ports) if port is not None]
        return self.servers[max(set(named), key=named.count)]

    @property
    def replicas(self) -> list[RedisServer]:
        """The others."""
        master = self.master
        return [server for server in self.servers.values() if server is not master]

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> FailoverGroup:
        """Itself, once both replicas are level and the sentinels know of all."""
        for server in self.servers.values():
            server.start()
        master, *replicas = self.servers.values()
        wait(lambda: b"connected_slaves:2" in master.command("INFO", "replication"), 20, "the replicas did not connect")
        for server in replicas:
            wait(lambda one=server: b"master_link_status:up" in one.command("INFO", "replication"), 20, "not level")
        for number, port in enumerate(self.sentinel_ports):
            self._start_sentinel(number, port, master.port)
        self.wait_until_whole()
        return self

    def _start_sentinel(self, number: int, port: int, master_port: int) -> None:
        file = self._directory / f"sentinel-{number}.conf"
        words = {"port": port, "master": master_port, "number": number, "directory": self._directory}
        file.write_text(_SENTINEL.format(**words, service=SERVICE, down_after_ms=DOWN_AFTER_MS))
        self._sentinels.append(subprocess.Popen([binaries()["redis"], str(file), "--sentinel"]))
        periods = [word for pair in _PERIODS_MS.items() for word in pair]
        wait(lambda: ask(port, "SENTINEL", "DEBUG", *periods), 10, "a sentinel did not start")

    def stop(self) -> None:
        """Ends all of them, each by its own id."""
        for process in self._sentinels:
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
        for process in self._sentinels:
            process.wait(10)
        for server in self.servers.values():
            server.stop()

    # --- trouble ------------------------------------------------------------------------------------------------------

    def kill_master(self) -> RedisServer:
        """kill -9 to the master; the server that it was."""
        master = self.master
        master.kill()
        return master

    def freeze_master(self) -> RedisServer:
        """SIGSTOP to the master; the server that it is until others take its place."""
        master = self.master
        master.freeze()
        return master

    def demote_master(self, *, pause_ms: int = 0) -> RedisServer:
        """Has the sentinels put a replica in the master's place, as for maintenance; the server that it was.

        `pause_ms`: how long the old master makes writes wait from now on.
        """
        master = self.master
        if pause_ms:
            master.command("CLIENT", "PAUSE", pause_ms, "WRITE")
        wait(lambda: ask(self.sentinel_ports[0], "SENTINEL", "FAILOVER", SERVICE), 20, "no replica is good enough")
        return master

    def cut_off_replicas(self) -> None:
        """Has nothing reach the replicas that the master takes from now on: they can't log in to it."""
        for server in self.replicas:
            _log_in_as(server, "nobody")
            server.command("CLIENT", "KILL", "TYPE", "master")

    def mend(self) -> None:
        """Thaws all, lets replicas log in, starts what does not run, and waits until the group is whole."""
        for number in range(3):
            self.thaw_sentinel(number)
        for server in self.servers.values():
            server.thaw()
            if server.process is None or server.process.poll() is not None:
                server.start()
            _log_in_as(server, "")
        self.wait_until_whole()

    def wait_for_successor(self, before: int, limit_s: float = 20) -> None:
        """Waits until most sentinels name another master than this one, and it is one."""
        wait(lambda: self.master.port != before and self._is_master(self.master), limit_s, "no successor was elected")

    def wait_until_whole(self, limit_s: float = 30) -> None:
        """Waits until every sentinel sees a master, two replicas that follow it, and two other sentinels."""
        for port in self.sentinel_ports:
            wait(lambda one=port: self._sees_all(one), limit_s, f"sentinel {port} does not see the whole group")

    def freeze_sentinel(self, number: int) -> None:
        """SIGSTOP to a sentinel: it takes connections and answers nothing."""
        os.kill(self._sentinels[number].pid, signal.SIGSTOP)

    def thaw_sentinel(self, number: int) -> None:
        """SIGCONT."""
        os.kill(self._sentinels[number].pid, signal.SIGCONT)

    # --- what the sentinels say ---------------------------------------------------------------------------------------

    def _named(self, sentinel: int) -> int | None:
        try:
            return int(ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        except (OSError, ReplyError):
            return None

    def _is_master(self, server: RedisServer) -> bool:
        return server.command("ROLE")[0] == b"master"

    def _sees_all(self, sentinel: int) -> bool:
        master = _pairs(ask(sentinel, "SENTINEL", "MASTER", SERVICE))
        replicas = [_pairs(row) for row in ask(sentinel, "SENTINEL", "REPLICAS", SERVICE)]
        level = [row for row in replicas if row[b"flags"] == b"slave" and row[b"master-link-status"] == b"ok"]
        return master[b"flags"] == b"master" and master[b"num-other-sentinels"] == b"2" and len(level) == 2


def _log_in_as(replica: RedisServer, user: str) -> None:
    replica.command("CONFIG", "SET", "masteruser", user, "masterauth", user)


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
