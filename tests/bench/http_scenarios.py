"""Over HTTP: what requests and streams cost in CPU, what is added to the first token, how many streams fit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench import stack
from tests.bench.cpu import Meter, memory
from tests.bench.load import Closed, Lane, LoadFailed, Tally, chat, closed_loop, open_loop, percentile
from tests.bench.options import Options
from tests.bench.processes import NotReady
from tests.bench.report import Table, Value
from tests.bench.stack import SYSTEMS, System, Upstream
from tests.bench.upstream import SCRIPTS

_SETTLE_S: Final = 0.3
_IDLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Bed:
    """One system under test with the stand-in behind it."""

    system: System
    upstream: Upstream
    options: Options

    def meter(self) -> Meter:
        """A meter over the system's parts and the harness."""
        return Meter({**self.system.parts, "upstream": self.upstream.process.pid})


@contextmanager
def bed(name: str, options: Options) -> Generator[Bed]:
    """The system by that name, started and ready."""
    with stack.upstream(options.setup) as upstream, SYSTEMS[name](options.setup, upstream) as system:
        yield Bed(system, upstream, options)


async def _each(
    systems: Iterable[str], options: Options, table: Table, measure: Callable[[Bed], Awaitable[dict[str, Value]]]
) -> Table:
    """The table with a row for each system, or the reason why there is none."""
    for name in systems:
        try:
            with bed(name, options) as made:
                table.add(await measure(made))
        except (LoadFailed, NotReady) as error:
            table.failures.append(f"{name}: {error}")
    return table


# --- 1 and 2: CPU -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """A closed loop over one of the stand-in's models."""

    model: str
    stream: bool
    connections: int
    total: int
    short_total: int

    def plan(self, at: System, total: int) -> Closed:
        """The load for this system."""
        request = chat(at.target, self.model, stream=self.stream)
        ramp_s = SCRIPTS[self.model].lasts_s
        return Closed(request, at.target.port, self.connections, total, ramp_s)


NONSTREAM: Final = Shape("bench-instant", stream=False, connections=32, total=5000, short_total=1000)
STREAMS: Final = Shape("bench-stream", stream=True, connections=128, total=1500, short_total=300)


async def nonstream(options: Options) -> Table:
    """CPU seconds for 1,000 non-stream requests."""
    table = Table(
        "nonstream",
        "CPU per 1,000 non-stream requests",
        "32 connections kept busy (closed loop), stand-in answers at once, whole system on one core, load and "
        "stand-in on another; user + system seconds of all its processes over /proc; every answer's text compared",
        reach="headrace ≤ 1.5 s of CPU",
    )
    return await _cost(NONSTREAM, table, options)


async def streams(options: Options) -> Table:
    """CPU seconds for 1,000 streams."""
    table = Table(
        "streams",
        "CPU per 1,000 streams of 64 tokens",
        "128 connections kept busy (closed loop), stand-in: first token after 50 ms, 10 ms between; whole system on "
        "one core; every token of every stream compared",
        reach="headrace ≤ 8 s of CPU",
    )
    return await _cost(STREAMS, table, options)


async def _cost(shape: Shape, table: Table, options: Options) -> Table:
    return await _each(options.http_systems, options, table, lambda made: _measured(shape, made))


async def _measured(shape: Shape, made: Bed) -> dict[str, Value]:
    system, options = made.system, made.options
    total = shape.short_total if options.short else shape.total
    # Imports, pools and caches are filled before anything counts.
    await closed_loop(shape.plan(system, max(shape.connections * 2, total // 10)))
    idle_share = await _idle_share(made) if system.parts and not options.short else None
    seen = made.upstream.counts().requests
    with options.watched(system.parts):
        meter = made.meter()
        tally = await closed_loop(shape.plan(system, total))
        await asyncio.sleep(_SETTLE_S)
        spent = meter.spent_s()
        others = 100 * meter.others_share()
    if (asked := made.upstream.counts().requests - seen) != total:
        raise LoadFailed(f"{total} requests went in, the upstream saw {asked}")
    row = {**_cost_row(made, tally, spent, idle_share), "others %": others}
    if shape.stream:
        row["TTFT p50 ms"] = 1000 * percentile(tally.first_s, 0.5)
    return row


async def _idle_share(made: Bed) -> float:
    meter = made.meter()
    await asyncio.sleep(_IDLE_S)
    spent = meter.spent_s()
    return 100 * sum(spent[name] for name in made.system.parts) / _IDLE_S


def _cost_row(made: Bed, tally: Tally, spent: dict[str, float], idle_share: float | None) -> dict[str, Value]:
    per_1000 = {name: seconds * 1000 / tally.done for name, seconds in spent.items()}
    name = made.system.target.name
    row: dict[str, Value] = {"system": f"{name} {stack.version_of(name)}".strip()}
    row["CPU s"] = sum(per_1000[part] for part in made.system.parts) if made.system.parts else None
    row.update({part: per_1000[part] for part in (*made.system.parts, "upstream", "client")})
    row.update({"requests/s": tally.done / tally.wall_s, "n": tally.done, "idle %": idle_share})
    row.update({"p50 ms": 1000 * percentile(tally.total_s, 0.5), "p99 ms": 1000 * percentile(tally.total_s, 0.99)})
    return row


# --- 3: added time to the first token ---------------------------------------------------------------------------------


async def ttft(options: Options) -> Table:
    """Milliseconds that a system adds to the first token."""
    table = Table(
        "ttft",
        "time to first token added over calling the upstream directly",
        "streams of 64 tokens (50 ms, then 10 ms between) at 10 a second each to the upstream and to the system, in "
        "turns at Poisson times within one run; added = difference of the percentiles",
        reach="headrace ≤ 3 ms p50, ≤ 8 ms p99",
    )
    return await _each([name for name in options.http_systems if name != "direct"], options, table, _added)


async def _added(made: Bed) -> dict[str, Value]:
    samples = 60 if made.options.short else 400
    with stack.direct(made.options.setup, made.upstream) as straight:
        sides = [straight.target, made.system.target]

    def lanes() -> list[Lane]:
        return [Lane(chat(side, "bench-stream", stream=True), side.port) for side in sides]

    await open_loop(lanes(), rate_per_s=10, samples=20)
    measured = lanes()
    meter = made.meter()
    with made.options.watched(made.system.parts):
        await open_loop(measured, rate_per_s=10, samples=samples)
    return {**_added_row(made, *(lane.tally for lane in measured)), "others %": 100 * meter.others_share()}


def _added_row(made: Bed, straight: Tally, through: Tally) -> dict[str, Value]:
    name = made.system.target.name
    row: dict[str, Value] = {"system": f"{name} {stack.version_of(name)}".strip(), "n": through.done}
    for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        before, after = (1000 * percentile(tally.first_s, share) for tally in (straight, through))
        row.update({f"direct {label} ms": before, f"{label} ms": after, f"added {label} ms": after - before})
    return row


# --- 5: many streams at once ------------------------------------------------------------------------------------------


async def many(options: Options) -> Table:
    """Memory of the gateway with thousands of streams open, none losing a token."""
    count, ramp_s = (1000, 4.0) if options.short else (5000, 20.0)
    model = "bench-slow" if options.short else "bench-long"
    table = Table(
        "many",
        f"{count:,} concurrent SSE streams",
        f"{count:,} connections opened over {ramp_s:.0f} s, each a stream of {SCRIPTS[model].tokens} tokens, one a "
        "second, all open at once; system, load and stand-in share the machine's cores; every token compared; memory "
        "of the gateway's process when all are open, less before",
        reach="5,000 streams, no token lost, gateway ≤ 40 KiB a stream",
    )
    shared = options.setup.with_system_everywhere(count + 64)
    placed = Options(shared, options.systems, options.short, options.profile)
    systems = [name for name in options.http_systems if name in ("passthrough", "headrace")]
    return await _each(systems, placed, table, lambda made: _crowd(made, model, count, ramp_s))


async def _crowd(made: Bed, model: str, count: int, ramp_s: float) -> dict[str, Value]:
    target = made.system.target
    request = chat(target, model, stream=True)
    await closed_loop(Closed(chat(target, "bench-stream", stream=True), target.port, 64, 256))
    front = made.system.parts.get("gateway") or made.system.parts["proxy"]
    before, meter, tally = memory(front), made.meter(), Tally()
    plan = Closed(request, target.port, count, count, ramp_s)
    with made.options.watched(made.system.parts):
        load = asyncio.create_task(closed_loop(plan, tally))
        while tally.flowing < count and not load.done():  # noqa: ASYNC110 - an event for it would cost every token
            await asyncio.sleep(0.05)
        full = memory(front)
        await load
    spent = meter.spent_s()
    row: dict[str, Value] = {"system": target.name, "most at once": tally.most_flowing, "whole": tally.done}
    row["gateway KiB a stream"] = (full.rss_kib - before.rss_kib) / count
    row["PSS KiB a stream"] = (full.pss_kib - before.pss_kib) / count
    row["gateway RSS MiB"] = full.rss_kib / 1024
    row["TTFT p50 ms"], row["TTFT p99 ms"] = (1000 * percentile(tally.first_s, share) for share in (0.5, 0.99))
    row.update({f"{name} CPU s": seconds for name, seconds in spent.items()})
    if tally.most_flowing < count:
        raise LoadFailed(f"only {tally.most_flowing} of {count} streams were open at once")
    return row
