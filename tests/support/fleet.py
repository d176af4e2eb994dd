"""A fleet of a test's own: a real Valkey and gateways, workers, schedulers as processes, killed and started at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, TypeVar

import httpx

from common import keys
from tests.support.redis_server import RedisServer, binaries, free_port

ROOT: Final = Path(__file__).resolve().parents[2]
KEY: Final = "hr-test-key-of-the-first-tenant"
OTHER_KEY: Final = "hr-test-key-of-another-tenant"
PYTHON: Final = os.environ.get("HEADRACE_TEST_PYTHON") or sys.executable
"""What runs the members. Clients have an environment of their own, in which Headrace's packages are not."""
START_LIMIT_S: Final = 40.0
ECHO: Final = """
backends: [{name: echo, kind: echo}]
models: {echo: {targets: [{backend: echo, model: echo}], price: {input: 1, output: 2}}}
"""
# What a process says once it works; a gateway is asked instead.
_READY_WORDS: Final = {"workers": b"worker.ready", "scheduler": b"scheduler.started"}

Found = TypeVar("Found")


def until(probe: Callable[[], Found], limit_s: float = 30.0, what: str = "it did not come to that") -> Found:
    """The first answer of `probe` that counts as true. Raises AssertionError when there is none within the limit."""
    limit = time.monotonic() + limit_s
    while not (answer := probe()):
        assert time.monotonic() < limit, what
        time.sleep(0.01)
    return answer


class Member:
    """One process of ours: `room` is the package it runs; its log goes on over its lives."""

    def __init__(self, name: str, room: str, environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.environ = environ
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._room = room
        self._log = log
        self._log.touch()
        self._began_bytes = self._told_bytes = 0

    @property
    def url(self) -> str:
        """A gateway's base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """A gateway's port."""
        return int(self.environ["HEADRACE_HTTP_PORT"])

    @property
    def grpc_target(self) -> str:
        """Where a gateway's gRPC is."""
        return f"127.0.0.1:{self.environ['HEADRACE_GRPC_PORT']}"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts it; does not wait."""
        assert not self.runs, f"{self.name} runs already"
        self._began_bytes = self._log.stat().st_size
        self.starts += 1
        with self._log.open("ab") as log:
            self.process = _spawn(self._room, self.environ, log)

    def ready(self) -> bool:
        """Whether it works. Raises AssertionError where it has ended."""
        assert self.runs, f"{self.name} did not start:\n{self.log()}"
        if self._room != "gateway":
            return _READY_WORDS[self._room] in self._log.read_bytes()[self._began_bytes :]
        try:
            return httpx.get(self.url + "/readyz", trust_env=False, verify=False, timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, where it runs."""
        if self.runs:
            os.kill(self.pid, number)

    def wait(self, limit_s: float = 30) -> int:
        """Its exit status."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.wait(limit_s)

    def log(self) -> str:
        """Everything it has written to standard error."""
        return self._log.read_text(errors="replace")

    def news(self) -> str:
        """What it has written since this was asked last."""
        written = self._log.read_bytes()
        new, self._told_bytes = written[self._told_bytes :], len(written)
        return new.decode(errors="replace")


def _spawn(room: str, environ: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    words = [PYTHON, "-P", "-m", room]
    return subprocess.Popen(
        words, env=environ, cwd=environ["PYTHONPATH"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )


class Fleet:
    """Members `gateway-0`, `worker-0`, `scheduler-0`, … over one Valkey.

    `settings` are of the environment, without `HEADRACE_` and in any case: `Fleet(place, lease_s=1)`; `valkey` are more
    words for its command line; `tree` is where the code of the members lies.
    """

    def __init__(
        self,
        directory: Path,
        *,
        gateways: int = 1,
        workers: int = 1,
        schedulers: int = 1,
        config: str = ECHO,
        valkey: tuple[str, ...] = (),
        tree: Path = ROOT,
        **settings: str | float,
    ) -> None:
        self.directory = directory
        self._tree = tree
        self.redis = RedisServer(binaries()["valkey"], directory, options=valkey)
        self._file = directory / "headrace.yaml"
        self._file.write_text(config)
        given = {"lease_s": 1, "disconnect_grace_s": 1, "drain_s": 5, "api_keys": f"{KEY},{OTHER_KEY}", **settings}
        self._settings = {f"HEADRACE_{name.upper()}": str(value) for name, value in given.items()}
        self.members: dict[str, Member] = {}
        for room, count in (("gateway", gateways), ("workers", workers), ("scheduler", schedulers)):
            for number in range(count):
                self.add(f"{room.removesuffix('s')}-{number}", room)

    def add(self, name: str, room: str, **settings: str | float) -> Member:
        """One more member, not started; these settings are its own."""
        own = {f"HEADRACE_{key.upper()}": str(value) for key, value in settings.items()}
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")},
            "PYTHONPATH": str(self._tree),
            "HEADRACE_CONFIG": str(self._file),
            "HEADRACE_DATA_DIR": str(self.directory),
            "HEADRACE_REDIS_URL": self.redis.url,
            "HEADRACE_HTTP_PORT": str(free_port()),
            "HEADRACE_GRPC_PORT": str(free_port()) if room == "gateway" else "0",
            "HEADRACE_METRICS_PORT": "0",
            **self._settings,
            **own,
        }
        self.members[name] = member = Member(name, room, environ, self.directory / f"{name}.log")
        return member

    # --- all of them --------------------------------------------------------------------------------------------------

    def start(self) -> Fleet:
        """Itself, once Valkey and every member work."""
        self.redis.start()
        self._start(list(self.members.values()))
        return self

    def stop(self) -> None:
        """Ends every member, then Valkey, each by its own id."""
        members = [member for member in self.members.values() if member.runs]
        for member in members:
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGTERM)
        for member in members:
            try:
                member.wait(15)
            except subprocess.TimeoutExpired:
                member.signal(signal.SIGKILL)
                member.wait(10)
        self.redis.stop()

    # --- one of them --------------------------------------------------------------------------------------------------

    def start_again(self, *names: str) -> None:
        """Starts members that do not run, and waits until they work."""
        self._start([self.members[name] for name in names])

    def kill(self, name: str) -> None:
        """kill -9, and waits until it is gone."""
        self.members[name].signal(signal.SIGKILL)
        self.members[name].wait(10)

    def terminate(self, name: str, limit_s: float = 30) -> int:
        """SIGTERM; its exit status when it has drained."""
        self.members[name].signal(signal.SIGTERM)
        return self.members[name].wait(limit_s)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it holds its connections and does nothing."""
        self.members[name].signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.members[name].signal(signal.SIGCONT)

    def url(self, number: int = 0) -> str:
        """The base URL of a gateway, without `/v1`."""
        return self.members[f"gateway-{number}"].url

    def client(self, number: int = 0, *, key: str = KEY, timeout_s: float = 20) -> httpx.Client:
        """A client of a gateway, with a key."""
        headers = {"authorization": f"Bearer {key}"}
        # `verify` only saves the time to load certificates that nobody asks for here.
        return httpx.Client(
            base_url=self.url(number), headers=headers, timeout=timeout_s, trust_env=False, verify=False
        )

    def cancel_all(self, *pools: str, keys_of_tenants: Sequence[str] = (KEY,)) -> None:
        """Has every job of these pools cancelled that has not ended, as its tenant would."""
        for pool in pools:
            left: list[bytes] = self.redis.command("ZRANGE", keys.deadlines(pool), 0, -1)
            for key in keys_of_tenants if left else ():
                with self.client(key=key) as owner:
                    for raw in left:
                        owner.post(f"/v1/jobs/{raw.decode()}/cancel")

    def logs(self) -> str:
        """What every member has written, each under its name."""
        return "\n".join(f"--- {member.name}\n{member.log()}" for member in self.members.values())

    def news(self) -> dict[str, str]:
        """What each member has written since this was asked last: what one test did is not the next one's fault."""
        return {name: member.news() for name, member in self.members.items()}

    def _start(self, members: Sequence[Member]) -> None:
        for member in members:
            member.start()
        for member in members:
            until(member.ready, START_LIMIT_S, f"{member.name} did not get ready")
