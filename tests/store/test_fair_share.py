"""Shares of tenants: by weight, over all models of a class, trued up with what jobs really took."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from common import keys
from common.contracts import Outcome, Priority, State, Usage
from common.queue import Claim
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, number_of, rig, success

TWO_MODELS = ("0:m", "0:n")


async def fill(r: Rig, first: int, count: int, **changes: object) -> None:
    """Submits jobs `first`, `first + 1`, …"""
    await r.submit(*(a_job(first + n, **changes) for n in range(count)))


async def tenants(r: Rig, claims: int, lanes: Sequence[str] = ("0:m",)) -> Counter[str]:
    """Whose jobs so many claims of one job give."""
    taken = [claim.job.tenant for _ in range(claims) for claim in await r.claim(1, lanes=lanes)]
    return Counter(taken)


async def spent(r: Rig, claim: Claim, tokens: int) -> None:
    """Ends a claimed job that took so many tokens."""
    outcome = Outcome(State.SUCCEEDED, usage=Usage(tokens, 0))
    assert (await r.settle(claim, end=replace(success(), outcome=outcome))).done


async def test_shares_are_as_the_weights(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for first, (tenant, weight) in enumerate((("one", 1.0), ("three", 3.0), ("half", 0.5))):
            await fill(r, first * 1_000, 200, tenant=tenant, weight=weight, cost_tokens=10)
        taken = await tenants(r, 180)
        assert {tenant: pytest.approx(count, abs=2) for tenant, count in taken.items()} == {
            "one": 40,
            "three": 120,
            "half": 20,
        }


async def test_a_flood_for_one_model_does_not_hold_up_another_tenants_job_for_another(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 0, 300, tenant="loud", cost_tokens=50)
        assert len(await r.claim(20)) == 20
        r.later(60_000)
        await r.submit(a_job(1_000, tenant="quiet", model="n"))
        assert (await tenants(r, 2, TWO_MODELS))["quiet"] == 1


async def test_models_of_a_class_share_one_virtual_time(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 100, tenant="a", cost_tokens=10)
        await fill(r, 1_000, 100, tenant="b", model="n", cost_tokens=10)
        assert await tenants(r, 100, TWO_MODELS) == {"a": 50, "b": 50}


async def test_who_used_less_than_was_estimated_gets_the_rest_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, tenant="modest", cost_tokens=1_000))
        [claim] = await r.claim()
        await spent(r, claim, 10)
        await r.submit(a_job(2, tenant="other", cost_tokens=500), a_job(3, tenant="other", cost_tokens=1))
        await r.submit(a_job(4, tenant="modest", cost_tokens=1))
        # At 10, not at 1,000: before other's second job, which starts at 500.
        assert await r.numbers(3) == [2, 4, 3]


async def test_who_used_more_than_was_estimated_pays_for_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, tenant="greedy", cost_tokens=1))
        [claim] = await r.claim()
        await spent(r, claim, 1_000)
        await r.submit(a_job(2, tenant="greedy"), *(a_job(n, tenant="other", cost_tokens=100) for n in range(3, 9)))
        assert await r.numbers(9) == [3, 4, 5, 6, 7, 8, 2]


async def test_a_refund_never_puts_a_tenants_next_job_before_its_last_one(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 5, cost_tokens=1_000)
        for _ in range(3):
            [claim] = await r.claim()
            await spent(r, claim, 1)
        await fill(r, 10, 3, cost_tokens=1_000)
        assert await r.numbers(9) == [3, 4, 10, 11, 12]


async def test_a_failed_job_that_used_nothing_costs_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, cost_tokens=1_000))
        await r.settle(claim, end=replace(success(), outcome=Outcome(State.FAILED)))
        [finish] = redis_server.command("HMGET", keys.fair(POOL), "f:0:m:t")
        assert float(finish.split()[0]) == 1


async def test_a_lower_classes_share_is_of_tokens_and_not_of_jobs(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, 0, 400, priority=Priority.BATCH, cost_tokens=100)
        r.later(60_000)
        await fill(r, 1_000, 1_900, cost_tokens=10)
        taken = [number_of(claim.job.id) for _ in range(1_000) for claim in await r.claim(1)]
        batch = sum(number < 1_000 for number in taken) * 100
        chat = sum(number >= 1_000 for number in taken) * 10
        assert 0.05 <= batch / (batch + chat) <= 0.13


async def test_a_lower_classes_share_is_trued_up_with_what_it_really_took(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        # Estimated at a thousand, ended with ten: by the estimate alone it would get a hundredth of its share.
        await fill(r, 0, 400, priority=Priority.BATCH, cost_tokens=1_000)
        r.later(60_000)
        await fill(r, 1_000, 1_900, cost_tokens=10)
        batch = 0
        for _ in range(1_000):
            [claim] = await r.claim(1)
            batch += number_of(claim.job.id) < 1_000
            await spent(r, claim, 10)
        assert 50 <= batch <= 130


@pytest.mark.timeout(60)
async def test_a_tenant_with_a_hundred_times_the_load_lifts_a_quiet_ones_wait_only_a_little(
    redis_server: RedisServer,
) -> None:
    """The queue alone, its clock moved by hand: eight slots, jobs of a second, a job of the quiet one each second.

    Idle, the quiet one's p99 wait is 0, so that the bound is one mean service time.
    """
    service_ms, slots, quiet_every_ms = 1_000, 8, 1_000
    dice = random.Random(7)
    async with rig(redis_server) as r:
        await r.worker(lease_s=100_000)
        running: list[tuple[int, Claim]] = []
        entered, waits = {}, []
        now_ms, number = 0, 0
        await fill(r, 100_000, 800, tenant="loud", cost_tokens=50)
        while now_ms < 40_000:
            if now_ms % quiet_every_ms == 0:
                number += 1
                entered[job_id(number)] = now_ms
                await r.submit(a_job(number, tenant="quiet", cost_tokens=50))
            for due, claim in [one for one in running if one[0] <= now_ms]:
                await spent(r, claim, 50)
                running.remove((due, claim))
            for claim in await r.claim(slots - len(running)) if len(running) < slots else []:
                running.append((now_ms + dice.randrange(500, 1_500), claim))
                if claim.job.id in entered:
                    waits.append(now_ms - entered[claim.job.id])
            step_ms = 50
            now_ms += step_ms
            r.later(step_ms)
        assert len(waits) >= 38
        assert statistics.quantiles(waits, n=100)[98] <= service_ms
