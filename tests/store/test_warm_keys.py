"""Batch keys: who served one last is preferred for it, is woken alone, and is waited for only a moment."""

from __future__ import annotations

import asyncio

import pytest

from common import keys
from common.contracts import Priority
from common.queue import Cap, batch_digest
from common.queue.working import HOLD_MS, MOST_PASSES
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, number_of, rig


async def two_workers(r: Rig, *, slots: int = 4) -> None:
    """Workers `one` and `two`, each with so many slots."""
    for name in ("one", "two"):
        await r.queue.beat(POOL, name, lease_s=1_000, info={}, concurrency=slots, register=True)


async def warm_up(r: Rig, worker: str, key: str, number: int) -> None:
    """Has this worker serve a job of this key to its end."""
    await r.submit(a_job(number, batch_key=key))
    r.later(HOLD_MS)
    [claim] = await r.claim(1, worker)
    await r.settle(claim, worker)


async def test_a_worker_takes_first_what_it_is_warm_for(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await warm_up(r, "two", "b", 2)
        await r.submit(a_job(3, batch_key="b"), a_job(4, batch_key="a"), a_job(5, batch_key="b"))
        assert await r.numbers(1, "one") == [4]
        assert await r.numbers(1, "two") == [3]


async def test_a_young_job_is_left_to_the_free_worker_that_is_warm_for_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"))
        assert await r.numbers(1, "two") == []
        assert await r.numbers(1, "one") == [2]


async def test_it_is_left_to_it_only_for_a_moment(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"))
        r.later(HOLD_MS)
        assert await r.numbers(1, "two") == [2]
        await r.submit(a_job(3, batch_key="a"))
        assert await r.numbers(1, "one") == []


async def test_it_is_not_left_to_one_that_has_no_slot_or_no_lease(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r, slots=1)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"), a_job(3, batch_key="a"))
        assert await r.numbers(1, "one") == [2]
        assert await r.numbers(1, "two") == [3]
        await r.queue.beat(POOL, "one", lease_s=0.001, info={}, concurrency=9)
        r.later(1_000)
        await r.submit(a_job(5, batch_key="a"))
        redis_server.command("HSET", keys.warm(POOL), batch_digest("a"), "one")
        assert await r.numbers(1, "two") == [5]


async def test_nothing_is_left_to_another_for_longer_because_the_clock_went_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"))
        r.later(-600_000)
        assert await r.numbers(1, "two") == [2]


async def test_what_has_no_key_is_never_held_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"), a_job(3))
        assert await r.numbers(2, "two") == [3]


async def test_only_the_warm_worker_is_woken_and_the_pool_where_there_is_none(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a"))
        bells = (keys.worker_bell(POOL, "one"), keys.urgent_bell(POOL))
        assert [redis_server.command("LLEN", bell) for bell in bells] == [1, 0]
        assert redis_server.command("PTTL", bells[0]) > 0
        await r.submit(a_job(3, batch_key="cold"), a_job(4))
        assert [redis_server.command("LLEN", bell) for bell in bells] == [1, 2]


@pytest.mark.parametrize("why", ["no slot", "no lease"])
async def test_the_pool_is_woken_where_the_warm_worker_has_no_slot_or_no_lease(
    redis_server: RedisServer, why: str
) -> None:
    async with rig(redis_server) as r:
        await two_workers(r, slots=1)
        await warm_up(r, "one", "a", 1)
        if why == "no slot":
            await r.submit(a_job(2))
            assert await r.numbers(1, "one") == [2]
        else:
            await r.queue.beat(POOL, "one", lease_s=1, info={}, concurrency=1)
            r.later(2_000)
        await r.submit(a_job(3, batch_key="a"))
        bells = (keys.worker_bell(POOL, "one"), keys.urgent_bell(POOL))
        assert [redis_server.command("LLEN", bell) for bell in bells] == [0, 1]


async def test_a_workers_own_bell_is_bounded(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.beat(POOL, "one", lease_s=1_000, info={}, concurrency=9, register=True)
        await warm_up(r, "one", "a", 1)
        await r.submit(*(a_job(10 + n, batch_key="a") for n in range(300)))
        assert redis_server.command("LLEN", keys.worker_bell(POOL, "one")) == 256


async def test_a_head_is_passed_over_so_often_and_no_oftener(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.beat(POOL, "one", lease_s=1_000, info={}, concurrency=100, register=True)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="cold"), *(a_job(10 + n, batch_key="a") for n in range(2 * MOST_PASSES)))
        r.later(HOLD_MS)
        await r.submit(a_job(3, batch_key="cold too"))
        r.later(HOLD_MS)
        taken = [number for _ in range(2 * MOST_PASSES + 2) for number in await r.numbers(1, "one")]
        assert taken.index(2) == MOST_PASSES
        # Nothing is left of the count for the next head.
        await r.submit(a_job(4, batch_key="colder"), *(a_job(100 + n, batch_key="a") for n in range(2 * MOST_PASSES)))
        r.later(HOLD_MS)
        taken = [number for _ in range(MOST_PASSES + 2) for number in await r.numbers(1, "one")]
        assert taken.index(4) == MOST_PASSES


async def test_a_key_far_behind_is_not_looked_for(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.beat(POOL, "one", lease_s=1_000, info={}, concurrency=200, register=True)
        await warm_up(r, "one", "a", 1)
        await r.submit(*(a_job(100 + n, batch_key=f"cold{n}") for n in range(64)), a_job(9, batch_key="a"))
        r.later(HOLD_MS)
        assert await r.numbers(1, "one") == [100]


async def test_preference_stays_within_the_class(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await two_workers(r)
        await warm_up(r, "one", "a", 1)
        await r.submit(a_job(2, batch_key="a", priority=Priority.BATCH), a_job(3, batch_key="b"))
        assert await r.numbers(1, "one") == [3]


async def test_caps_bound_what_lanes_give_together(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(n, model="m", tenant="a") for n in range(5)))
        await r.submit(*(a_job(10 + n, model="n", tenant="b") for n in range(5)))
        await r.submit(*(a_job(20 + n, model="free", tenant="c") for n in range(3)))
        lanes = ("0:m", "0:n", "0:free")
        caps = [Cap(3, frozenset({"0:m", "0:n"}))]
        claims = await r.queue.claim(POOL, "w", most=20, lanes=lanes, caps=caps)
        assert claims is not None
        numbers = [number_of(claim.job.id) for claim in claims]
        assert sum(number < 20 for number in numbers) == 3
        assert sum(number >= 20 for number in numbers) == 3
        none = await r.queue.claim(POOL, "w", most=20, lanes=lanes, caps=[Cap(0, frozenset(lanes))])
        assert none == []


async def test_a_cap_bounds_what_comes_along_on_a_key_too(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(n, batch_key="k") for n in range(9)))
        claims = await r.queue.claim(POOL, "w", most=9, lanes=("0:m",), caps=[Cap(4, frozenset({"0:m"}))])
        assert claims is not None and len(claims) == 4


async def test_what_shares_a_call_counts_once_against_a_cap(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(n, batch_key="k", joint=True) for n in range(5)), a_job(9, model="n"))
        lanes = ("0:m", "0:n")
        claims = await r.queue.claim(POOL, "w", most=9, lanes=lanes, caps=[Cap(2, frozenset(lanes))])
        assert claims is not None
        assert [number_of(claim.job.id) for claim in claims] == [0, 1, 2, 3, 4, 9]


async def test_a_claim_can_be_told_to_leave_what_came_only_just_now(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1))
        r.later(60)
        await r.submit(a_job(2, tenant="u"))
        claims = await r.queue.claim(POOL, "w", most=9, lanes=("0:m",), least_age_ms=50)
        assert claims is not None
        assert [number_of(claim.job.id) for claim in claims] == [1]


@pytest.mark.either_server
async def test_only_so_many_keys_are_remembered(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.beat(POOL, "one", lease_s=1_000, info={}, concurrency=10_000, register=True)
        before = [word for n in range(4_000) for word in (f"before{n}", "one")]
        redis_server.command("HSET", keys.warm(POOL), *before)
        await asyncio.gather(*(r.queue.submit(a_job(n, batch_key=f"key{n}")) for n in range(200)))
        assert len(await r.numbers(200, "one")) == 200
        assert redis_server.command("HLEN", keys.warm(POOL)) == 4_096
        assert redis_server.command("PTTL", keys.warm(POOL)) > 0
