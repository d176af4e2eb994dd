"""Runs Schemathesis over the document of a fleet of its own: `./just fuzz`. What is not an option here goes to it."""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.support.fleet import KEY, ROOT, Fleet, until
from tests.support.say import chat, submit

HERE: Final = Path(__file__).resolve().parent
PLACE: Final = ROOT / ".headrace" / "fuzz"
LOCK: Final = HERE / "schemathesis.lock"
CASES: Final = 3_000
# Of each operation in each phase that tries at random; the phases that don't have more than CASES by themselves.
EXAMPLES: Final = 25
DEAD_LETTERS: Final = 3
MODELS: Final = """
backends: [{name: echo, kind: echo}]
models:
  echo: {targets: [{backend: echo, model: echo}], price: {input: 1, output: 2}}
  org/echo:8b: {targets: [{backend: echo, model: echo}]}
"""
UNABLE: Final = 2
_GENERATED: Final = re.compile(r"(\d+) generated")


class Unable(Exception):
    """Why it can't run here, in words."""


def main() -> int:
    """0 where nothing was found and the cases were enough, 2 where it can't run here."""
    asked, more = _arguments()
    try:
        python = _installed()
    except Unable as reason:
        sys.stderr.write(f"Not run: {reason}\n")
        return UNABLE
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-") as directory:
        # A new one each time: a store of a run before would still have its jobs.
        place = Path(directory) if asked.logs is None else asked.logs / f"{asked.seed}-{os.getpid()}"
        place.mkdir(parents=True, exist_ok=True)
        # Nothing may be refused for there being much of it, and the jobs that are to die shall do so at once.
        fleet = Fleet(place, config=MODELS, max_lane_depth=10_000, max_attempts=1, breaker_failures=10_000)
        try:
            status, said = _run(python, _with_dead_letters(fleet.start()), asked, more)
            errors = sum(member.log().count('"level":"error"') for member in fleet.members.values())
        finally:
            fleet.stop()
    cases = sum(map(int, _GENERATED.findall(said)))
    verdict = f"nothing found, {errors} errors in the logs" if status == 0 else "FAULTS: see above"
    minutes = (time.monotonic() - began_s) / 60
    sys.stdout.write(f"seed {asked.seed}: {cases:,} cases in {minutes:.1f} minutes: {verdict}\n")
    return status or int(errors > 0 or cases < asked.cases)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help=f"fail on fewer ({CASES})")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"random tries at each operation ({EXAMPLES})")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="a new one each time")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep the processes' logs here, in a folder of the run's own"
    )
    return parser.parse_known_args()


def _with_dead_letters(fleet: Fleet) -> Fleet:
    """The fleet, once jobs have died in it: no request at random kills one."""
    with fleet.client() as client:
        for _ in range(DEAD_LETTERS):
            submit(client, chat(error="upstream_error"))
        path = "/v1/admin/dead-letters"
        until(lambda: len(client.get(path).json()["data"]) == DEAD_LETTERS, what="the jobs did not die")
    return fleet


def _run(python: Path, fleet: Fleet, asked: argparse.Namespace, more: list[str]) -> tuple[int, str]:
    """Schemathesis's exit status, and what it said, which is shown as it comes."""
    words = [str(python), "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "--no-color"]
    words += ["run", fleet.url() + "/docs/api", "--url", fleet.url(), "--seed", str(asked.seed)]
    words += ["--max-examples", str(asked.examples), *more]
    environ = {**os.environ, "HEADRACE_FUZZ_KEY": KEY, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    said: list[str] = []
    with subprocess.Popen(words, env=environ, cwd=fleet.directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            sys.stdout.write(line)
    return process.returncode, "".join(said)


# --- what it needs ----------------------------------------------------------------------------------------------------


def _installed() -> Path:
    """The Python that has Schemathesis; installs it where the lock is another than the one installed. Raises Unable."""
    python, mark = PLACE / "bin" / "python", PLACE / "installed"
    wanted = f"{sha256(LOCK.read_bytes()).hexdigest()} {PLACE}"
    if mark.exists() and mark.read_text() == wanted:
        return python
    shutil.rmtree(PLACE, ignore_errors=True)
    uv = (sys.executable, "-m", "uv")
    _do(f"no environment could be made in {PLACE}", *uv, "venv", "--quiet", "--python", sys.executable, str(PLACE))
    _do(
        f"the packages of {LOCK.relative_to(ROOT)} could not be installed",
        *(*uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes", "-r", str(LOCK)),
    )
    mark.write_text(wanted)
    return python


def _do(otherwise: str, *words: str) -> None:
    if subprocess.run(words, check=False).returncode:
        raise Unable(otherwise)


if __name__ == "__main__":
    sys.exit(main())
