"""One child process: started tied to us, its output in a file, ended politely and then for certain."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.clock import Clock

ROOT: Final = Path(__file__).resolve().parents[2]
_TETHER: Final = Path(__file__).with_name("tether.py")
_LARGEST_LOG_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Command:
    """A program to keep running. Stages stop from the highest to the lowest, each when the one above has gone.

    One that `may_leave` is not started again when it ends well: it was told to go.
    """

    name: str
    words: tuple[str, ...]
    log: Path
    stage: int
    grace_s: float
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    pass_fds: tuple[int, ...] = ()
    may_leave: bool = False


def python_words(module: str, *words: str) -> tuple[str, ...]:
    """The words that run a module of this checkout with this interpreter, whatever the current directory holds."""
    return (sys.executable, "-P", "-m", module, *words)


def python_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with this checkout on Python's path."""
    inherited = environ.get("PYTHONPATH")
    return {**environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)}


class Child:
    """A running Command."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process, clock: Clock) -> None:
        self.command = command
        self.pid = process.pid
        self._process = process
        self._clock = clock
        self._started_s = clock.monotonic_s()

    @classmethod
    async def start(cls, command: Command, clock: Clock) -> Child:
        """The command as a process in a session of its own, so that Ctrl-C reaches only us and we end it in order."""
        command.log.parent.mkdir(parents=True, exist_ok=True)
        shorten(command.log, _LARGEST_LOG_BYTES)
        with command.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_TETHER), str(os.getpid())),
                *command.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=command.environ,
                start_new_session=True,
                pass_fds=command.pass_fds,
            )
        return cls(command, process, clock)

    @property
    def age_s(self) -> float:
        """How long it has been running."""
        return self._clock.monotonic_s() - self._started_s

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Its exit code, once it has ended; the negative number of the signal that killed it."""
        return await self._process.wait()

    async def stop(self, hurry: asyncio.Event) -> int:
        """Its exit code after SIGTERM, and after SIGKILL where the grace (1 s once `hurry` is set) was not enough."""
        self._signal(signal.SIGTERM)
        ended = asyncio.ensure_future(self._process.wait())
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=self.command.grace_s, return_when=asyncio.FIRST_COMPLETED)
        if hurried.done():
            await asyncio.wait({ended}, timeout=min(1.0, self.command.grace_s))
        hurried.cancel()
        if not ended.done():
            self._signal(signal.SIGKILL)
        return await ended

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        return tail(self.command.log, count)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def tail(path: Path, count: int) -> str:
    """A file's last lines, or nothing where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 32_768))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def shorten(path: Path, largest_bytes: int) -> None:
    """Moves a log that has grown too large aside; its writers append, so they go on in the emptied file."""
    if path.exists() and path.stat().st_size > largest_bytes:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
