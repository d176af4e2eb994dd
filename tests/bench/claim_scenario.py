"""What a claim costs the server, from one waiting job to a million."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from common import keys
from common.contracts import Job, Outcome, Priority, State, new_job_id
from common.queue import Claim, Queue, Settlement, Submitted
from common.store import Store
from tests.bench.load import LoadFailed, percentile
from tests.bench.options import Options
from tests.bench.report import Table, Value
from tests.bench.stack import Setup, valkey

_POOL: Final = "bench"
_WORKER: Final = "bench.claimer"
_FILL: Final = 512
_DEPTHS: Final = (1, 1_000, 100_000, 1_000_000)
_SHORT_DEPTHS: Final = (1, 1_000, 20_000)
_BODY: Final = {"messages": [{"role": "user", "content": "nothing"}]}


@dataclass(frozen=True, slots=True)
class Spread:
    """How a backlog lies: over so many models and tenants, in one class or in all."""

    name: str
    models: int
    tenants: int
    classes: tuple[Priority, ...]

    def job(self, number: int) -> Job:
        """The backlog's next job."""
        model = f"m{number % self.models}"
        priority = self.classes[number // self.models % len(self.classes)]
        tenant = f"t{number % self.tenants}"
        return Job(new_job_id(_POOL), _POOL, tenant, "chat", model, _BODY, priority=priority, cost_tokens=200)

    @property
    def lanes(self) -> list[str]:
        """The lanes that it fills."""
        return [keys.lane_name(priority, f"m{model}") for model in range(self.models) for priority in self.classes]


_SPREADS: Final = (
    Spread("1 lane, 1 tenant", 1, 1, (Priority.INTERACTIVE,)),
    Spread("12 lanes, 50 tenants", 4, 50, tuple(Priority)),
)


class Backlog:
    """A pool's waiting jobs, held at a depth while one worker claims from it."""

    def __init__(self, store: Store, spread: Spread) -> None:
        self.store = store
        self.queue = Queue(store, most_in_lane=2_000_000)
        self.spread = spread
        self._number = 0

    async def fill(self, count: int) -> None:
        """Adds jobs."""
        while count > 0:
            some = min(count, _FILL)
            await asyncio.gather(*(self._submit() for _ in range(some)))
            count -= some

    async def _submit(self) -> None:
        self._number += 1
        admitted = await self.queue.submit(self.spread.job(self._number))
        if admitted.code is not Submitted.ACCEPTED:
            raise LoadFailed(f"a job was not accepted: {admitted.code.name}")

    async def depth(self) -> int:
        """How many wait."""
        return sum([int(await self.store.command("ZCARD", keys.lane(_POOL, lane))) for lane in self.spread.lanes])

    async def claim_us(self, most: int) -> float:
        """Server microseconds of one claim of `most` jobs; they are settled, and as many put in their place."""
        before = await self._script_us()
        claims = await self.queue.claim(_POOL, _WORKER, most=most, lanes=self.spread.lanes)
        spent = await self._script_us() - before
        if not claims or len(claims) != most:
            raise LoadFailed(f"{most} were claimed, {len(claims or ())} came")
        await asyncio.gather(*(self._settle(claim) for claim in claims))
        await self.fill(most)
        return spent

    async def _settle(self, claim: Claim) -> None:
        end = Settlement(Outcome(State.SUCCEEDED, finish_reason="stop"))
        settled = await self.queue.settle(_POOL, claim.job.id, _WORKER, claim.fence, end)
        if not settled.done:
            raise LoadFailed(f"a job was not settled: {settled.name}")

    async def _script_us(self) -> int:
        text: bytes = await self.store.command("INFO", "commandstats")
        found = [line for line in text.decode().splitlines() if line.startswith("cmdstat_evalsha:")]
        return int(found[0].partition("usec=")[2].partition(",")[0])

    async def memory_bytes(self) -> int:
        """What the server holds."""
        text: bytes = await self.store.command("INFO", "memory")
        found = [line for line in text.decode().splitlines() if line.startswith("used_memory:")]
        return int(found[0].partition(":")[2])


@asynccontextmanager
async def _backlog(spread: Spread, setup: Setup) -> AsyncGenerator[Backlog]:
    with valkey(setup, append_only=False) as server:
        store = Store.from_url(server.url)
        try:
            backlog = Backlog(store, spread)
            await backlog.queue.beat(_POOL, _WORKER, lease_s=3600, info={}, register=True)
            yield backlog
        finally:
            await store.close()


async def claim(options: Options) -> Table:
    """Server microseconds a claim, by depth."""
    table = Table(
        "claim",
        "cost of a claim by queue depth",
        "the claim script's own time in the server (INFO commandstats around each call), median of the rounds; after "
        "each the job is settled and another put in, so that the depth stays; Valkey without AOF (so that filling it "
        "takes minutes, not more); the first depth is one job in each lane",
        reach="grows ≤ 2× from depth 1 to 1,000,000",
    )
    for spread in _SPREADS:
        depths = _SHORT_DEPTHS if options.short else _DEPTHS
        async with _backlog(spread, options.setup) as backlog:
            for row in await _series(backlog, depths, 60 if options.short else 300):
                table.add(row)
    return table


async def _series(backlog: Backlog, depths: tuple[int, ...], rounds: int) -> list[dict[str, Value]]:
    rows: list[dict[str, Value]] = []
    for least in depths:
        depth = max(least, len(backlog.spread.lanes))
        bytes_a_job = await _filled_to(backlog, depth)
        ones = [await backlog.claim_us(1) for _ in range(rounds)]
        row: dict[str, Value] = {"backlog": backlog.spread.name, "depth": depth}
        row.update({"claim µs": percentile(ones, 0.5), "p99 µs": percentile(ones, 0.99)})
        row["× first"] = percentile(ones, 0.5) / float(rows[0]["claim µs"] or 1) if rows else 1.0
        if depth >= 1_000:
            many = [await backlog.claim_us(32) for _ in range(rounds // 10)]
            row["µs a job, 32 a claim"] = percentile(many, 0.5) / 32
            row["bytes a job"] = bytes_a_job
        rows.append(row)
    return rows


async def _filled_to(backlog: Backlog, depth: int) -> int:
    before_bytes, missing = await backlog.memory_bytes(), depth - await backlog.depth()
    await backlog.fill(missing)
    return (await backlog.memory_bytes() - before_bytes) // max(1, missing)
