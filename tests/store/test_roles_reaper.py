"""The reaper: what becomes of the jobs of a worker that fell silent, and when it holds back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from common.contracts import OnInterrupt, Outcome
from common.errors import StoreUnavailable
from scheduler.reaper import Reaper, ReaperParams
from tests.support.clock import ManualClock
from tests.support.proxy import EndNow, Proxy
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, a_job, job_id, rig

LEASE_S = 1.0


async def _settled_in(r: Rig) -> None:
    """Waits until the server has been up for a lease; before, a reaper holds back."""

    async def long_enough() -> bool:
        return await r.queue.uptime_s() >= LEASE_S

    await until(long_enough)


@asynccontextmanager
async def _rig(server: RedisServer) -> AsyncGenerator[Rig]:
    async with rig(server) as r:
        await _settled_in(r)
        yield r


def _reaper(r: Rig, clock: ManualClock | None = None, *, most: int = 200, lease_s: float = LEASE_S) -> Reaper:
    return Reaper(r.queue, clock or ManualClock(), (POOL,), ReaperParams(lease_s, most=most))


async def _outcome(r: Rig, number: int) -> Outcome:
    record = await r.queue.get(job_id(number))
    assert record is not None and record.outcome is not None
    return record.outcome


@pytest.mark.parametrize(("lease_s", "period_s"), [(15, 1.0), (5, 1.0), (1, 0.2)])
def test_a_round_comes_five_times_a_lease_and_at_least_once_a_second(lease_s: float, period_s: float) -> None:
    assert ReaperParams(lease_s).period_s == period_s


async def test_a_worker_with_a_lease_keeps_its_jobs(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.running(a_job(1))
        assert await _reaper(r).round() == 0
        assert r.view().states == {1: "running"}


async def test_a_job_without_tokens_runs_again_at_its_old_place(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.running(a_job(1))
        await r.submit(a_job(2))
        r.later(15_001)
        assert await _reaper(r).round() == 1
        assert r.view().lanes == {"0:m": [1, 2]}
        await r.worker("other")
        claim = (await r.claim(1, "other"))[0]
        assert (claim.job.id, claim.attempt, claim.failures) == (job_id(1), 2, 1)


async def test_the_silent_worker_leaves_the_list_when_nothing_of_it_is_left(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.running(a_job(1))
        r.later(15_001)
        reaper = _reaper(r)
        assert [await reaper.round() for _ in range(3)] == [1, 0, 0]
        assert (r.view().workers, r.view().held) == (set(), {})


async def test_a_job_whose_readers_have_tokens_ends_as_interrupted(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        claim = await r.running(a_job(1, stream=True))
        await r.append(claim, 2, b'{"choices":[]}\n{"choices":[]}')
        r.later(15_001)
        assert await _reaper(r).round() == 1
        outcome = await _outcome(r, 1)
        assert outcome.failure is not None
        assert (outcome.status, outcome.failure.code) == ("failed", "upstream_interrupted")
        # The end follows the last token, and is no dead letter: it can simply be asked for again.
        assert r.ids(1) == [f"{claim.fence}-0", f"{claim.fence}-2", f"{claim.fence}-3"]
        assert r.view().dead == []


async def test_a_job_that_may_restart_does_so_though_readers_have_tokens(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        claim = await r.running(a_job(1, stream=True, on_interrupt=OnInterrupt.RESTART))
        await r.append(claim, 1, b'{"choices":[]}')
        r.later(15_001)
        assert await _reaper(r).round() == 1
        assert r.view().states == {1: "queued"}


async def test_a_job_whose_attempts_are_used_up_is_a_dead_letter(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        job = a_job(1, max_attempts=2)
        await r.submit(job)
        for worker in ("first", "second"):
            await r.worker(worker)
            assert await r.numbers(1, worker) == [1]
            r.later(15_001)
            assert await _reaper(r).round() == 1
        outcome = await _outcome(r, 1)
        assert outcome.failure is not None
        assert (outcome.status, outcome.failure.code) == ("failed", "attempts_exhausted")
        assert r.view().dead == [1]
        record = await r.queue.get(job_id(1))
        assert record is not None
        told = [(error.attempt, error.code, error.worker) for error in record.errors]
        assert told == [(1, "worker_lost", "first"), (2, "worker_lost", "second")]


async def test_a_job_whose_cancellation_was_asked_for_is_cancelled(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.running(a_job(1))
        await r.queue.cancel(job_id(1))
        r.later(15_001)
        assert await _reaper(r).round() == 1
        assert (await _outcome(r, 1)).status == "cancelled"


async def test_a_job_past_its_deadline_expires(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.running(a_job(1, deadline_in_ms=2_000))
        r.later(15_001)
        assert await _reaper(r).round() == 1
        assert (await _outcome(r, 1)).status == "expired"
        assert r.view().stats["expired"] == 1


async def test_one_round_gets_through_more_than_a_batch_of_several_workers(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        await r.submit(*(a_job(number) for number in range(9)))
        for worker in ("a", "b", "c"):
            await r.worker(worker)
            assert len(await r.claim(3, worker)) == 3
        r.later(15_001)
        assert await _reaper(r, most=2).round() == 9
        assert set(r.view().states.values()) == {"queued"}


async def test_two_reapers_at_once_free_each_job_once(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r, rig(redis_server) as other:
        await r.submit(*(a_job(number, max_attempts=5) for number in range(30)))
        await r.worker()
        assert len(await r.claim(30)) == 30
        for one in (r, other):
            one.later(15_001)
        freed = await asyncio.gather(*(_reaper(one, most=7).round() for one in (r, other)))
        assert sum(freed) == 30
        assert [int(r.job(number)["failures"]) for number in range(30)] == [1] * 30
        assert sorted(r.view().lanes["0:m"]) == list(range(30))


async def test_a_reaper_that_died_between_release_and_settle_is_finished_by_the_next(redis_server: RedisServer) -> None:
    async with _rig(redis_server) as r:
        claim = await r.running(a_job(1, stream=True))
        await r.append(claim, 1, b'{"choices":[]}')
        r.later(15_001)
        # What a round does first, and no more.
        ((worker, job, fence),) = await r.queue.reap(POOL)
        await r.queue.release(POOL, job, worker, fence, failed=True)
        assert r.view().states == {1: "running"}
        assert await _reaper(r).round() == 1
        assert (await _outcome(r, 1)).status == "failed"


async def test_it_holds_back_until_the_server_has_been_up_for_a_lease(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        r.later(15_001)
        week_s = 7 * 86_400.0
        assert await _reaper(r, lease_s=week_s).round() == 0
        # The worker, back after the outage, finds its lease lapsed but not taken, and goes on.
        assert await r.queue.beat(POOL, "w", lease_s=15, info={})
        await _settled_in(r)
        assert await _reaper(r).round() == 0
        assert r.view().states == {1: "running"}


async def test_it_holds_back_for_a_lease_after_it_could_not_reach_the_store(redis_server: RedisServer) -> None:
    async with Proxy(redis_server.port) as proxy, rig(redis_server, url=proxy.url) as away, _rig(redis_server) as r:
        await r.running(a_job(1))
        for one in (r, away):
            one.later(15_001)
        clock = ManualClock()
        reaper = _reaper(away, clock)
        for _ in range(2):  # an outage longer than a lease, which counts from its end
            proxy.fault = EndNow()
            with pytest.raises(StoreUnavailable):
                await reaper.round()
            clock.advance(LEASE_S * 0.9)
        assert await reaper.round() == 0
        assert r.view().states == {1: "running"}
        clock.advance(LEASE_S * 0.2)
        assert await reaper.round() == 1
        assert r.view().states == {1: "queued"}
