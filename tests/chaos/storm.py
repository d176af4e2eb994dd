"""One chaos run from its plan to its figures: a fleet of its own, callers, a witness, the weather, and the verdict."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.checker import History, problems, recoveries
from tests.chaos.leaks import Leaks
from tests.chaos.load import Load
from tests.chaos.plan import Plan
from tests.chaos.record import Line, Recorder
from tests.chaos.weather import Weather
from tests.chaos.witness import Witness, ends_in
from tests.support.fleet import Fleet, until
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.stage import LEASE_S, POOL, Stage
from tests.support.tree import copied

RECOVERY_MARGIN_S: Final = 2.0
LEDGER_LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of a run."""

    problems: list[str]
    figures: dict[str, str]
    late: bool

    def tell(self) -> None:
        """Prints the figures, and what is wrong."""
        for name, figure in self.figures.items():
            sys.stdout.write(f"  {name:<34} {figure}\n")
        for problem in self.problems[:40]:
            sys.stdout.write(f"  WRONG: {problem}\n")


class Storm:
    """A run of a plan; its history is written to `history.jsonl` in `place`."""

    def __init__(self, plan: Plan, place: Path) -> None:
        self._plan = plan
        self._place = place
        fleet = Fleet(
            place,
            gateways=plan.gateways,
            workers=plan.workers,
            schedulers=plan.schedulers,
            valkey=EVERY_WRITE_KEPT,
            # The members run from a copy, so that an edit in the middle of a run changes nothing.
            tree=copied(place),
            lease_s=LEASE_S,
            disconnect_grace_s=10,
            drain_s=3,
            max_attempts=4,
            result_retention_s=plan.keep_s or 86_400,
            stream_retention_s=plan.keep_s or 3_600,
        )
        self.stage = Stage(fleet)
        self._recorder = Recorder(place / "history.jsonl")
        self._witness = Witness(fleet.redis, self._recorder, POOL, keep_after_s=plan.keep_s * 0.6 or 3_600)
        self._weather = Weather(self.stage, self._recorder)
        self._leaks = Leaks(self.stage)

    async def run(self) -> Result:
        """What came out of it."""
        began_s = time.monotonic()
        try:
            await asyncio.to_thread(self.stage.fleet.start)
            self._leaks.begin()
            load = await self._blow()
            await asyncio.to_thread(self.stage.mend)
            # First the ledger: what a gateway died over between the two, the scheduler submits only later.
            await asyncio.to_thread(self._read_ledger)
            await asyncio.to_thread(self._witness.keep_all)
            found = self._leaks.problems(emptied=bool(self._plan.keep_s), keep_s=self._plan.keep_s)
        finally:
            self._witness.stop()
            await asyncio.to_thread(self.stage.fleet.stop)
            self._recorder.close()
        return self._judge(load, found, time.monotonic() - began_s)

    async def _blow(self) -> Load:
        plan = self._plan
        calm_until_s = [0.0]

        def enough() -> bool:
            if not self._weather.over or load.begun < plan.jobs:
                return False
            calm_until_s[0] = calm_until_s[0] or time.monotonic() + plan.calm_minutes * 60
            return time.monotonic() >= calm_until_s[0]

        pace_s = plan.minutes * 60 / plan.jobs if plan.minutes else 0.0
        async with self.stage.caller(*range(plan.gateways)) as caller:
            load = Load(caller, self._recorder, plan.seed, enough, pace_s=pace_s)
            witness = asyncio.create_task(self._witness.run())
            watch = asyncio.create_task(self._leaks.watch(lambda: bool(calm_until_s[0])))
            try:
                await asyncio.gather(
                    load.run(plan.callers), self._weather.run(plan.faults(list(self.stage.fleet.members)))
                )
            finally:
                self._witness.stop()
                watch.cancel()
                await asyncio.gather(witness, watch, return_exceptions=True)
        return load

    def _read_ledger(self) -> None:
        """Takes note of how each journaled job ended, once the ledger has all ends."""
        file = self._place / "ledger.db"
        if file.exists():
            with suppress(AssertionError):  # then the checker says which
                until(lambda: None not in ends_in(file).values(), LEDGER_LIMIT_S)
            self._recorder.note("ledger", jobs=ends_in(file))

    def _judge(self, load: Load, leaks: Sequence[str], took_s: float) -> Result:
        lines = self._recorder.lines
        history = History.of(lines)
        found = [*problems(history), *leaks]
        for name, member in self.stage.fleet.members.items():
            if "Traceback" in (text := member.log()):
                found.append(f"{name} logged a traceback: {text[text.index('Traceback') :][:2_000]}")
        figures, late = _recovered(lines)
        return Result(found, {**_counted(lines, history, load, took_s), **figures, **self._leaks.figures}, late)


def _counted(lines: Sequence[Line], history: History, load: Load, took_s: float) -> dict[str, str]:
    faults = Counter(str(line["kind"]) for line in lines if line["act"] == "fault")
    ends = Counter(kept.state for kept in history.kept.values())
    reads = [line for job in history.reads.values() for line in job]
    joined = sum(line["connections"] for line in reads)
    resets = sum(event[1] == "reset" for line in reads for event in line["events"])
    kinds = Counter(asked.kind for asked in history.asked.values())
    unknown = sum(line["act"] == "unknown" for line in lines)
    return {
        "took": f"{took_s:.0f} s",
        "faults": ", ".join(f"{count} × {kind}" for kind, count in sorted(faults.items())) or "none",
        "jobs accepted": f"{len(history.asked)} ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})",
        "jobs in the store": f"{len(history.kept)} ({', '.join(f'{n} {state}' for state, n in sorted(ends.items()))})",
        "streams read": f"{len(reads)} over {joined} connections, {resets} resets, "
        f"{sum(len(line['events']) for line in reads)} events",
        "refused or unknown, asked again": f"{load.refused - unknown}, {unknown}",
        "jobs in the ledger": str(len(history.ledger)),
        "attempts over": str(sum(len(job) for job in history.overs.values())),
    }


def _recovered(lines: Sequence[Line]) -> tuple[dict[str, str], bool]:
    """The times from a worker's kill to its jobs' next attempts or ends, and whether they were too long."""
    found = recoveries(lines, LEASE_S)
    plain = sorted(one.wait_ms for one in found if one.plain)
    every = sorted(one.wait_ms for one in found)
    limit_ms = (LEASE_S + RECOVERY_MARGIN_S) * 1000
    figures = {
        "recovery p50, p99, most": f"{_told(plain)} of {len(plain)} jobs (lease + 2 s: {limit_ms / 1000:.1f} s)",
        "the same, store's faults included": f"{_told(every)} of {len(every)} jobs",
    }
    return figures, bool(plain) and percentile(plain, 0.99) > limit_ms


def percentile(ordered: Sequence[int], part: float) -> int:
    """The value below which this part of them lies; 0 of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0


def _told(ordered: Sequence[int]) -> str:
    shown = (percentile(ordered, 0.5), percentile(ordered, 0.99), percentile(ordered, 1))
    return ", ".join(f"{value_ms / 1000:.2f} s" for value_ms in shown)
