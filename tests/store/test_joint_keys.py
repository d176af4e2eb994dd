"""Jobs that share one call upstream share what serves them: a claim takes them along past its cap."""

from __future__ import annotations

from dataclasses import replace

from common import keys
from common.contracts import Job, Priority
from common.queue import Cap
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, rig

LANE = keys.lane_name(Priority.STANDARD, "m")


def jobs(numbers: range, *, joint: bool, key: str = "k") -> list[Job]:
    return [replace(a_job(n, batch_key=key, priority=Priority.STANDARD, model="m"), joint=joint) for n in numbers]


async def claimed(r: Rig, most: int, cap: int) -> int:
    """How many jobs a claim gets where what serves them has room for so many."""
    caps = [Cap(cap, frozenset({LANE}))]
    claims = await r.queue.claim(POOL, "w", most=most, lanes=[LANE], caps=caps)
    assert claims is not None
    return len(claims)


async def prepared(r: Rig, *batches: list[Job]) -> None:
    await r.queue.beat(POOL, "w", lease_s=1_000, info={}, concurrency=64, register=True)
    for batch in batches:
        await r.submit(*batch)


async def test_those_of_a_joint_key_come_past_the_cap(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await prepared(r, jobs(range(1, 6), joint=True))
        assert await claimed(r, 64, 1) == 5


async def test_those_of_an_ordinary_key_do_not(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await prepared(r, jobs(range(1, 6), joint=False))
        assert await claimed(r, 64, 1) == 1


async def test_each_joint_key_counts_for_itself(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await prepared(r, jobs(range(1, 4), joint=True, key="a"), jobs(range(4, 7), joint=True, key="b"))
        assert await claimed(r, 64, 1) == 3


async def test_the_workers_own_slots_bound_them_all_the_same(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await prepared(r, jobs(range(1, 6), joint=True))
        assert await claimed(r, 3, 1) == 3
