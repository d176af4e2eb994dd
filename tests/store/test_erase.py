"""Erasing an ended job: nothing of it is left in the store, and nobody else's is touched."""

from __future__ import annotations

from common.contracts import Failure, Outcome, State
from common.queue import Settlement
from tests.support.redis_server import RedisServer
from tests.support.seeds import Rig, a_job, job_id, rig

BROKEN = Settlement(Outcome(State.FAILED, failure=Failure("upstream_error", "x")), dead=True, result=b"{}")


def named(redis: RedisServer, number: int) -> list[str]:
    """Every key that a job stands in."""
    text = job_id(number)
    found: list[str] = []
    for key in redis.command("KEYS", "hr:*"):
        name = key.decode()
        held = redis.command("ZSCORE", name, text) if redis.command("TYPE", name) == b"zset" else None
        if text in name or held is not None:
            found.append(name)
    return found


async def ended(r: Rig, *numbers: int) -> None:
    """Has these jobs end in the tenant's list and among the dead."""
    for number in numbers:
        claim = await r.running(a_job(number))
        assert (await r.settle(claim, end=BROKEN)).done


async def test_nothing_is_left_of_an_ended_job_and_all_of_another(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await ended(r, 1, 2)
        before = named(redis_server, 2)
        assert len(named(redis_server, 1)) == len(before) >= 4
        assert await r.queue.erase(job_id(1), "t")
        assert named(redis_server, 1) == [] and named(redis_server, 2) == before
        assert await r.queue.get(job_id(1)) is None
        assert await r.queue.erase(job_id(1), "t"), "asked again it is as gone"


async def test_a_job_that_has_not_ended_stays(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.queue.submit(a_job(2))
        for job in (claim.job.id, job_id(2)):
            assert not await r.queue.erase(job, "t")
            assert await r.queue.get(job) is not None
