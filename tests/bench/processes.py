"""Starting the bench's processes on the core they belong to, waiting until they serve, and ending them by their id."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.cpu import on

ROOT: Final = Path(__file__).resolve().parents[2]
_TETHER: Final = ROOT / "deploy" / "local" / "tether.py"


class NotReady(RuntimeError):
    """A process ended, or did not serve in time."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running process and its log."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its id."""
        return self.popen.pid

    def last_lines(self, count: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def end(self, limit_s: float = 10) -> None:
        """Ends it: SIGTERM, then SIGKILL for what is left of its process group."""
        self.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(limit_s)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(limit_s)


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start: its words, what its environment has besides ours, and its cores."""

    name: str
    words: Sequence[str]
    cores: Iterable[int]
    environ: Mapping[str, str] = field(default_factory=dict[str, str])


def start(command: Command, logs: Path) -> Process:
    """The program, running in a session of its own."""
    log = logs / f"{command.name}.log"
    inherited = os.environ.get("PYTHONPATH")
    path = f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)
    with log.open("wb") as output, on(command.cores):
        popen = subprocess.Popen(
            tethered(command.words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path, **command.environ},
            cwd=logs,
            start_new_session=True,
        )
    return Process(command.name, popen, log)


def tethered(words: Sequence[str]) -> list[str]:
    """The words that run a program which ends with us, however we end. Its first word must be a path."""
    return [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *words]


def python(module: str, *words: str) -> list[str]:
    """The words that run one of our modules with this interpreter."""
    return [sys.executable, "-P", "-m", module, *words]


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(port: int, path: str, api_key: str = "") -> tuple[int, bytes]:
    """Status and body of a GET; status 0 where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {api_key}"} if api_key else {})
        reply = connection.getresponse()
        return reply.status, reply.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def wait_until_ready(process: Process, port: int, path: str, *, limit_s: float = 90) -> None:
    """Waits until the path answers 200. Raises NotReady with the end of the log."""

    def ready() -> bool:
        if process.popen.poll() is not None:
            raise NotReady(f"{process.name} ended with {process.popen.returncode}:\n{process.last_lines()}")
        return get(port, path)[0] == 200

    wait_until(ready, lambda: f"{process.name} does not serve {path}:\n{process.last_lines()}", limit_s=limit_s)


def wait_until(state: Callable[[], bool], trouble: Callable[[], str], *, limit_s: float = 90) -> None:
    """Waits for the state. Raises NotReady with what `trouble` says."""
    limit = time.monotonic() + limit_s
    while not state():
        if time.monotonic() > limit:
            raise NotReady(trouble())
        time.sleep(0.05)
