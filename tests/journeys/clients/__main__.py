"""Runs the journeys of every client, those in environments of their own too, which it makes once: `./just clients`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
PLACE: Final = ROOT / ".headrace" / "clients"
APART: Final = HERE / "apart"
NODE: Final = HERE / "node"
# Each set of clients, and what is not asked again there, as it would be the same.
SETS: Final = {"newest": (), "older": (f"--ignore={APART / 'test_node.py'}",)}
UNABLE: Final = 2
NOTHING_CHOSEN: Final = 5  # pytest's status where `-k` left no test
# What they would ask the internet for by themselves.
QUIET: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
# The fleet has the project's own environment, these clients theirs. They leave connections open, and LangChain's tests
# bring pytest-asyncio, which wants to be set up.
OWN: Final = ("-p", "no:asyncio", f"--confcutdir={APART}", "-W", "ignore:unclosed:ResourceWarning")


class Unable(Exception):
    """Why it can't run here, in words."""


def main(words: list[str]) -> int:
    """The first of pytest's statuses that is not good, or 2 where it can't run here; `words` go to pytest."""
    try:
        pythons = [_installed(name) for name in SETS]
        _install_node()
    except Unable as reason:
        sys.stderr.write(f"Not run: {reason}\n")
        return UNABLE
    runs = [_tested("in the project's environment", sys.executable, (str(HERE),), words, {})]
    given = {**QUIET, "HEADRACE_TEST_PYTHON": sys.executable}
    for python, (name, left_out) in zip(pythons, SETS.items(), strict=True):
        runs.append(_tested(f"locked in {name}.lock", str(python), (*OWN, *left_out, str(APART)), words, given))
    statuses = [status for status in runs if status != NOTHING_CHOSEN] or [NOTHING_CHOSEN]
    return next((status for status in statuses if status), 0)


def _tested(which: str, python: str, own: tuple[str, ...], words: list[str], given: dict[str, str]) -> int:
    _say(f"== clients {which}")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own, *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, check=False).returncode


# --- what they need ---------------------------------------------------------------------------------------------------


def _installed(name: str) -> Path:
    """The Python of a set of clients; installs it where the lock is another than the one installed. Raises Unable."""
    lock, place = APART / f"{name}.lock", PLACE / name
    python, mark = place / "bin" / "python", place / "installed"
    wanted = f"{sha256(lock.read_bytes()).hexdigest()} {place}"
    if mark.exists() and mark.read_text() == wanted:
        return python
    began_s = time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    uv = (sys.executable, "-m", "uv")
    _run(f"no environment could be made in {place}", *uv, "venv", "--quiet", "--python", sys.executable, str(place))
    _run(
        f"the packages of {lock.relative_to(ROOT)} could not be installed",
        *(*uv, "pip", "install", "--quiet", "--python", str(python), "--only-binary", ":all:"),
        *("--no-deps", "--require-hashes", "-r", str(lock)),
    )
    mark.write_text(wanted)
    _say(f"Installed {lock.relative_to(ROOT)} in {time.monotonic() - began_s:.0f} s.")
    return python


def _install_node() -> None:
    """The clients for Node, where there is Node; else their journeys are skipped. Raises Unable."""
    npm = shutil.which("npm")
    if npm is None:
        _say("npm is not installed here: no clients for Node (Debian: apt-get install npm)")
        return
    mark = NODE / "node_modules" / ".installed"
    wanted = sha256((NODE / "package-lock.json").read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return
    _run("npm could not install the clients for Node", npm, "ci", "--silent", "--prefix", str(NODE))
    mark.write_text(wanted)


def _run(fault: str, *words: str) -> None:
    if subprocess.run(words, cwd=ROOT, check=False).returncode:
        raise Unable(fault)


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
