"""The bench's command line: which scenarios, against which systems, and where the figures go."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import uvloop

from tests.bench import compare, http_scenarios, stack
from tests.bench.batching_scenario import batching
from tests.bench.claim_scenario import claim
from tests.bench.cpu import cores
from tests.bench.fairness_scenario import fairness
from tests.bench.journal_scenario import journal
from tests.bench.load import LoadFailed
from tests.bench.options import Options, Profile
from tests.bench.overload_scenario import overload
from tests.bench.queue_scenarios import queue
from tests.bench.report import Table, machine, write_json
from tests.bench.stack import Setup

SCENARIOS: Final[Mapping[str, Callable[[Options], Awaitable[Table]]]] = {
    "nonstream": http_scenarios.nonstream,
    "streams": http_scenarios.streams,
    "ttft": http_scenarios.ttft,
    "queue": queue,
    "many": http_scenarios.many,
    "claim": claim,
    "batching": batching,
    "fairness": fairness,
    "overload": overload,
    "journal": journal,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SCENARIOS, []], metavar="name", help=", ".join(SCENARIOS))
    parser.add_argument("--systems", default="", help=f"of {', '.join(stack.SYSTEMS)}, arq; all that are installed")
    parser.add_argument("--short", action="store_true", help="a few seconds each, for work on the code")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of the stack")
    parser.add_argument("--profile", metavar="PART", help="profile this part: gateway, worker, scheduler, proxy")
    parser.add_argument("--profile-to", type=Path, metavar="FILE", help="the profile's text (profile-<part>.txt)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as JSON lines")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="put an earlier run's --json FILE beside this one")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the processes' logs here")
    return parser.parse_args()


def _options(asked: argparse.Namespace, directory: Path) -> Options:
    systems = tuple(name for name in asked.systems.split(",") if name) or (*stack.present(), "arq")
    unknown = [name for name in systems if name not in (*stack.SYSTEMS, "arq")]
    if unknown:
        raise SystemExit(f"no such system: {', '.join(unknown)}")
    to = asked.profile_to or Path(f"profile-{asked.profile}.txt")
    profile = Profile(asked.profile, to.resolve()) if asked.profile else None
    return Options(Setup(directory, cores(), workers=asked.workers), systems, asked.short, profile)


async def _run(asked: argparse.Namespace, options: Options) -> int:
    # Told to end, it ends what it started, as after Ctrl-C.
    if (ours := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ours.cancel)
    failed = 0
    earlier = asked.earlier
    for name in asked.names or SCENARIOS:
        try:
            table = await SCENARIOS[name](options)
        except LoadFailed as error:
            table = Table(name, "no figures", "-", failures=[str(error)])
        failed += len(table.failures)
        print(table.text(), flush=True)
        if compared := compare.beside(table, earlier, short=asked.short):
            print(compared.text(), flush=True)
        if asked.json:
            write_json(asked.json, [table], short=asked.short)
    return 1 if failed else 0


def main() -> int:
    """Runs what was asked for; 1 where a scenario failed."""
    asked = _arguments()
    # Read before anything runs: --json may name the same file, and a wrong one is told at once.
    asked.earlier = compare.read(asked.compare) if asked.compare else {}
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        directory = (asked.logs or Path(scratch)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        options = _options(asked, directory)
        os.sched_setaffinity(0, options.setup.cores.harness)
        try:
            return uvloop.run(_run(asked, options))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main())
