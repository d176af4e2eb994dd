"""The promoter: what became due since its last round."""

from __future__ import annotations

import asyncio

from common import keys
from common.contracts import OnDisconnect, State
from scheduler.promoter import Promoter, PromoterParams
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig


def _promoter(r: Rig, *pools: str, most: int = 500, most_batches: int = 10) -> Promoter:
    return Promoter(r.queue, pools or (POOL,), PromoterParams(most=most, most_batches=most_batches))


async def test_a_delayed_job_goes_into_its_lane_when_its_time_has_come(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=1_000), a_job(2, delay_ms=9_000))
        assert await _promoter(r).round() == 0
        r.later(1_001)
        assert await _promoter(r).round() == 1
        seen = r.view()
        assert (seen.lanes, seen.delayed) == ({"0:m": [1]}, [2])


async def test_jobs_that_wait_past_their_deadline_expire_from_lane_and_delay(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, deadline_in_ms=1_000), a_job(2, deadline_in_ms=1_000, delay_ms=60_000), a_job(3))
        r.later(1_001)
        assert await _promoter(r).round() == 2
        seen = r.view()
        assert seen.states == {1: "expired", 2: "expired", 3: "queued"}
        assert (seen.lanes, seen.delayed, seen.deadlines) == ({"0:m": [3]}, [], {3})
        record = await r.queue.get(job_id(1))
        assert record is not None and record.outcome is not None and record.outcome.failure is not None
        assert record.outcome.failure.code == "deadline_exceeded"
        # Whoever reads the stream learns of it too.
        kinds = [entry.kind for entry in await r.streams.after(job_id(1), None)]
        assert kinds == [b"o"]


async def test_a_running_job_past_its_deadline_is_left_to_its_worker(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1, deadline_in_ms=1_000))
        r.later(1_001)
        assert await _promoter(r).round() == 0
        assert r.view().states == {1: "running"}


async def test_a_job_due_and_late_at_once_expires_and_is_never_dispatched(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=1_000, deadline_in_ms=2_000))
        r.later(3_000)
        await _promoter(r).round()
        await r.worker()
        assert await r.claim() == []
        assert r.view().states == {1: "expired"}


async def test_a_job_without_readers_is_cancelled_after_the_grace(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, on_disconnect=OnDisconnect.CANCEL), a_job(2, on_disconnect=OnDisconnect.CONTINUE))
        for number in (1, 2):
            await r.streams.subscribe(job_id(number), "g")
            await r.streams.unsubscribe(job_id(number), "g")
        assert await _promoter(r).round() == 0
        r.later(10_001)
        assert await _promoter(r).round() == 1
        seen = r.view()
        assert (seen.states, seen.abandoned) == ({1: "cancelled", 2: "queued"}, set())


async def test_the_worker_of_an_abandoned_running_job_is_told_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL))
        await r.streams.subscribe(job_id(1), "g")
        await r.streams.unsubscribe(job_id(1), "g")
        r.later(10_001)
        assert [await _promoter(r).round() for _ in range(2)] == [1, 0]
        orders = redis_server.command("LRANGE", keys.control(POOL, "w"), 0, -1)
        assert orders == [f"cancel {job_id(1)} {claim.fence}".encode()]


async def test_one_round_gets_through_more_than_a_batch_and_stops_at_its_bound(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, delay_ms=10) for number in range(7)))
        r.later(1_000)
        assert [await _promoter(r, most=2, most_batches=3).round() for _ in range(2)] == [6, 1]


async def test_one_round_expires_more_than_a_batch(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, deadline_in_ms=10) for number in range(7)))
        r.later(1_000)
        assert await _promoter(r, most=2, most_batches=4).round() == 7
        assert set(r.view().states.values()) == {"expired"}


async def test_every_pool_has_its_turn_in_a_round(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, pool=pool, delay_ms=10) for number, pool in enumerate(("one", "two"))))
        r.later(1_000)
        assert await _promoter(r, "one", "two").round() == 2


async def test_two_promoters_at_once_do_everything_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r, rig(redis_server) as other:
        await r.submit(*(a_job(number, delay_ms=10) for number in range(40)))
        await r.submit(*(a_job(number, deadline_in_ms=10) for number in range(40, 80)))
        r.later(1_000)
        other.later(1_000)
        await asyncio.gather(_promoter(r, most=7).round(), _promoter(other, most=7).round())
        seen = r.view()
        assert seen.stats["expired"] == 40
        assert sorted(seen.lanes["0:m"]) == list(range(40))
        assert {number for number, state in seen.states.items() if state == State.EXPIRED} == set(range(40, 80))
