"""Who goes first: class, age, tenant, time of entry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from common import keys
from common.contracts import Priority
from common.queue import SLACK_MS, Released
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig

INTERACTIVE, STANDARD, BATCH = Priority


async def fill(r: Rig, priority: Priority, first: int, count: int, **changes: Any) -> None:
    """Submits jobs `first` to `first + count - 1` of this class."""
    await r.submit(*(a_job(n, priority=priority, **changes) for n in range(first, first + count)))


async def drain(r: Rig, step: int, rounds: int) -> list[int]:
    """The jobs of so many claims of `step` jobs each, in order."""
    return [number for _ in range(rounds) for number in await r.numbers(step)]


async def test_jobs_of_one_tenant_and_class_go_in_the_order_they_came(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        # Ids in falling order, so that nothing sorts them by chance.
        await r.submit(*(a_job(n, cost_tokens=1 + n % 7) for n in range(60, 0, -1)))
        assert await drain(r, 7, 9) == list(range(60, 0, -1))


async def test_a_higher_class_goes_first_whatever_came_first(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, BATCH, 20, 2)
        await fill(r, STANDARD, 10, 2)
        await fill(r, INTERACTIVE, 0, 2)
        assert await r.numbers(9) == [0, 1, 10, 11, 20, 21]


async def test_among_models_of_one_class_the_earliest_entry_goes_first(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for number in range(6):
            await r.submit(a_job(number, model="ab"[number % 2]))
        assert await r.numbers(6, lanes=("0:a", "0:b")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("aged", [STANDARD, BATCH])
@pytest.mark.parametrize("step", [1, 10])
async def test_an_aged_class_gets_a_tenth_of_the_claims_while_a_higher_one_waits(
    redis_server: RedisServer, aged: Priority, step: int
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, aged, 1_000, 100)
        r.later(SLACK_MS[aged])
        await fill(r, INTERACTIVE, 0, 200)
        taken = await drain(r, step, 100 // step)
        assert 9 <= sum(number >= 1_000 for number in taken) <= 11
        assert [n for n in taken if n < 1_000] == list(range(sum(n < 1_000 for n in taken)))


@pytest.mark.parametrize("waits", [STANDARD, BATCH])
async def test_a_class_that_has_not_aged_gets_nothing_before_the_higher_one(
    redis_server: RedisServer, waits: Priority
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, waits, 1_000, 10)
        r.later(SLACK_MS[waits] - 1_000)
        await fill(r, INTERACTIVE, 0, 50)
        assert await r.numbers(50) == list(range(50))


async def test_both_lower_classes_get_their_share_when_both_have_aged(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, BATCH, 2_000, 40)
        await fill(r, STANDARD, 1_000, 40)
        r.later(SLACK_MS[BATCH])
        await fill(r, INTERACTIVE, 0, 200)
        taken = await drain(r, 8, 25)
        by_class = Counter(number // 1_000 for number in taken)
        assert by_class[0] >= 158 and by_class[1] >= 18 and by_class[2] >= 16


async def test_a_deep_old_backlog_takes_one_place_of_a_claim_and_not_all(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        # All of one batch key: what comes along on a key must not carry the share past its bounds.
        await fill(r, BATCH, 1_000, 300, batch_key="corpus")
        r.later(3_600_000 // 100)
        r.later(SLACK_MS[BATCH])
        await fill(r, INTERACTIVE, 0, 64)
        taken = await r.numbers(64)
        assert sum(number < 1_000 for number in taken) >= 57
        assert await r.numbers(64) != []


async def test_without_higher_work_a_lower_class_gets_everything_and_owes_nothing_later(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, BATCH, 1_000, 50)
        r.later(SLACK_MS[BATCH])
        assert len(await r.numbers(40)) == 40
        await fill(r, INTERACTIVE, 0, 3)
        assert await r.numbers(3) == [0, 1, 2]


async def test_two_tenants_share_a_lane_whoever_flooded_it_first(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, INTERACTIVE, 0, 100, tenant="loud", cost_tokens=10)
        await fill(r, INTERACTIVE, 1_000, 20, tenant="quiet", cost_tokens=10)
        taken = await drain(r, 4, 10)
        quiet = [number for number in taken if number >= 1_000]
        assert len(quiet) == 20
        assert quiet == sorted(quiet)


async def test_a_tenants_share_is_counted_in_tokens_and_not_in_jobs(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, INTERACTIVE, 0, 60, tenant="long", cost_tokens=300)
        await fill(r, INTERACTIVE, 1_000, 60, tenant="short", cost_tokens=100)
        taken = await drain(r, 1, 40)
        short = sum(number >= 1_000 for number in taken)
        assert 29 <= short <= 31


async def test_a_tenant_that_slept_gets_no_credit_for_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, INTERACTIVE, 0, 50, tenant="steady", cost_tokens=10)
        await r.numbers(30)
        await fill(r, INTERACTIVE, 1_000, 50, tenant="late", cost_tokens=10)
        taken = await drain(r, 1, 20)
        assert 9 <= sum(number >= 1_000 for number in taken) <= 11


async def test_a_job_put_back_goes_before_those_that_came_after_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, INTERACTIVE, 0, 5)
        [claim] = await r.claim()
        await r.numbers(2)
        assert await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=False) is Released.PUT_BACK
        assert await r.numbers(9) == [0, 3, 4]


async def test_a_job_put_back_does_not_turn_the_lanes_time_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, INTERACTIVE, 0, 10, cost_tokens=100)
        first = (await r.claim(8))[0]
        await r.queue.release(POOL, first.job.id, "w", first.fence, failed=False)
        assert await r.numbers(1) == [0]
        # Were the time turned back to job 0's, this tenant would come before both jobs that still wait.
        await r.submit(a_job(100, tenant="new", cost_tokens=100))
        await r.submit(a_job(101, tenant="new", cost_tokens=100))
        assert await r.numbers(9) == [100, 8, 101, 9]


async def test_a_job_that_comes_back_after_a_sweep_is_not_left_behind_all_new_ones(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, INTERACTIVE, 0, 20, cost_tokens=1_000_000)
        claims = await r.claim(20)
        retried = claims[-1]
        assert await r.queue.release(POOL, retried.job.id, "w", retried.fence, failed=True, delay_ms=5_000) == 0
        assert await r.queue.sweep_fair(POOL) == 1
        r.later(5_000)
        assert await r.queue.promote(POOL) == 1
        await fill(r, INTERACTIVE, 100, 10, cost_tokens=1)
        assert (await r.numbers(1)) == [19]


async def test_a_sweep_forgets_only_times_that_say_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, tenant="done", cost_tokens=1), a_job(2, tenant="debtor", cost_tokens=1_000))
        await r.submit(a_job(3, tenant="debtor"), a_job(4, tenant="x", model="llama3:8b"))
        await r.numbers(2)
        [claim] = await r.claim(1, lanes=("0:llama3:8b",))
        assert claim.job.tenant == "x"
        # Still waiting in 0:m: debtor's second job, whose tenant's time is ahead; the lane's own time is 0.
        redis_server.command("HSET", keys.fair(POOL), "v:0", 1)
        assert await r.queue.sweep_fair(POOL) == 2
        left = {raw.decode() for raw in redis_server.command("HKEYS", keys.fair(POOL))}
        assert left == {"v:0", "u", "f:0:m:debtor"}
        assert await r.queue.sweep_fair(POOL) == 0


async def test_delayed_jobs_come_in_the_order_they_fell_due(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(a_job(1, delay_ms=30_000), a_job(2, delay_ms=10_000), a_job(3, delay_ms=20_000))
        assert await r.queue.promote(POOL) == 0
        order: list[int] = []
        for _ in range(3):
            r.later(10_000)
            assert await r.queue.promote(POOL) == 1
            order += await r.numbers(9)
        assert order == [2, 3, 1]


async def test_a_promoted_job_ages_from_the_time_it_fell_due(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, BATCH, 1_000, 20, delay_ms=600_000, deadline_in_ms=10_000_000)
        r.later(600_000)
        assert await r.queue.promote(POOL) == 20
        await fill(r, INTERACTIVE, 0, 30)
        assert await r.numbers(30) == list(range(30))


async def test_lanes_tell_their_depth_class_and_first_entry(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        [first] = await r.submit(a_job(1, priority=BATCH, model="llama3:8b"))
        await r.submit(a_job(2, priority=BATCH, model="llama3:8b"), a_job(3))
        zero, two = await r.queue.lanes(POOL)
        assert (zero.priority, zero.model, zero.depth) == (INTERACTIVE, "m", 1)
        assert (two.priority, two.model, two.depth, two.oldest_ms) == (BATCH, "llama3:8b", 2, first.created_ms)
        await r.submit(a_job(4, delay_ms=1))
        assert await r.queue.delayed_count(POOL) == 1
        record = await r.queue.get(job_id(4))
        assert record is not None and record.position is None
