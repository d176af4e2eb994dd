"""release.lua, cancel.lua, and the races between them and a claim."""

from __future__ import annotations

import asyncio

import pytest

from common import keys
from common.contracts import OnDisconnect, OnInterrupt, Priority, State
from common.queue import Cancelling, Released, Settled
from tests.support.redis_server import RedisServer
from tests.support.seeds import ALL_LANES, POOL, a_job, job_id, number_of, rig, success


async def test_a_job_put_back_waits_at_its_old_place_and_belongs_to_nobody(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2))
        waiting = r.view()
        member = redis_server.command("ZRANGE", keys.lane(POOL, "0:m"), 0, 0, "WITHSCORES")
        [claim] = await r.claim()
        redis_server.command("DEL", keys.urgent_bell(POOL))
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.PUT_BACK
        after = r.view()
        assert (after.states, after.lanes, after.named) == (waiting.states, waiting.lanes, waiting.named)
        assert redis_server.command("ZRANGE", keys.lane(POOL, "0:m"), 0, 0, "WITHSCORES") == member
        assert (after.held, after.bells, r.job(1)["worker"], r.job(1)["failures"]) == ({}, 1, b"", b"0")


async def test_a_release_into_an_empty_lane_names_the_lane_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert r.view().named == set()
        await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False)
        assert (r.view().named, await r.numbers()) == ({"0:m"}, [1])


async def test_a_release_with_a_delay_waits_among_the_delayed_until_then(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert (
            await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True, delay_ms=5_000) is Released.PUT_BACK
        )
        assert (r.view().states, r.view().delayed, r.view().lanes) == ({1: "delayed"}, [1], {})
        assert await r.numbers() == []
        r.later(5_000)
        await r.queue.promote(POOL)
        [again] = await r.claim()
        assert (again.failures, again.attempt) == (1, 2)
        assert again.fence > claim.fence


async def test_a_second_release_is_refused(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True)
        before = r.view()
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True) is Released.REFUSED
        assert r.view() == before
        assert r.job(1)["failures"] == b"1"


@pytest.mark.parametrize("worker, step", [("other", 0), ("", 0), ("w", 1), ("w", -1)])
async def test_only_the_owner_may_release(redis_server: RedisServer, worker: str, step: int) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        before = r.view()
        assert await r.queue.release(POOL, job_id(1), worker, claim.fence + step, failed=False) is Released.REFUSED
        assert r.view() == before


async def test_an_unknown_job_is_refused(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.queue.release(POOL, job_id(1), "w", 1, failed=False) is Released.REFUSED
        assert redis_server.command("DBSIZE") == 0


async def test_a_job_whose_readers_have_tokens_is_not_put_back_unless_it_may_restart(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for number, on_interrupt, expected in (
            (1, OnInterrupt.FAIL, Released.INTERRUPTED),
            (2, OnInterrupt.RESTART, Released.PUT_BACK),
        ):
            claim = await r.running(a_job(number, on_interrupt=on_interrupt))
            await r.append(claim, 1, b"{}")
            before = r.view()
            assert await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=False) is expected
            assert (r.view() == before) is (expected is Released.INTERRUPTED)


async def test_an_attempt_without_a_token_leaves_the_next_one_free_to_be_put_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        for _ in range(3):
            assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.PUT_BACK
            [claim] = await r.claim()


async def test_failures_are_counted_until_the_attempts_are_used_up(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, max_attempts=3))
        for _ in range(2):
            # A drain in between costs nothing.
            for failed in (False, True):
                assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=failed) is Released.PUT_BACK
                [claim] = await r.claim()
        before = r.view()
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True) is Released.ATTEMPTS_USED_UP
        assert r.view() == before
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.PUT_BACK


@pytest.mark.parametrize("delay_ms, expected", [(0, Released.PUT_BACK), (100_000, Released.EXPIRED)])
async def test_a_job_whose_deadline_would_pass_meanwhile_is_not_put_back(
    redis_server: RedisServer, delay_ms: int, expected: Released
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, deadline_in_ms=100_000))
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False, delay_ms=delay_ms) is expected


async def test_a_job_past_its_deadline_is_not_put_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, deadline_in_ms=1_000))
        r.later(1_000)
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.EXPIRED


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [0, 60_000])
async def test_a_waiting_job_is_cancelled_at_once(redis_server: RedisServer, delay_ms: int) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=delay_ms))
        assert await r.queue.cancel(job_id(1)) is Cancelling.ENDED
        view = r.view()
        assert (view.states, view.lanes, view.named, view.delayed) == ({1: "cancelled"}, {}, set(), [])
        assert view.deadlines == set()
        assert [kind for kind, _ in view.streams[1]] == ["o"]
        record = await r.queue.get(job_id(1))
        assert record is not None and record.outcome is not None
        assert (record.outcome.status, record.outcome.failure and record.outcome.failure.code) == (
            State.CANCELLED,
            "cancelled",
        )


async def test_a_running_job_is_cancelled_through_its_workers_control_list(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert await r.queue.cancel(job_id(1)) is Cancelling.TOLD
        control = keys.control(POOL, "w")
        assert redis_server.command("LRANGE", control, 0, -1) == [f"cancel {job_id(1)} {claim.fence}".encode()]
        assert 0 < redis_server.command("PTTL", control) <= 600_000
        assert r.view().states == {1: "running"}
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.CANCELLED


async def test_cancelling_again_or_too_late_changes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        assert await r.queue.cancel(job_id(1)) is Cancelling.ENDED
        claim = await r.running(a_job(2))
        await r.settle(claim)
        before = r.view()
        assert await r.queue.cancel(job_id(1)) is Cancelling.ENDED
        assert await r.queue.cancel(job_id(2)) is Cancelling.ENDED
        assert await r.queue.cancel(job_id(3)) is Cancelling.UNKNOWN
        assert await r.queue.cancel("nonsense") is Cancelling.UNKNOWN
        assert r.view() == before


async def test_a_job_claimed_between_the_two_steps_of_a_cancel_is_told_to_its_worker(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1))
        names = (keys.job(POOL, job_id(1)), keys.abandoned(POOL))
        [code, fence] = await r.store.call("cancel", keys.pool_prefix(POOL), names, (job_id(1), 1000))
        assert Cancelling(code) is Cancelling.WAITING
        [claim] = await r.claim()
        assert await r.queue.settle(POOL, job_id(1), "", int(fence), success()) is Settled.REFUSED
        assert await r.queue.cancel(job_id(1)) is Cancelling.TOLD
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False) is Released.CANCELLED


async def test_cancels_racing_with_claims_leave_each_job_either_ended_or_told(redis_server: RedisServer) -> None:
    async with rig(redis_server) as canceller, rig(redis_server) as claimer:
        await claimer.worker()
        for start in range(0, 120, 30):
            numbers = range(start, start + 30)
            await canceller.submit(*(a_job(number) for number in numbers))
            answers, claims = await asyncio.gather(
                asyncio.gather(*(canceller.queue.cancel(job_id(number)) for number in numbers)),
                claimer.claim(1_000, lanes=ALL_LANES),
            )
            claimed = {number_of(claim.job.id) for claim in claims}
            told = {n for n, answer in zip(numbers, answers, strict=True) if answer is Cancelling.TOLD}
            ended = {n for n, answer in zip(numbers, answers, strict=True) if answer is Cancelling.ENDED}
            assert told == claimed
            assert ended == set(numbers) - claimed
            states = claimer.view().states
            assert all(states[number] == ("running" if number in claimed else "cancelled") for number in numbers)
            assert claimer.view().lanes == {}


async def test_a_cancelled_job_of_a_dead_worker_ends_as_cancelled_by_the_reaper(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL, priority=Priority.BATCH))
        await r.queue.cancel(job_id(1))
        r.later(60_000)
        [(worker, job, fence)] = await r.queue.reap(POOL)
        assert (worker, job, fence) == ("w", job_id(1), claim.fence)
        assert await r.queue.release(POOL, job, worker, fence, failed=True) is Released.CANCELLED
