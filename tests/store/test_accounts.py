"""account.lua, and when a worker tells of its ended jobs: with a claim, a beat, its leaving, or when there are many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from common import keys
from common.contracts import Outcome, State, Usage
from common.queue import Settled
from common.queue.accounts import MOST_JOBS
from tests.support.redis_server import RedisServer
from tests.support.seeds import ALL_LANES, POOL, Rig, a_job, rig, success

Occasion = Callable[[Rig], Awaitable[object]]
OCCASIONS: dict[str, Occasion] = {
    "claim": lambda r: r.claim(),
    "beat": lambda r: r.queue.beat(POOL, "w", lease_s=15, info={}),
    "leave": lambda r: r.queue.leave(POOL, "w"),
}
SPENT = replace(success(), outcome=Outcome(State.SUCCEEDED, usage=Usage(30, 12)), answer_tokens=12)


def worked_off(server: RedisServer, lane: str = "0:m") -> tuple[list[float], float, tuple[int, int]]:
    """The lane's means, the finish of tenant t, and the model's jobs and tokens."""
    means, finish = server.command("HMGET", keys.fair(POOL), f"m:{lane}", f"f:{lane}:t")
    counters = server.command("HMGET", keys.stats(POOL), "jobs:m", "tokens:m")
    numbers = [float(word) for word in means.split()] if means else []
    return numbers, float(finish.split()[0]), (int(counters[0] or 0), int(counters[1] or 0))


@pytest.mark.parametrize("occasion", OCCASIONS)
async def test_what_a_job_took_is_told_at_the_next_occasion(redis_server: RedisServer, occasion: str) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, cost_tokens=100))
        await r.worker()
        [claim] = await r.claim()
        r.later(2_000)
        assert await r.queue.finish(claim, "w", SPENT) is Settled.ENDED
        assert worked_off(redis_server) == ([], 100, (0, 0))
        await OCCASIONS[occasion](r)
        await r.store.command("PING")
        told = worked_off(redis_server)
        assert told == ([pytest.approx(2_000, abs=500), 100, 12], 42, (1, 100))
        await OCCASIONS[occasion](r)
        await r.store.command("PING")
        assert worked_off(redis_server) == told


async def test_an_end_that_was_refused_or_had_been_before_is_not_told(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, cost_tokens=100))
        await r.worker()
        [claim] = await r.claim()
        assert await r.queue.finish(replace(claim, fence=claim.fence + 1), "w", SPENT) is Settled.REFUSED
        assert await r.queue.finish(claim, "w", SPENT) is Settled.ENDED
        assert await r.queue.finish(claim, "w", SPENT) is Settled.ALREADY
        await r.claim()
        await r.store.command("PING")
        assert worked_off(redis_server)[1:] == (42, (1, 100))


async def test_many_told_together_move_the_means_as_one_by_one(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(number, cost_tokens=100) for number in range(9)))
        [first] = await r.claim()
        r.later(16_000)
        await r.settle(first, end=SPENT)
        claims = await r.claim(8)
        r.later(1_000)
        for claim in claims:
            await r.queue.finish(claim, "w", SPENT)
        await r.claim()
        await r.store.command("PING")
        means, _, counted = worked_off(redis_server)
        assert means == [pytest.approx(1_000 + 15_000 * (15 / 16) ** 8, abs=400), 100, 12]
        assert counted == (9, 900)


async def test_a_worker_that_claims_nothing_for_long_tells_of_many_at_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(number) for number in range(MOST_JOBS)))
        claims = await r.queue.claim(POOL, "w", most=MOST_JOBS, lanes=ALL_LANES)
        assert claims is not None
        for claim in claims[:-1]:
            await r.queue.finish(claim, "w", SPENT)
        assert worked_off(redis_server)[2] == (0, 0)
        await r.queue.finish(claims[-1], "w", SPENT)
        await r.store.command("PING")
        assert worked_off(redis_server)[2] == (MOST_JOBS, MOST_JOBS)
