"""Shares of tenants: by weight, over all models of a class, trued up with what jobs really took."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from common import keys
from common.contracts import Outcome, State
from common.queue import Claim, Settlement
from tests.store.sharing import fill, spent
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, number_of, rig, success

TWO_MODELS = ("0:m", "0:n")


async def tenants(r: Rig, claims: int, lanes: Sequence[str] = ("0:m",)) -> Counter[str]:
    """Whose jobs so many claims of one job give."""
    taken = [claim.job.tenant for _ in range(claims) for claim in await r.claim(1, lanes=lanes)]
    return Counter(taken)


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


@pytest.mark.parametrize("models", ["mn", "nm"])
async def test_among_equal_tags_the_earliest_entry_goes_first_whatever_its_model(
    redis_server: RedisServer, models: str
) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for number, model in enumerate(models):
            await r.submit(a_job(number, tenant=f"t{number}", model=model))
            r.later(1)
        assert await r.numbers(1, lanes=TWO_MODELS) == [0]


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
        # Six at a thousand and three at one, though the tags stood still meanwhile.
        assert redis_server.command("HGET", keys.fair(POOL), "f:0:m:t").startswith(b"5003.")
        assert await r.numbers(9) == [3, 4, 10, 11, 12]


async def test_a_failed_job_that_used_nothing_costs_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, cost_tokens=1_000))
        await r.settle(claim, end=replace(success(), outcome=Outcome(State.FAILED)))
        [finish] = redis_server.command("HMGET", keys.fair(POOL), "f:0:m:t")
        assert float(finish.split()[0]) == 0


@pytest.mark.either_server
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


# --- what a tenant is charged -----------------------------------------------------------------------------------------


async def test_jobs_that_never_ran_cost_their_tenant_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 5, tenant="unlucky", cost_tokens=1_000)
        for number in range(5):
            await r.queue.cancel(job_id(number))
        await fill(r, 100, 3, tenant="other", cost_tokens=100)
        await fill(r, 10, 2, tenant="unlucky", cost_tokens=100)
        # As if the five had never been: by turns, though they would have cost it fifty turns.
        assert await r.numbers(5) == [100, 10, 101, 11, 102]


async def test_jobs_that_expired_in_the_queue_cost_their_tenant_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 0, 5, tenant="unlucky", cost_tokens=1_000, deadline_in_ms=1_000)
        r.later(2_000)
        for job, fence, worker in await r.queue.overdue(POOL):
            await r.queue.settle(POOL, job, worker, fence, Settlement(Outcome(State.EXPIRED)))
        await fill(r, 100, 2, tenant="other", cost_tokens=100)
        await fill(r, 10, 2, tenant="unlucky", cost_tokens=100)
        assert await r.numbers(4) == [100, 10, 101, 11]


async def test_cancelling_gives_back_no_more_than_was_charged(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 2, tenant="sly", cost_tokens=1_000)
        assert await r.numbers(1) == [0]
        await r.queue.cancel(job_id(1))
        await r.submit(*(a_job(100 + n, tenant="other", cost_tokens=300) for n in range(5)), a_job(10, tenant="sly"))
        # What did run is still charged: 1,000, so behind other's at 0, 300, 600 and 900.
        assert await r.numbers(6) == [100, 101, 102, 103, 10, 104]


@pytest.mark.parametrize("kind", ["spent", "cancelled"])
async def test_a_small_job_of_a_heavy_tenant_is_trued_up_by_its_weight(redis_server: RedisServer, kind: str) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, weight=100.0, cost_tokens=50))
        if kind == "spent":
            [claim] = await r.claim()
            await spent(r, claim, 40)
        else:
            await r.queue.cancel(job_id(1))
        [times] = redis_server.command("HMGET", keys.fair(POOL), "f:0:m:t")
        assert float(times.split()[0]) == (0.4 if kind == "spent" else 0)


async def test_waiting_for_the_time_to_begin_earns_no_place_before_others(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 0, 10, tenant="planner", delay_ms=60_000, cost_tokens=10)
        await fill(r, 100, 50, tenant="other", cost_tokens=10)
        assert len(await r.numbers(40)) == 40
        r.later(60_000)
        assert await r.queue.promote(POOL) == 10
        # By turns from where the class is by now, though its ten were submitted first.
        taken = await r.numbers(10)
        assert sum(number < 100 for number in taken) in (5, 6)
        assert [n for n in taken if n < 100] == list(range(sum(n < 100 for n in taken)))


async def test_a_delayed_job_is_charged_when_it_may_begin_and_not_before(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, tenant="a", cost_tokens=1_000, delay_ms=60_000))
        await r.submit(a_job(2, tenant="b", cost_tokens=10), a_job(3, tenant="a"), a_job(4, tenant="b"))
        assert await r.numbers(3) == [2, 3, 4]
        await r.queue.cancel(job_id(1))
        [times] = redis_server.command("HMGET", keys.fair(POOL), "f:0:m:a")
        assert float(times.split()[0]) == 1


# --- what an older version left ---------------------------------------------------------------------------------------


async def test_jobs_and_times_of_an_older_version_run_end_and_hold_their_turn(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 4, tenant="old", cost_tokens=500)
        for number in range(4):
            name = keys.job(POOL, job_id(number))
            redis_server.command("HDEL", name, "cost", "weight", "credit")
            redis_server.command("HSET", name, "tag", 90_000 + 500 * number)
            member = redis_server.command("HGET", name, "member")
            redis_server.command("ZADD", keys.lane(POOL, "0:m"), 90_000 + 500 * number, member)
        redis_server.command("DEL", keys.fair(POOL), keys.waiting(POOL))
        redis_server.command("HSET", keys.fair(POOL), "v:0:m", 90_000, "f:0:m:old", 92_000, "v:1:m", 10**9)
        redis_server.command("HSET", keys.fair(POOL), "f:0:m:old", "92000.000 91500.000")
        await fill(r, 100, 10, tenant="new", cost_tokens=500)
        assert float(redis_server.command("HGET", keys.fair(POOL), "v:0")) == 90_000
        # What came before is not behind all that comes now.
        taken = await r.claim(4)
        assert [number_of(claim.job.id) for claim in taken] == [0, 100, 1, 101]
        await spent(r, taken[0], 77)
        assert redis_server.command("HGET", keys.fair(POOL), "f:0:m:old") == b"91577.000 91500.000"
        assert (await r.queue.release(POOL, job_id(1), "w", taken[2].fence, failed=True, delay_ms=5)).value == 0
        r.later(5)
        assert await r.queue.promote(POOL) == 1
        await r.queue.cancel(job_id(3))
        assert 1 in await r.numbers(9)
        assert await r.queue.sweep_fair(POOL) >= 0


async def test_a_job_that_falls_due_comes_behind_its_tenants_last_one_whatever_that_one_got_back(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 0, 3, cost_tokens=1_000)
        await fill(r, 9, 1, delay_ms=60_000)
        [claim] = await r.claim()
        await spent(r, claim, 1)
        await r.queue.cancel(job_id(1))
        r.later(60_000)
        await r.queue.promote(POOL)
        tag = r.job(9)["tag"]
        assert float(tag) == 2_000
        assert await r.numbers(1) == [2]
        [claim] = await r.claim()
        await r.queue.release(POOL, job_id(9), "w", claim.fence, failed=True)
        assert redis_server.command("ZSCORE", keys.lane(POOL, "0:m"), r.job(9)["member"]) == b"2000"
