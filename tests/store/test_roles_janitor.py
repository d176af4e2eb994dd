"""The janitor: what it forgets, what it finds, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common import keys
from common.clock import SystemClock
from common.contracts import Failure, Outcome, State
from common.queue import Settlement
from common.survey import Survey
from scheduler.janitor import Janitor, JanitorParams
from scheduler.reaper import Reaper, ReaperParams
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, a_job, job_id, rig

BROKEN = Settlement(Outcome(State.FAILED, failure=Failure("attempts_exhausted", "x")), dead=True)


def _janitor(r: Rig, pools: Sequence[str] = (POOL,), *, most_keys: int = 5_000) -> Janitor:
    return Janitor(r.queue, Survey(r.store), pools, JanitorParams(most_keys=most_keys, dead_life_s=100))


async def _dead(r: Rig, number: int) -> None:
    claim = await r.running(a_job(number))
    assert (await r.settle(claim, end=BROKEN)).done


def _lasting(server: RedisServer) -> set[str]:
    return {name.decode() for name in server.command("KEYS", "*") if server.command("TTL", name) == -1}


async def test_fair_share_times_of_an_empty_lane_are_forgotten(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, tenant="quick"), a_job(2, tenant="slow", model="other"))
        await r.worker()
        assert await r.numbers(2) == [1]
        assert await _janitor(r).round() == 1
        fields = redis_server.command("HKEYS", keys.fair(POOL))
        assert b"f:0:other:slow" in fields and b"f:0:m:quick" not in fields


async def test_dead_letters_are_forgotten_when_their_jobs_are(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _dead(r, 1)
        r.later(60_000)
        await _dead(r, 2)
        r.later(41_000)
        await _janitor(r).round()
        assert r.view().dead == [2]


async def test_a_key_that_would_never_end_gets_an_end(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        stray = keys.inbox(POOL, "stray")
        redis_server.command("XADD", stray, "*", "a", "b")
        await r.submit(a_job(1))
        before_ms = redis_server.command("PTTL", keys.job(POOL, job_id(1)))
        assert await _janitor(r).round() == 1
        assert 0 < redis_server.command("TTL", stray) <= 86_400
        assert before_ms - 60_000 < redis_server.command("PTTL", keys.job(POOL, job_id(1))) <= before_ms


async def test_what_may_stand_for_ever_and_what_is_not_ours_is_left_alone(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        redis_server.command("SET", "somebody:elses", "1")
        await r.submit(a_job(1), a_job(2, delay_ms=9_000))
        await r.running(a_job(3, model="other"))
        await r.queue.sweep_fair(POOL)
        lasting = _lasting(redis_server)
        expected = {
            keys.lanes(POOL),
            keys.lane(POOL, "0:m"),
            keys.held(POOL, "w"),
            keys.delayed(POOL),
            "somebody:elses",
        }
        assert expected <= lasting
        assert await _janitor(r).round() == 0
        assert _lasting(redis_server) == lasting


async def test_a_walk_sees_every_key_in_bounded_steps_and_begins_anew(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        strays = {keys.inbox(POOL, f"g{number}") for number in range(3_000)}
        for name in sorted(strays):
            await r.store.command("SET", name, 1)
        survey = Survey(r.store)
        seen: set[str] = set()
        steps = 0
        while not strays <= seen:
            sight = await survey.step((POOL,), most_keys=500)
            assert sight.looked_at < 2_000
            seen |= set(sight.lasting)
            steps += 1
            assert steps < 100
        assert steps > 1
        await survey.end_later(sorted(strays), life_s=60)
        for _ in range(steps + 1):
            assert (await survey.step((POOL,), most_keys=500)).lasting == ()


async def test_an_end_that_stands_is_never_moved(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        redis_server.command("SET", keys.inbox(POOL, "a"), 1, "EX", 10)
        redis_server.command("SET", keys.inbox(POOL, "b"), 1)
        names = [keys.inbox(POOL, name) for name in ("a", "b", "gone")]
        assert await Survey(r.store).end_later(names, life_s=500) == 1
        assert redis_server.command("TTL", names[0]) <= 10


async def test_jobs_of_a_worker_on_no_list_come_to_the_reaper_and_run_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1), "lost")
        await r.running(a_job(2), "alive")
        await r.queue.sweep_fair(POOL)
        redis_server.command("ZREM", keys.workers(POOL), "lost")
        reaper = Reaper(r.queue, SystemClock(), (POOL,), ReaperParams(lease_s=1))

        async def reaper_is_ready() -> bool:
            return await r.queue.uptime_s() >= 1

        await until(reaper_is_ready)
        assert await reaper.round() == 0
        assert await _janitor(r).round() == 1
        assert await reaper.round() == 1
        seen = r.view()
        assert (seen.states, seen.held) == ({1: "queued", 2: "running"}, {"alive": {2}})


@pytest.mark.parametrize("reaped", [False, True])
async def test_a_worker_on_the_list_keeps_its_lease(redis_server: RedisServer, reaped: bool) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        await r.queue.sweep_fair(POOL)
        if reaped:
            redis_server.command("ZADD", keys.workers(POOL), 0, "w")
        before = redis_server.command("ZSCORE", keys.workers(POOL), "w")
        assert await _janitor(r).round() == 0
        assert redis_server.command("ZSCORE", keys.workers(POOL), "w") == before


async def test_pools_of_others_are_not_touched(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        redis_server.command("HSET", keys.held("others", "w"), job_id(1, "others"), 1)
        assert await _janitor(r).round() == 0
        assert redis_server.command("EXISTS", keys.workers("others")) == 0
