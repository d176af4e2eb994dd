"""Whether a tenant at 100 times the load holds a quiet one up, and whether every class keeps its slots."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from common.contracts import Priority
from common.queue import SLACK_MS
from tests.bench import stack
from tests.bench.arrivals import Ask, Asks, Callers, Seen, callers, fail_on_wrong, first_ms, p50_p99, paired, waits_ms
from tests.bench.cpu import Meter
from tests.bench.load import LoadFailed
from tests.bench.options import Options
from tests.bench.processes import get
from tests.bench.report import Table, Value
from tests.bench.stack import API_KEY, Deployment, Setup, System, Upstream, configuration, deployed
from tests.bench.upstream import SCRIPTS
from tests.bench.visits import Visit, decode

MODEL: Final = "bench-second"
WORKERS: Final = 2
SLOTS_EACH: Final = 10
TOKENS: Final = (5, 15)
QUIET_TENANTS: Final = 4
QUIET_PER_S: Final = 1.0
NOISY_PER_S: Final = 100.0
CLASS_LOADS_PER_S: Final = {Priority.INTERACTIVE: 30.0, Priority.STANDARD: 10.0, Priority.BATCH: 10.0}
_NOISY_KEY: Final = "sk-bench-noisy-0123456789"
_QUIET_KEYS: Final = tuple(f"sk-bench-quiet-{number}-012345" for number in range(QUIET_TENANTS))


def _jobs(api_key: str, priority: Priority, seed: int) -> Callable[[], Ask]:
    """Jobs that nobody waits for, of the same cost as a quiet tenant's calls."""
    chats = Asks(MODEL, TOKENS, [api_key], seed, kind=priority.label)

    def job() -> Ask:
        chat = chats()
        body = {**chat.body, "stream": False}
        submission = {"endpoint": "/v1/chat/completions", "body": body, "priority": priority.label}
        return dataclasses.replace(chat, body=submission, path="/v1/jobs")

    return job


def mean_s(model: str, tokens: tuple[int, int]) -> float:
    """How long an answer takes at the mean, where lengths are even between the bounds."""
    return dataclasses.replace(SCRIPTS[model], tokens=sum(tokens) // 2).lasts_s


@dataclass(frozen=True, slots=True)
class Bed:
    """The stack, the stand-in behind it, and those who call."""

    system: System
    upstream: Upstream
    callers: Callers

    def meter(self) -> Meter:
        """A meter over the system's parts and the stand-in."""
        return Meter({**self.system.parts, "upstream": self.upstream.process.pid})

    def visits(self) -> list[Visit]:
        """What the stand-in has seen."""
        return decode(get(self.upstream.port, "/log")[1])


@contextmanager
def started(
    setup: Setup, model: str, slots_each: int, environ: Mapping[str, str]
) -> Generator[tuple[System, Upstream]]:
    """The stack with as many slots as its workers have, in front of the stand-in."""
    with stack.upstream(setup) as upstream:
        slots = WORKERS * slots_each
        document = configuration({"standin": upstream.url}, [model], kind="openai", concurrency=slots)
        with deployed(setup, Deployment(document, [document] * WORKERS, slots_each, environ)) as system:
            yield system, upstream


# --- the scenario -----------------------------------------------------------------------------------------------------


async def fairness(options: Options) -> Table:
    """A quiet tenant's queue wait beside a noisy one's flood, and each class's share of the slots."""
    slots = WORKERS * SLOTS_EACH
    table = Table(
        "fairness",
        "noisy tenants and lower classes",
        f"{slots} slots ({WORKERS} workers), an answer {mean_s(MODEL, TOKENS):.1f} s at the mean (0.5 to 1.5 s): "
        f"{slots}/s at most. Tenants: {QUIET_TENANTS} quiet ones with {QUIET_PER_S:.0f} streamed call a "
        "second each, alone and then beside one "
        f"that submits {NOISY_PER_S:.0f} jobs a second of the same class and cost; wait = sent to come to the "
        "upstream. Classes: "
        + ", ".join(f"{rate:.0f}/s {one.label}" for one, rate in CLASS_LOADS_PER_S.items())
        + f", counted once the batch class's slack of {SLACK_MS[Priority.BATCH] / 1000:.0f} s is over (short: not "
        "waited for); share = slot seconds",
        reach="quiet p99 ≤ 2 × idle + one mean service time; every class ≥ 5 % of the slots",
    )
    keys = {"HEADRACE_API_KEYS": ",".join([API_KEY, _NOISY_KEY, *_QUIET_KEYS]), "HEADRACE_JOURNAL": "off"}
    setup = options.setup.with_system_everywhere(SLOTS_EACH)
    for part in (_tenants, _classes):
        with started(setup, MODEL, SLOTS_EACH, keys) as (system, upstream):
            async with callers(system.target.port) as made:
                await part(Bed(system, upstream, made), table, options.short)
    return table


# --- tenants ----------------------------------------------------------------------------------------------------------


async def _tenants(bed: Bed, table: Table, short: bool) -> None:
    seconds = 12.0 if short else 75.0
    idle = await _quiet(bed, seconds)
    flood = asyncio.create_task(
        bed.callers.open_loop(
            _jobs(_NOISY_KEY, Priority.INTERACTIVE, 8), rate_per_s=NOISY_PER_S, seconds=seconds + 10, seed=3
        )
    )
    await asyncio.sleep(5)  # the flood has long filled every slot by then
    meter = bed.meter()
    loaded = await _quiet(bed, seconds)
    others = 100 * meter.others_share()
    noisy = await flood
    fail_on_wrong([*idle, *loaded, *(one for one in noisy if not one.refused)])
    _judge_tenants(bed, table, idle, loaded, noisy)
    table.rows[-2]["others %"] = others


def _quiet(bed: Bed, seconds: float) -> Awaitable[list[Seen]]:
    # In turn: of one Poisson process for all, each has one of its own.
    chats = Asks(MODEL, TOKENS, _QUIET_KEYS, 9, kind="quiet")
    return bed.callers.open_loop(chats, rate_per_s=QUIET_PER_S * QUIET_TENANTS, seconds=seconds, seed=4)


def _judge_tenants(bed: Bed, table: Table, idle: list[Seen], loaded: list[Seen], noisy: list[Seen]) -> None:
    visits = bed.visits()
    service_ms = 1000 * fmean(one.ended_s - one.came_s for one in visits if one.whole and one.ended_s is not None)
    bound_ms = 0.0
    for name, seen in (("quiet, alone", idle), ("quiet, beside the flood", loaded), ("the flood", noisy)):
        waits = waits_ms(paired(seen, visits))
        wait50, wait99 = p50_p99(waits)
        row: dict[str, Value] = {"who": name, "n": len(seen), "came": len(waits)}
        row.update({"wait p50 ms": wait50, "wait p99 ms": wait99})
        if name != "the flood":
            row["TTFT p50 ms"], row["TTFT p99 ms"] = p50_p99(first_ms(seen))
        if seen is loaded:
            row["bound ms"] = bound_ms
            if wait99 > bound_ms:
                table.failures.append(f"a quiet tenant's p99 wait is {wait99:.0f} ms, {bound_ms:.0f} are allowed")
        table.add(row)
        if seen is idle:
            bound_ms = 2 * wait99 + service_ms


# --- classes ----------------------------------------------------------------------------------------------------------


async def _classes(bed: Bed, table: Table, short: bool) -> None:
    slack_s = SLACK_MS[Priority.STANDARD if short else Priority.BATCH] / 1000
    seconds = 12.0 if short else 60.0
    began_s = time.monotonic() + slack_s + 3
    loads = [
        bed.callers.open_loop(_jobs(API_KEY, one, one), rate_per_s=rate, seconds=slack_s + 3 + seconds, seed=one)
        for one, rate in CLASS_LOADS_PER_S.items()
    ]
    seen = [one for some in await asyncio.gather(*loads) for one in some]
    fail_on_wrong(one for one in seen if not one.refused)
    busy_s = _busy_s(seen, bed.visits(), began_s, began_s + seconds)
    expected = set(CLASS_LOADS_PER_S) - ({Priority.BATCH} if short else set())
    for one in CLASS_LOADS_PER_S:
        share = 100 * busy_s.get(one.label, 0.0) / (WORKERS * SLOTS_EACH * seconds)
        table.add({"who": f"class {one.label}", "n": sum(row.kind == one.label for row in seen), "share %": share})
        if share < 5 and one in expected:
            table.failures.append(f"class {one.label} had {share:.1f} % of the slots")


def _busy_s(seen: Sequence[Seen], visits: Sequence[Visit], since_s: float, until_s: float) -> dict[str, float]:
    """Slot seconds of each kind of call between two moments."""
    busy_s: dict[str, float] = {}
    for one, visit in paired(seen, visits):
        ended_s = until_s if visit.ended_s is None else min(until_s, visit.ended_s)
        busy_s[one.kind] = busy_s.get(one.kind, 0.0) + max(0.0, ended_s - max(since_s, visit.came_s))
    if not busy_s:
        raise LoadFailed("no job came to the upstream")
    return busy_s
