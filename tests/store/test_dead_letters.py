"""Dead letters in the store: whose they are, in which order, over how many pages."""

from __future__ import annotations

from common.contracts import Failure, Outcome, State
from common.queue import Settlement
from common.queue.dead import PAGE
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, number_of, rig

BROKEN = Settlement(Outcome(State.FAILED, failure=Failure("upstream_error", "x")), dead=True)


async def die(r: Rig, *numbers: int, tenant: str = "t", at_ms: int = 0) -> None:
    """Has these jobs die at this time from now."""
    r.store.clock_offset_ms = at_ms
    for number in numbers:
        claim = await r.running(a_job(number, tenant=tenant))
        assert (await r.settle(claim, end=BROKEN)).done


async def listed(r: Rig, tenant: str, most: int = 100, after: int | None = None) -> list[int]:
    """The numbers of a tenant's dead letters."""
    start = None
    if after is not None:
        died_ms = await r.queue.died_ms(POOL, job_id(after))
        assert died_ms is not None
        start = (died_ms, job_id(after))
    return [number_of(job) for _, job in await r.queue.dead_letters(POOL, tenant, most=most, after=start)]


async def test_each_tenant_finds_its_own_the_newest_first(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await die(r, 1, tenant="a")
        await die(r, 2, tenant="b", at_ms=1_000)
        await die(r, 3, tenant="a", at_ms=2_000)
        assert await listed(r, "a") == [3, 1]
        assert await listed(r, "b") == [2]
        assert await listed(r, "c") == []


async def test_pages_join_without_a_gap_though_some_died_in_the_same_moment(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await die(r, *range(1, 8))
        for number in range(1, 8):
            redis_server.command("ZADD", "hr:{default}:dead", 5_000 + number // 4, job_id(number))
        whole = await listed(r, "t")
        assert sorted(whole) == list(range(1, 8)) and whole[:4] == [7, 6, 5, 4]
        first = await listed(r, "t", most=3)
        rest = await listed(r, "t", after=first[-1])
        assert first + rest == whole


async def test_a_tenants_few_are_found_behind_many_of_others(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await die(r, 1)
        for number in range(PAGE + 1):
            redis_server.command("ZADD", "hr:{default}:dead", 9_999_999_999_999, f"other-{number}")
        assert await listed(r, "t", most=1) == [1]


async def test_a_job_that_did_not_die_is_not_among_them(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert (await r.settle(claim)).done
        assert await r.queue.died_ms(POOL, job_id(1)) is None
        assert await listed(r, "t") == []
