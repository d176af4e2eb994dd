"""What a worker is told from outside (drain, expire), what it tells of its failures, and which bell it hears first."""

from __future__ import annotations

import pytest

from common import keys
from common.contracts import Failure, State
from common.queue import AttemptError, Record
from scheduler.promoter import Promoter
from tests.store.test_engine import BrokenRun, Rig, a_worker
from tests.store.test_engine_faults import ReluctantRun, lost_claim
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, a_job, job_id
from workers.engine import GiveBack

pytestmark = pytest.mark.either_server


async def record(rig: Rig, number: int) -> Record:
    found = await rig.queue.get(job_id(number))
    assert found is not None
    return found


async def gone(rig: Rig) -> bool:
    """Whether the worker's loop has ended."""
    return rig.task is not None and rig.task.done()


# --- drain ------------------------------------------------------------------------------------------------------------


async def test_a_worker_told_to_drain_takes_nothing_new_ends_its_work_and_leaves(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        run = await rig.running(1)
        assert await rig.queue.drain(POOL, rig.worker.id)
        (row,) = await rig.queue.workers(POOL)
        assert row.draining and row.jobs == (job_id(1),)
        await until(lambda: _is(rig.worker.free == 0))
        await rig.queue.submit(a_job(2))
        run.go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)
        await until(lambda: gone(rig))
        await rig.worker.close()
        assert await rig.queue.workers(POOL) == []
        assert await rig.state(2) is State.QUEUED


@pytest.mark.lengthy
async def test_what_a_drained_worker_does_not_end_in_time_goes_back_without_a_failure(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        for _ in range(2):  # told twice it does not hurry
            assert await rig.queue.drain(POOL, rig.worker.id)
        await rig.ends_as(1, State.QUEUED)
        await until(lambda: gone(rig))
        await rig.worker.close()
        found = await record(rig, 1)
        assert (found.attempt, found.failures, found.errors) == (1, 0, ())
        assert await rig.queue.workers(POOL) == []


async def test_a_worker_that_drains_stays_draining_whatever_its_beats_say(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        await until(lambda: _is(bool(rig.worker._helpers) and not rig.worker._doubtful))
        # The order itself is lost with the connection that it went to.
        await rig.queue.drain(POOL, rig.worker.id)
        redis_server.command("DEL", keys.control(POOL, rig.worker.id))
        await rig.queue.beat(POOL, rig.worker.id, lease_s=1, info={}, concurrency=4)
        (row,) = await rig.queue.workers(POOL)
        assert row.draining


async def test_an_order_to_drain_that_was_lost_is_found_when_the_worker_listens_again(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        await until(lambda: _is(bool(rig.worker._helpers) and not rig.worker._doubtful))
        redis_server.command("HSET", keys.capacity(POOL), rig.worker.id, 0)
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: gone(rig))


async def test_an_order_that_went_to_a_broken_connection_is_found_by_a_later_beat(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        await until(lambda: _is(not rig.worker._doubtful))
        # What `cancel` leaves where its order is lost: the job's own mark.
        redis_server.command("HSET", keys.job(POOL, job_id(1)), "cancel", 1)
        await rig.ends_as(1, State.CANCELLED)


async def test_nobody_who_is_not_there_can_be_drained(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        assert not await rig.queue.drain(POOL, "nobody")
        redis_server.command("ZADD", keys.workers(POOL), 0, "reaped")
        assert not await rig.queue.drain(POOL, "reaped")
        assert redis_server.command("EXISTS", keys.control(POOL, "nobody")) == 0


async def test_a_claim_that_was_never_heard_goes_back_when_its_worker_leaves(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, lease_s=60) as rig:
        await until(lambda: _is(bool(rig.worker._helpers) and not rig.worker._doubtful))
        rig.worker.allow_pick_jobs = False
        await rig.queue.submit(a_job(1))
        await lost_claim(rig)
        rig.worker.drain()
        await until(lambda: gone(rig))
        await rig.worker.close()
        found = await record(rig, 1)
        assert (found.state, found.failures) == (State.QUEUED, 0)
        assert await rig.queue.workers(POOL) == []


# --- late jobs of a worker that lives ---------------------------------------------------------------------------------


async def test_a_run_that_ignores_its_deadline_is_told_and_ends_expired(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1, deadline_in_ms=1_000))
        await rig.running(1)
        rig.store.clock_offset_ms = 3_500
        await Promoter(rig.queue, (POOL,)).round()
        await rig.ends_as(1, State.EXPIRED)
        (error,) = (await record(rig, 1)).errors
        assert (error.attempt, error.code, error.worker) == (1, "deadline_exceeded", rig.worker.id)


async def test_a_run_that_lets_nobody_end_it_is_ended_over_its_workers_head(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, lease_s=60) as rig:
        rig.kind = ReluctantRun
        await rig.queue.submit(a_job(1, deadline_in_ms=1_000))
        run = await rig.running(1)
        assert isinstance(run, ReluctantRun)
        promoter = Promoter(rig.queue, (POOL,))
        rig.store.clock_offset_ms = 3_500
        await promoter.round()
        await run.cancelled.wait()
        assert await rig.state(1) is State.RUNNING
        rig.store.clock_offset_ms = 9_000
        await promoter.round()
        found = await record(rig, 1)
        assert found.state is State.EXPIRED
        assert found.outcome is not None and found.outcome.failure is not None
        assert found.outcome.failure.message.endswith("did not end it.")
        # What its worker says at last is refused.
        run.let_go.set()
        await until(lambda: _is(not rig.worker.tasks))
        assert (await record(rig, 1)).outcome == found.outcome
        assert await rig.queue.held(POOL, rig.worker.id) == {}


# --- errors of attempts -----------------------------------------------------------------------------------------------


async def test_each_failed_attempt_leaves_its_error(redis_server: RedisServer) -> None:
    back = GiveBack(Failure("upstream_unreachable", "nobody there"), backend="gpu-a")
    async with a_worker(redis_server.url, end=back) as rig:
        await rig.queue.submit(a_job(1, max_attempts=3))
        await rig.ends_as(1, State.FAILED)
        found = await record(rig, 1)
        assert [error.attempt for error in found.errors] == [1, 2, 3]
        assert found.finished_ms is not None
        for error in found.errors:
            told = AttemptError(error.attempt, "upstream_unreachable", "nobody there", "gpu-a", "w1", error.at_ms)
            assert error == told
            assert found.created_ms <= error.at_ms <= found.finished_ms


async def test_what_does_not_count_as_a_failure_leaves_none(redis_server: RedisServer) -> None:
    back = GiveBack(Failure("upstream_unavailable", "all open"), delay_ms=60_000, counts=False)
    async with a_worker(redis_server.url, end=back) as rig:
        await rig.queue.submit(a_job(1))
        await rig.ends_as(1, State.DELAYED)
        found = await record(rig, 1)
        assert (found.failures, found.errors) == (0, ())


async def test_a_run_that_breaks_leaves_its_error_too(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.kind = BrokenRun
        await rig.queue.submit(a_job(1))
        await rig.ends_as(1, State.FAILED)
        (error,) = (await record(rig, 1)).errors
        assert (error.attempt, error.code) == (1, "internal_error")


async def test_a_cancelled_job_has_no_error(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        await rig.queue.cancel(job_id(1))
        await rig.ends_as(1, State.CANCELLED)
        assert (await record(rig, 1)).errors == ()


async def test_a_claim_that_was_never_heard_leaves_an_error(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        await rig.queue.submit(a_job(1))
        await lost_claim(rig)
        await rig.worker._return_unknown()
        (error,) = (await record(rig, 1)).errors
        assert (error.attempt, error.code, error.worker) == (1, "claim_lost", rig.worker.id)


# --- bells ------------------------------------------------------------------------------------------------------------


async def test_a_worker_hears_its_own_bell(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, lease_s=60) as rig:
        await until(lambda: _is(bool(rig.worker._helpers) and not rig.worker._doubtful))
        await rig.queue.submit(a_job(1, batch_key="k"))
        (await rig.running(1)).go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)
        # Now it is warm for this key: only its own bell is rung.
        await rig.queue.submit(a_job(2, batch_key="k"))
        (await rig.running(2)).go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)
        assert redis_server.command("LLEN", keys.worker_bell(POOL, rig.worker.id)) == 0


async def test_beats_tell_how_many_jobs_the_worker_can_hold(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=7) as rig:
        await until(lambda: _is(bool(rig.worker._helpers)))
        assert redis_server.command("HGET", keys.capacity(POOL), rig.worker.id) == b"7"


async def _is(state: bool) -> bool:
    return state
