"""`./just chaos` and `./just soak`: one storm by a plan, then the races, cuts and planted faults, and one verdict."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.chaos.plan import Plan
from tests.chaos.storm import Result, Storm
from tests.support.fleet import ROOT
from tests.support.runner import run

MINI: Final = {"jobs": 2_000, "callers": 24, "kills": 40, "store_kills": 4, "freezes": 4, "rolls": 0}
SOAK: Final = {"jobs": 10_000, "callers": 24, "kills": 200, "store_kills": 20, "freezes": 10, "rolls": 16}
FLEET: Final = {"gateways": 3, "workers": 3, "schedulers": 2}
SOAK_MINUTES: Final = 33.0
SOAK_CALM_MINUTES: Final = 20.0
KEEP_S: Final = 180
# What the storm does not do: each is a test with a figure of its own. Those that do not exist are not missed.
PARTS: Final = (
    "tests/chaos/test_checker.py",
    "tests/chaos/test_planted.py",
    "tests/chaos/test_crash_points.py",
    "tests/journeys/faults",
    "tests/journeys/test_resume.py",
    "tests/store/test_breaker*.py",
    "tests/store/*idempotency*.py",
    "tests/journeys/*idempotency*.py",
    "tests/store/test_full.py",
)


def main(words: Sequence[str]) -> int:
    """Runs it; 0 where nothing was wrong."""
    options = _parsed(words)
    if options.short:
        return _run_short(options.seed)
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    place: Path = options.out or ROOT / ".headrace" / "chaos" / f"{time.strftime('%m%d-%H%M%S')}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    plan = _plan(options, seed)
    sys.stdout.write(f"seed {seed}; {plan}\nhistory: {place / 'history.jsonl'}\n")
    began_s = time.monotonic()
    result = run(Storm(plan, place).run())
    sys.stdout.write("\n")
    result.tell()
    parts = 0 if options.soak or options.storm_only else _run_parts(seed)
    return _verdict(result, seed, parts, time.monotonic() - began_s)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./just chaos", description=__doc__)
    parser.add_argument("--soak", action="store_true", help="the hour instead of the ten minutes")
    parser.add_argument("--short", action="store_true", help="what every push runs, in three minutes")
    parser.add_argument("--storm-only", action="store_true", help="without the races, cuts and planted faults")
    parser.add_argument("--seed", type=int, help="repeats a run's choices")
    for name in MINI:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--minutes", type=float, help="spreads jobs and faults over so long; 0: as fast as they can")
    parser.add_argument("--calm-minutes", type=float, help="load without faults at the end, for the leak checks")
    parser.add_argument(
        "--keep-s", type=int, help="how long ended jobs stay, so that their keys' end can be waited for"
    )
    parser.add_argument("--out", type=_new_folder, help="the folder for history and logs: a new one, or an empty one")
    return parser.parse_args(words)


def _new_folder(text: str) -> Path:
    """The folder of this name, which holds nothing yet. Raises ArgumentTypeError."""
    place = Path(text)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise argparse.ArgumentTypeError(f"{place} is there and is no empty folder; name another one or take it away.")
    return place


def _plan(options: argparse.Namespace, seed: int) -> Plan:
    numbers = SOAK if options.soak else MINI
    given = {name: getattr(options, name) for name in numbers if getattr(options, name) is not None}
    minutes, calm = (SOAK_MINUTES, SOAK_CALM_MINUTES) if options.soak else (0.0, 0.0)
    return Plan(
        seed,
        **{**numbers, **FLEET, **given},
        minutes=minutes if options.minutes is None else options.minutes,
        calm_minutes=calm if options.calm_minutes is None else options.calm_minutes,
        keep_s=(KEEP_S if options.soak else 0) if options.keep_s is None else options.keep_s,
    )


def _run_parts(seed: int) -> int:
    """pytest's exit status over the parts, with this seed."""
    files = list(_present(PARTS))
    sys.stdout.write(f"\nand {len(files)} more: {' '.join(files)}\n")
    sys.stdout.flush()
    return _pytest(files, {"HEADRACE_TEST_SEED": str(seed), "HEADRACE_TEST_ALL": "1"})


def _run_short(seed: int | None) -> int:
    """pytest's exit status over the tests of this folder that don't need minutes each."""
    environ = {} if seed is None else {"HEADRACE_TEST_SEED": str(seed)}
    return _pytest(["-rfEs", "-m", "not slow", "tests/chaos"], environ)


def _pytest(words: Sequence[str], environ: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, check=False).returncode


def _present(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def _verdict(result: Result, seed: int, parts: int, took_s: float) -> int:
    wrong = [
        *([f"{len(result.problems)} problems"] if result.problems else []),
        *(["recovery too slow"] if result.late else []),
        *([f"tests failed (pytest: {parts})"] if parts else []),
    ]
    verdict = f"FAIL: {', '.join(wrong)}" if wrong else "PASS: nothing lost, doubled, skipped or repeated"
    sys.stdout.write(f"\n{verdict}; {took_s / 60:.1f} min; seed {seed}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
