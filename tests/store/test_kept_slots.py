"""Slots kept for interactive work: from whom, how long, who is woken instead, and that every class has its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from common import keys
from common.contracts import Priority
from common.queue import KEPT_AFTER_MS, Claim, batch_digest
from tests.store.sharing import fill, spent
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, number_of, rig

LOWER = [Priority.STANDARD, Priority.BATCH]


async def interactive_came(r: Rig, worker: str = "w", *, number: int = 90_000) -> None:
    """An interactive job was given to a worker just now, and has ended."""
    await r.submit(a_job(number))
    [claim] = await r.claim(1, worker)
    assert claim.job.priority is Priority.INTERACTIVE
    await r.settle(claim, worker)


def rung(server: RedisServer) -> tuple[int, int]:
    """Rings for interactive work, and for other."""
    return server.command("LLEN", keys.urgent_bell(POOL)), server.command("LLEN", keys.bell(POOL))


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", LOWER)
async def test_the_last_slots_go_to_interactive_work_alone_while_some_came_lately(
    redis_server: RedisServer, priority: Priority
) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await interactive_came(r)
        await fill(r, 100, 20, priority=priority)
        claims = await r.claim(10)
        assert [number_of(claim.job.id) for claim in claims] == list(range(100, 108))
        assert await r.numbers(2) == []
        await r.submit(a_job(1))
        assert await r.numbers(2) == [1]


@pytest.mark.parametrize("priority", LOWER)
async def test_without_interactive_work_nothing_is_kept(redis_server: RedisServer, priority: Priority) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await fill(r, 100, 20, priority=priority)
        claims = await r.queue.claim(POOL, "w", most=10, lanes=("1:m", "2:m"))
        assert claims is not None
        assert (len(claims), claims.kept) == (10, False)
        assert len(await r.numbers(1)) == 1


async def test_a_worker_that_keeps_nothing_is_not_bound_by_interactive_work(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await interactive_came(r)
        await fill(r, 100, 20, priority=Priority.BATCH)
        claims = await r.claim(10)
        assert len(claims) == 10


async def test_slots_are_kept_from_the_claim_on_that_gives_the_first_interactive_job(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await r.submit(a_job(1))
        await fill(r, 100, 20, priority=Priority.BATCH)
        assert await r.numbers(10) == [1, *range(100, 107)]


async def test_slots_are_kept_no_longer_than_half_a_minute_after_the_last_interactive_job(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker(lease_s=1_000)
        await interactive_came(r)
        await fill(r, 100, 20, priority=Priority.BATCH)
        r.later(KEPT_AFTER_MS - 5_000)
        assert await r.numbers(2) == []
        r.later(5_001)
        assert await r.numbers(2) == [100, 101]


async def test_each_interactive_job_begins_the_half_minute_anew_noted_at_most_once_a_second(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker(lease_s=1_000)

        def noted() -> bytes:
            return redis_server.command("HGET", keys.fair(POOL), "u")

        await interactive_came(r)
        redis_server.command("HINCRBY", keys.fair(POOL), "u", 500)  # the test's own time counts for nothing
        first = noted()
        await r.submit(a_job(1), a_job(2))
        await r.numbers(1)
        assert noted() == first
        r.later(1_600)
        await r.numbers(1)
        assert 1_100 <= int(noted()) - int(first) < 10_000


async def test_a_note_from_before_the_clock_went_back_keeps_nothing_and_is_replaced(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker(lease_s=10_000)
        r.later(1_000_000)
        await interactive_came(r)
        r.later(-1_000_000)
        await fill(r, 100, 20, priority=Priority.BATCH)
        assert await r.numbers(2) == [100, 101]
        await interactive_came(r, number=90_001)
        assert await r.numbers(2) == []


async def test_jobs_of_one_key_are_not_taken_along_into_kept_slots(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await interactive_came(r)
        await fill(r, 100, 20, priority=Priority.BATCH, batch_key="k")
        assert len(await r.numbers(10)) == 8


@pytest.mark.parametrize(("most", "kept"), [(2, True), (3, False)])
async def test_a_claim_that_finds_nothing_tells_too_whether_slots_are_kept(
    redis_server: RedisServer, most: int, kept: bool
) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await interactive_came(r)
        claims = await r.queue.claim(POOL, "w", most=most, lanes=("0:m", "2:m"))
        assert claims is not None
        assert (claims, claims.kept) == ([], kept)


# --- bells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("priority", "rings"), [(Priority.INTERACTIVE, (1, 0)), *((low, (0, 1)) for low in LOWER)])
async def test_whatever_begins_to_wait_rings_at_the_bell_of_its_class(
    redis_server: RedisServer, priority: Priority, rings: tuple[int, int]
) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, priority=priority))
        assert rung(redis_server) == rings
        [claim] = await r.claim()
        assert rung(redis_server) == (0, 0)
        await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=False)
        assert rung(redis_server) == rings
        await r.settle((await r.claim())[0])
        await r.submit(a_job(2, priority=priority, delay_ms=1_000))
        assert rung(redis_server) == (0, 0)
        r.later(1_000)
        assert await r.queue.promote(POOL) == 1
        assert rung(redis_server) == rings


@pytest.mark.parametrize("priority", Priority)
async def test_a_ring_on_a_workers_own_bell_tells_the_class(redis_server: RedisServer, priority: Priority) -> None:
    async with rig(redis_server) as r:
        await r.queue.beat(POOL, "w", lease_s=60, info={}, concurrency=9, register=True)
        await r.submit(a_job(1, batch_key="k"))
        await r.claim()
        await r.submit(a_job(2, batch_key="k", priority=priority))
        assert redis_server.command("LPOP", keys.worker_bell(POOL, "w")) == str(int(priority)).encode()


async def test_rings_for_interactive_work_end_with_the_last_such_job_though_other_work_waits(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2), a_job(3, priority=Priority.BATCH))
        await r.claim(1)
        assert rung(redis_server) == (2, 1)
        await r.claim(1)
        assert rung(redis_server) == (0, 1)


async def test_a_lane_that_nobody_here_serves_keeps_its_rings(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2, model="other"))
        await r.claim(1)
        assert rung(redis_server) == (2, 0)


async def test_what_is_held_back_rings_once_for_a_worker_that_keeps_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await interactive_came(r)
        await r.submit(a_job(1, priority=Priority.BATCH))
        redis_server.command("DEL", keys.bell(POOL))  # this worker heard it
        for _ in range(2):
            assert await r.numbers(2) == []
            assert rung(redis_server) == (0, 1)
        assert await r.numbers(3) == [1]
        assert rung(redis_server) == (0, 0)


async def test_where_nothing_is_held_back_nobody_is_rung_for(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        await r.worker()
        await interactive_came(r)
        await r.submit(a_job(1, priority=Priority.BATCH), a_job(2, model="other"))
        redis_server.command("DEL", keys.bell(POOL))
        assert await r.numbers(3) == [1]
        assert rung(redis_server)[1] == 0


async def test_a_job_held_back_by_its_warm_worker_is_any_other_workers(redis_server: RedisServer) -> None:
    async with rig(redis_server, kept_slots=2) as r:
        for name in ("warm", "other"):
            await r.queue.beat(POOL, name, lease_s=60, info={}, concurrency=9, register=True)
        await r.submit(a_job(1, priority=Priority.BATCH, batch_key="k"))
        assert await r.numbers(9, "warm") == [1]
        await interactive_came(r, "warm")
        await r.submit(a_job(2, priority=Priority.BATCH, batch_key="k"))
        assert (rung(redis_server), await r.numbers(2, "warm")) == ((0, 0), [])
        assert rung(redis_server) == (0, 1)
        assert redis_server.command("HGET", keys.warm(POOL), batch_digest("k")) is None
        assert await r.numbers(9, "other") == [2]


# --- shares -----------------------------------------------------------------------------------------------------------


class Slots:
    """A worker's slots in a queue whose clock is moved by hand: which class held how much of their time."""

    def __init__(self, r: Rig, slots: int, took_ms: dict[int, int]) -> None:
        self.r = r
        self.slots = slots
        self.took_ms = took_ms
        self.now_ms = 0
        self.running: list[tuple[int, int, Claim]] = []
        self.held_ms = Counter[int]()
        self.numbers: Iterator[int] = count(1)

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    async def submit(self, **changes: Any) -> None:
        await self.r.submit(a_job(next(self.numbers), cost_tokens=10, deadline_in_ms=10**9, **changes))

    async def claim(self) -> None:
        for claim in await self.r.claim(self.free) if self.free else []:
            priority = int(claim.job.priority)
            self.running.append((self.now_ms + self.took_ms[priority], priority, claim))

    async def until(self, at_ms: int, *, counted: bool = True, asked_again: bool = False) -> None:
        """Moves the clock there, and ends the jobs whose time is over, with a claim in the same trip as each end.

        `asked_again`: the caller of an interactive one then has the next.
        """
        if counted:
            for _, priority, _ in self.running:
                self.held_ms[priority] += at_ms - self.now_ms
        self.r.later(at_ms - self.now_ms)
        self.now_ms = at_ms
        for one in [one for one in self.running if one[0] <= at_ms]:
            self.running.remove(one)
            await spent(self.r, one[2], 10)
            await self.claim()
            if asked_again and one[1] == Priority.INTERACTIVE:
                await self.submit()
                await self.claim()

    def share(self, priority: Priority) -> float:
        return self.held_ms[priority] / self.held_ms.total()


async def a_backlog(slots: Slots, jobs: int) -> None:
    """Batch jobs that have waited past their class's slack, and how long jobs of both classes take is known."""
    for priority in (Priority.INTERACTIVE, Priority.BATCH):
        await slots.submit(priority=priority)
        await slots.claim()
        await slots.until(slots.running[0][0], counted=False)
    for _ in range(jobs):
        await slots.submit(priority=Priority.BATCH, tenant="b")
    slots.r.later(60_000)


@pytest.mark.either_server
@pytest.mark.timeout(60)
async def test_callers_as_many_as_slots_who_ask_again_at_once_leave_a_class_its_share(
    redis_server: RedisServer,
) -> None:
    """Whenever a slot is freed nothing interactive waits, and only for that moment is it free."""
    async with rig(redis_server, kept_slots=1) as r:
        await r.worker(lease_s=100_000)
        slots = Slots(r, 10, {0: 1_000, 2: 1_000})
        await a_backlog(slots, 200)
        for _ in range(10):
            await slots.submit()
        await slots.claim()
        while slots.now_ms < 60_000:
            await slots.until(min(one[0] for one in slots.running), asked_again=True)
        assert 0.05 <= slots.share(Priority.BATCH) <= 0.2


@pytest.mark.either_server
@pytest.mark.timeout(60)
async def test_an_old_batch_backlog_that_has_most_of_the_slots_earns_no_turn_in_kept_ones(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server, kept_slots=1) as r:
        await r.worker(lease_s=100_000)
        slots = Slots(r, 10, {0: 1_000, 2: 1_000})
        await a_backlog(slots, 500)
        found_free = 0
        for _ in range(60):
            await slots.submit()
            found_free += slots.free > 0
            await slots.claim()
            due_ms = slots.now_ms + 500
            while slots.now_ms < due_ms:
                await slots.until(min([due_ms, *(one[0] for one in slots.running)]))
        assert found_free >= 58
        assert slots.share(Priority.BATCH) >= 0.6
