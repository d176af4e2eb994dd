"""A full worker gives way to urgent work: which runs, when, how often, and that nothing is lost or counted by it."""

from __future__ import annotations

from typing import Any

import pytest

from common.contracts import OnInterrupt, Priority, State
from common.queue import Cap, Record
from tests.store.test_engine import Rig, SteeredRun, a_worker
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import ALL_LANES, a_job, job_id
from workers.preemption import MOST_PREEMPTIONS

pytestmark = pytest.mark.either_server

BATCH: dict[str, Any] = {"priority": Priority.BATCH}
YIELDING: dict[str, Any] = {"preemptible": frozenset({Priority.BATCH}), "preempt_after_ms": 20}


async def record(rig: Rig, number: int) -> Record:
    found = await rig.queue.get(job_id(number))
    assert found is not None
    return found


async def busy(rig: Rig, *numbers: int, **changes: Any) -> list[SteeredRun]:
    """Runs of batch jobs with these numbers, begun one after the other."""
    runs: list[SteeredRun] = []
    for number in numbers:
        await rig.queue.submit(a_job(number, **(BATCH | changes)))
        runs.append(await rig.running(number))
    return runs


async def gave_way(rig: Rig, count: int) -> list[str]:
    """The jobs that gave way, in order of their ids, once so many did."""

    async def enough() -> bool:
        return len(rig.preempted) >= count

    await until(enough)
    return sorted(rig.preempted)


async def test_the_run_begun_last_gives_way_goes_back_unharmed_and_ends_well_afterwards(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url, concurrency=2, **YIELDING) as rig:
        first, last = await busy(rig, 1, 2)
        await rig.queue.submit(a_job(3))
        urgent = await rig.running(3)
        assert (first.muted, last.muted) == (False, True)
        await rig.ends_as(2, State.QUEUED)
        put_back = await record(rig, 2)
        assert (put_back.preemptions, put_back.failures, put_back.errors) == (1, 0, ())
        assert rig.preempted == [job_id(2)]
        assert rig.runs[job_id(1)] is first
        urgent.go_on.set()
        await rig.ends_as(3, State.SUCCEEDED)

        async def again() -> bool:
            return rig.runs[job_id(2)].claim.attempt == 2

        await until(again)
        for number in (1, 2):
            rig.runs[job_id(number)].go_on.set()
            await rig.ends_as(number, State.SUCCEEDED)


async def test_from_the_moment_in_which_it_is_chosen_a_run_says_nothing_more(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=1) as rig:
        (run,) = await busy(rig, 1)
        # Between the look at what readers have seen and this there is no turn of the loop.
        rig.worker._evict(rig.worker._attempts[job_id(1)])
        assert run.muted
        await rig.ends_as(1, State.RUNNING)
        assert (await record(rig, 1)).preemptions == 1


async def test_without_the_policy_nothing_gives_way(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=1, preempt_after_ms=1) as rig:
        (run,) = await busy(rig, 1)
        await rig.queue.submit(a_job(2))
        await rig.worker._relieve("default")
        assert await rig.state(2) is State.QUEUED
        run.go_on.set()
        (await rig.running(2)).go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)
        assert rig.preempted == []


@pytest.mark.parametrize("number_of_urgent", [1, 3])
async def test_no_more_give_way_than_urgent_jobs_came_and_none_twice(
    redis_server: RedisServer, number_of_urgent: int
) -> None:
    async with a_worker(redis_server.url, concurrency=3, **YIELDING) as rig:
        await busy(rig, 1, 2, 3)
        for number in range(10, 10 + number_of_urgent):
            await rig.queue.submit(a_job(number))
        for number in range(10, 10 + number_of_urgent):
            await rig.running(number)
        expected = [job_id(number) for number in range(4 - number_of_urgent, 4)]
        assert await gave_way(rig, number_of_urgent) == expected


async def test_what_readers_have_seen_and_must_not_begin_anew_does_not_give_way(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=2, **YIELDING) as rig:
        _, seen = await busy(rig, 1, 2, on_interrupt=OnInterrupt.FAIL)
        seen.seen = True
        await rig.queue.submit(a_job(3))
        await rig.running(3)
        assert await gave_way(rig, 1) == [job_id(1)]


async def test_other_interactive_work_never_gives_way(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=1, **YIELDING) as rig:
        await rig.queue.submit(a_job(1))
        first = await rig.running(1)
        await rig.queue.submit(a_job(2))
        await rig.worker._relieve("default")
        assert await rig.state(2) is State.QUEUED
        first.go_on.set()
        await rig.running(2)
        assert rig.preempted == []


async def test_a_job_gives_way_three_times_and_then_no_more(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=1, **YIELDING) as rig:
        await busy(rig, 1)
        for turn in range(MOST_PREEMPTIONS):
            await rig.queue.submit(a_job(10 + turn))
            urgent = await rig.running(10 + turn)
            await rig.ends_as(1, State.QUEUED)
            urgent.go_on.set()
            await rig.ends_as(1, State.RUNNING)
        await (await rig.running(1)).started.wait()
        assert (await record(rig, 1)).preemptions == MOST_PREEMPTIONS
        await rig.queue.submit(a_job(20))
        assert rig.worker._yielding() == []
        rig.runs[job_id(1)].go_on.set()
        await rig.running(20)
        assert await rig.state(1) is State.SUCCEEDED
        assert len(rig.preempted) == MOST_PREEMPTIONS


async def test_where_only_the_backends_are_full_a_run_of_theirs_gives_way(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=8, **YIELDING) as rig:
        await busy(rig, 1, 2)
        rig.caps.append(Cap(0, frozenset(ALL_LANES)))
        await rig.queue.submit(a_job(3))
        await rig.running(3)
        assert await gave_way(rig, 1) == [job_id(2)]


async def test_a_cap_that_is_reached_keeps_jobs_in_the_queue_until_it_has_room(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=8) as rig:
        rig.caps.append(Cap(1, frozenset(ALL_LANES)))
        await rig.queue.submit(a_job(1))
        first = await rig.running(1)
        rig.caps[:] = [Cap(0, frozenset(ALL_LANES))]
        await rig.queue.submit(a_job(2))
        rig.worker._hearing.wanted.set()

        async def asked() -> bool:
            return rig.worker._more_waits and not rig.worker._hearing.wanted.is_set()

        await until(asked)
        assert await rig.state(2) is State.QUEUED
        rig.caps[:] = [Cap(1, frozenset(ALL_LANES))]
        first.go_on.set()
        (await rig.running(2)).go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)


async def test_one_that_is_cancelled_while_it_gives_way_ends_cancelled(redis_server: RedisServer) -> None:
    class Slow(SteeredRun):
        async def landed(self) -> None:
            await self.go_on.wait()

    async with a_worker(redis_server.url, concurrency=1, **YIELDING) as rig:
        rig.kind = Slow
        (run,) = await busy(rig, 1)
        rig.kind = SteeredRun
        await rig.queue.submit(a_job(2))
        urgent = await rig.running(2)
        await rig.queue.cancel(job_id(1))
        run.go_on.set()
        await rig.ends_as(1, State.CANCELLED)
        urgent.go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)
