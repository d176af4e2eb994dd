"""The scheduler's side of the queue, and what dashboards look at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from common import keys
from common.contracts import Priority
from common.queue.ending import Ending
from common.queue.side import CONTROL_LIFE_MS
from common.queue.words import LaneDepth, WorkerRow

TOLD_AFTER_MS: Final = 2_000
"""How long after a deadline a worker that still runs the job is told to end it: it should have by itself."""
TAKEN_AFTER_MS: Final = 5_000
"""How long after it was told the job is ended over its head."""


class Timing(Ending):
    """What happens on timers, and views of a pool."""

    async def reap(self, pool: str, *, most: int = 100) -> list[tuple[str, str, int]]:
        """(worker, job, fence) of jobs whose worker's lease lapsed, those workers shut out. Safe to send again."""
        reply = await self._store.call(
            "reap", keys.pool_prefix(pool), (keys.workers(pool), keys.capacity(pool)), (most,)
        )
        return [(reply[i].decode(), reply[i + 1].decode(), int(reply[i + 2])) for i in range(0, len(reply), 3)]

    async def promote(self, pool: str, *, most: int = 1000) -> int:
        """The number of delayed jobs whose time had come, now in their lanes. Safe to send again."""
        names = (
            keys.delayed(pool),
            keys.lanes(pool),
            keys.bell(pool),
            keys.waiting(pool),
            keys.fair(pool),
            keys.urgent_bell(pool),
        )
        return int(await self._store.call("promote", keys.pool_prefix(pool), names, (most,)))

    async def overdue(self, pool: str, *, most: int = 500) -> list[tuple[str, int, str]]:
        """(job, fence, worker) of jobs past their deadline, to be settled with these words. Safe to send again.

        The worker is '' where the job still waits; else it was told to end the job, and did not in time.
        """
        reply = await self._store.call(
            "overdue",
            keys.pool_prefix(pool),
            (keys.deadlines(pool),),
            (most, TOLD_AFTER_MS, TAKEN_AFTER_MS, CONTROL_LIFE_MS),
        )
        return [(reply[i].decode(), int(reply[i + 1]), reply[i + 2].decode()) for i in range(0, len(reply), 3)]

    async def drain(self, pool: str, worker: str) -> bool:
        """Whether the worker is there; it was told to take nothing new, end its work and leave. Safe to send again."""
        names = (keys.workers(pool), keys.capacity(pool), keys.control(pool, worker))
        return bool(await self._store.call("drain", keys.pool_prefix(pool), names, (worker, CONTROL_LIFE_MS)))

    async def abandoned(self, pool: str, *, most: int = 500) -> list[str]:
        """Jobs without readers whose grace has passed. Safe to send again."""
        now_ms = await self.now_ms()
        ids: list[bytes] = await self._store.command(
            "ZRANGEBYSCORE", keys.abandoned(pool), "-inf", now_ms, "LIMIT", 0, most
        )
        return [raw.decode() for raw in ids]

    async def now_ms(self) -> int:
        """The time by Redis's clock, which is the fleet's."""
        seconds, micros = await self._store.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000 + self._store.clock_offset_ms

    async def uptime_s(self) -> int:
        """How long the Redis server has been up."""
        text: bytes = await self._store.command("INFO", "server")
        found = [line for line in text.decode().splitlines() if line.startswith("uptime_in_seconds:")]
        return int(found[0].partition(":")[2])

    async def lanes(self, pool: str) -> list[LaneDepth]:
        """The lanes in which something waits."""
        names: list[bytes] = await self._store.command("SMEMBERS", keys.lanes(pool))
        return [await self._lane(pool, raw.decode()) for raw in sorted(names)]

    async def _lane(self, pool: str, name: str) -> LaneDepth:
        lane = keys.lane(pool, name)
        depth = await self._store.command("ZCARD", lane)
        head: list[bytes] = await self._store.command("ZRANGE", lane, 0, 0)
        oldest_ms = int(head[0][:13]) if head else None
        tokens = await self._store.command("HGET", keys.waiting(pool), f"t:{name}")
        return LaneDepth(pool, Priority(int(name[0])), name[2:], int(depth), oldest_ms, max(0, int(tokens or 0)))

    async def running(self, pool: str) -> int:
        """The number of jobs that workers hold."""
        names: list[bytes] = await self._store.command("ZRANGE", keys.workers(pool), 0, -1)
        held = (self._store.command("HLEN", keys.held(pool, raw.decode())) for raw in names)
        return sum(await asyncio.gather(*held))

    async def give_up_worker(self, pool: str, worker: str) -> bool:
        """Whether a worker of whom only held jobs are left is now listed for the reaper. Safe to send again."""
        return bool(await self._store.command("ZADD", keys.workers(pool), "NX", 0, worker))

    async def forget_dead(self, pool: str, *, before_ms: int) -> int:
        """The number of dead letters struck off that died before then. Safe to send again."""
        return int(await self._store.command("ZREMRANGEBYSCORE", keys.dead(pool), "-inf", before_ms))

    async def delayed_count(self, pool: str) -> int:
        """The number of jobs whose time has not come yet."""
        return int(await self._store.command("ZCARD", keys.delayed(pool)))

    async def workers(self, pool: str) -> list[WorkerRow]:
        """The registered workers of a pool."""
        flat: list[bytes] = await self._store.command("ZRANGE", keys.workers(pool), 0, -1, "WITHSCORES")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return await asyncio.gather(*(self._worker(pool, raw.decode(), int(float(score))) for raw, score in pairs))

    async def _worker(self, pool: str, worker: str, lease_expires_ms: int) -> WorkerRow:
        info, takes, held = await asyncio.gather(
            self._store.command("GET", keys.worker_info(pool, worker)),
            self._store.command("HGET", keys.capacity(pool), worker),
            self._store.command("HKEYS", keys.held(pool, worker)),
        )
        jobs = tuple(raw.decode() for raw in held)
        return WorkerRow(worker, pool, lease_expires_ms, orjson.loads(info) if info else {}, takes == b"0", jobs)

    async def stats(self, pool: str) -> dict[str, float]:
        """The pool's counters since ever, and what `note_rates` wrote; by model `jobs:` and `tokens:` worked off."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.stats(pool))
        return {name.decode(): float(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def take_turn_to_note(self, pool: str, *, for_ms: int) -> bool:
        """Whether the caller is the one to note rates; nobody else is for the next `for_ms`."""
        return await self._store.command("SET", keys.noting(pool), 1, "NX", "PX", for_ms) is not None

    async def note_rates(self, pool: str, rates: dict[str, float]) -> None:
        """Writes measured rates beside the counters."""
        flat = [item for pair in rates.items() for item in pair]
        await self._store.command("HSET", keys.stats(pool), *flat)

    async def usual_answers(self, pool: str, models: Sequence[str]) -> dict[tuple[Priority, str], float]:
        """How many tokens the last answers of each of these models' lanes had, in the mean; without unknown ones."""
        lanes = [(priority, model) for model in models for priority in Priority]
        fields = [f"m:{priority.value}:{model}" for priority, model in lanes]
        noted: list[bytes | None] = await self._store.command("HMGET", keys.fair(pool), *fields)
        # Mean ms, mean cost, mean answer: the third is missing until an answer told it.
        words = {lane: raw.split() for lane, raw in zip(lanes, noted, strict=True) if raw}
        return {lane: float(means[2]) for lane, means in words.items() if len(means) > 2}

    async def sweep_fair(self, pool: str) -> int:
        """The number of tenants' fair-share times forgotten that say nothing any more. Safe to send again."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.fair(pool))
        by_lane: dict[str, list[bytes]] = {}
        for raw in flat[::2]:
            lane = lane_of_fair_field(raw.decode())
            if lane is not None:
                by_lane.setdefault(lane, []).append(raw)
        removed = 0
        for lane, fields in by_lane.items():
            for start in range(0, len(fields), 1000):
                removed += await self._sweep_lane(pool, lane, fields[start : start + 1000])
        return removed

    async def _sweep_lane(self, pool: str, lane: str, fields: list[bytes]) -> int:
        return int(await self._store.call("sweep", keys.pool_prefix(pool), (keys.fair(pool),), (lane, *fields)))


def lane_of_fair_field(field: str) -> str | None:
    """The lane in which a field of the fair-share hash is a tenant's time; None for any other field.

    It is `f:<lane>:<tenant>`, and a tenant's id has no colon.
    """
    kind, _, rest = field.partition(":")
    return rest.rpartition(":")[0] if kind == "f" else None
