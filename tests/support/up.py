"""`headrace up` as a test's own process: started in a directory of its own, found by its note, ended by its id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from deploy.local.child import ROOT
from tests.support.redis_server import free_port

CONFIG = """
backends: [{name: echo, kind: echo}]
models: {echo: {targets: [{backend: echo, model: echo}]}}
"""
READY_LIMIT_S = 40.0


def headrace(*words: str, environ: dict[str, str], limit_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A command's run to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.local.cli", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def clean_environ(**more: str) -> dict[str, str]:
    """This environment without settings of ours, and these added."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def processes_with(mark: str) -> dict[int, str]:
    """The processes whose environment or command line holds this text: id and command line."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if (
                state != "Z"
                and int(folder.name) != os.getpid()
                and mark.encode() in words + (folder / "environ").read_bytes()
            ):
                found[int(folder.name)] = words.replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended while we looked
    return found


class Up:
    """One `headrace up` with the scripted model only, unless `environ` says otherwise."""

    def __init__(self, place: Path, **environ: str) -> None:
        self.place = place
        self.data = place / "data"
        config = place / "headrace.yaml"
        config.write_text(CONFIG)
        self.environ = clean_environ(
            HEADRACE_CONFIG=str(config),
            HEADRACE_DATA_DIR=str(self.data),
            HEADRACE_HTTP_PORT=str(free_port()),
            HEADRACE_LEASE_S="2",
            **environ,
        )
        self.output = place / "output.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Up:
        """Itself, once it is ready."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deploy.local.cli", "up"],
                env=self.environ,
                cwd=self.place,
                stdout=output,
                stderr=output,
            )
        self.wait_for("headrace: ready on")
        return self

    def wait_for(self, words: str) -> None:
        """Returns once it has printed these words. Raises AssertionError if it ends first, or after a limit."""
        limit = time.monotonic() + READY_LIMIT_S
        while words not in self.output.read_text():
            assert self.process is not None
            assert self.process.poll() is None and time.monotonic() < limit, self.told()
            time.sleep(0.02)

    def told(self) -> str:
        """Everything it has said, and the ends of its logs."""
        logs = (f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.data.glob("log/*.log")))
        return "\n".join([self.output.read_text(), *logs])

    @property
    def state(self) -> dict[str, Any]:
        """What it noted about itself."""
        return json.loads((self.data / "up.json").read_text())

    def client(self) -> httpx.Client:
        """A client with its key."""
        state = self.state
        headers = {"authorization": f"Bearer {state['key']}"}
        return httpx.Client(base_url=state["url"], headers=headers, timeout=20, trust_env=False)

    def children(self) -> dict[int, str]:
        """Its processes: id and command line, itself not among them."""
        assert self.process is not None
        found = processes_with(str(self.data))
        return {pid: words for pid, words in found.items() if pid != self.process.pid}

    def child(self, words: str) -> int:
        """The id of the one child whose command line holds these words."""
        (pid,) = [pid for pid, line in self.children().items() if words in line]
        return pid

    def end(self, number: signal.Signals = signal.SIGTERM, limit_s: float = 40) -> int:
        """Its exit code after this signal."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(limit_s)

    def clean(self) -> None:
        """Ends it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
