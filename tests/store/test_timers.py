"""promote, reap, overdue, abandoned: what the scheduler's rounds find, and that any number of rounds may run."""

from __future__ import annotations

from common import keys
from common.contracts import Failure, OnDisconnect, OnInterrupt, Outcome, State
from common.queue import Released, Settled, Settlement
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, a_job, job_id, number_of, rig

EXPIRED = Settlement(Outcome(State.EXPIRED, failure=Failure("deadline_exceeded", "x")))
BROKEN = Settlement(Outcome(State.FAILED, failure=Failure("upstream_interrupted", "x")))


async def test_a_promotion_moves_what_is_due_names_the_lane_and_rings(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=1_000), a_job(2, delay_ms=60_000))
        r.later(1_000)
        assert await r.queue.promote(POOL) == 1
        view = r.view()
        assert (view.states, view.delayed) == ({1: "queued", 2: "delayed"}, [2])
        assert (view.lanes, view.named, view.bells) == ({"0:m": [1]}, {"0:m"}, 1)
        assert await r.queue.promote(POOL) == 0
        assert r.view() == view


async def test_promotions_come_in_bounded_rounds(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, delay_ms=1_000 + number) for number in range(10)))
        r.later(5_000)
        assert [await r.queue.promote(POOL, most=4) for _ in range(4)] == [4, 4, 2, 0]


async def test_a_delayed_job_that_ended_or_vanished_is_not_promoted(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=1_000), a_job(2, delay_ms=1_000))
        await r.queue.cancel(job_id(1))
        redis_server.command("DEL", keys.job(POOL, job_id(2)))
        r.later(2_000)
        assert await r.queue.promote(POOL) == 0
        assert (r.view().delayed, r.view().lanes, r.view().states) == ([], {}, {1: "cancelled"})


async def test_a_promoted_job_can_be_cancelled_and_shows_its_place(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, delay_ms=1_000), a_job(2))
        r.later(1_000)
        await r.queue.promote(POOL)
        record = await r.queue.get(job_id(1))
        # It stands where it would if it had been submitted when it fell due.
        assert record is not None and record.position == 1
        await r.queue.cancel(job_id(1))
        assert r.view().lanes == {"0:m": [2]}


async def test_a_delayed_jobs_bell_is_bounded(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, delay_ms=1) for number in range(300)))
        r.later(1_000)
        assert await r.queue.promote(POOL) == 300
        assert r.view().bells == 256


# --- reaping ----------------------------------------------------------------------------------------------------------


async def test_a_lapsed_workers_jobs_are_listed_and_it_is_shut_out_until_none_is_left(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker("dies", lease_s=1)
        await r.worker("lives", lease_s=1_000)
        await r.submit(a_job(1), a_job(2), a_job(3))
        await r.numbers(2, "dies")
        await r.numbers(1, "lives")
        assert await r.queue.reap(POOL) == []
        r.later(1_000)
        listed = await r.queue.reap(POOL)
        assert sorted((worker, number_of(job)) for worker, job, _ in listed) == [("dies", 1), ("dies", 2)]
        assert r.view().states == {1: "running", 2: "running", 3: "running"}
        # A reaper that died here is followed by another, which sees the same.
        assert sorted(await r.queue.reap(POOL)) == sorted(listed)
        for worker, job, fence in listed:
            assert await r.queue.release(POOL, job, worker, fence, failed=True) is Released.PUT_BACK
        assert r.view().workers == {"dies", "lives"}
        assert await r.queue.reap(POOL) == []
        assert r.view().workers == {"lives"}
        assert redis_server.command("KEYS", "*:dies") == []
        assert await r.numbers(5, "lives") == [1, 2]


async def test_reaping_comes_in_bounded_rounds_and_gets_through(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        for worker in ("a", "b"):
            await r.worker(worker, lease_s=1)
            await r.submit(*(a_job(n + 10 * (worker == "b")) for n in range(5)))
            await r.claim(5, worker)
        r.later(1_000)
        seen: list[int] = []
        for _ in range(10):
            listed = await r.queue.reap(POOL, most=3)
            assert len(listed) <= 3
            for worker, job, fence in listed:
                seen.append(number_of(job))
                assert await r.queue.release(POOL, job, worker, fence, failed=True) is Released.PUT_BACK
        assert sorted(seen) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
        assert (r.view().workers, r.view().held) == (set(), {})


async def test_a_job_that_broke_off_after_its_first_token_ends_in_the_dead_workers_name(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, on_interrupt=OnInterrupt.FAIL))
        await r.append(claim, 3, b"{}")
        r.later(60_000)
        [(worker, job, fence)] = await r.queue.reap(POOL)
        assert await r.queue.release(POOL, job, worker, fence, failed=True) is Released.INTERRUPTED
        assert await r.queue.settle(POOL, job, worker, fence, BROKEN) is Settled.ENDED
        assert r.ids(1) == [f"{claim.fence}-{seq}" for seq in (0, 3, 4)]
        assert await r.queue.reap(POOL) == []
        assert (r.view().workers, r.view().held) == (set(), {})


async def test_a_settle_that_beats_the_reapers_release_counts(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        r.later(60_000)
        [(worker, job, fence)] = await r.queue.reap(POOL)
        assert await r.settle(claim) is Settled.ENDED
        assert await r.queue.release(POOL, job, worker, fence, failed=True) is Released.REFUSED
        assert r.view().states == {1: "succeeded"}


async def test_a_dead_workers_job_whose_record_is_gone_does_not_keep_it_listed_for_ever(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        redis_server.command("DEL", keys.job(POOL, job_id(1)))
        r.later(60_000)
        assert await r.queue.reap(POOL) == []
        assert await r.queue.reap(POOL) == []
        assert (r.view().workers, r.view().held) == (set(), {})


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_what_waits_past_its_deadline_is_listed_until_it_is_settled(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(
            a_job(1, deadline_in_ms=1_000), a_job(2, deadline_in_ms=1_000, delay_ms=500), a_job(3, deadline_in_ms=9_000)
        )
        assert await r.queue.overdue(POOL) == []
        r.later(1_000)
        listed = await r.queue.overdue(POOL)
        assert sorted((number_of(job), fence, worker) for job, fence, worker in listed) == [(1, 0, ""), (2, 0, "")]
        assert sorted(await r.queue.overdue(POOL)) == sorted(listed)
        for job, fence, _ in listed:
            assert await r.queue.settle(POOL, job, "", fence, EXPIRED) is Settled.ENDED
        assert await r.queue.overdue(POOL) == []
        view = r.view()
        assert (view.states, view.lanes, view.delayed) == ({1: "expired", 2: "expired", 3: "queued"}, {"0:m": [3]}, [])


def _orders(server: RedisServer, worker: str = "w") -> list[str]:
    return [raw.decode() for raw in server.command("LRANGE", keys.control(POOL, worker), 0, -1)]


async def test_a_worker_is_given_time_to_end_a_late_job_then_told_and_then_the_job_is_listed_as_its_own(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, deadline_in_ms=1_000))
        r.later(1_000)
        assert await r.queue.overdue(POOL) == []
        assert _orders(redis_server) == []
        r.later(2_000)
        for _ in range(2):  # a second look within the time does not tell it again
            assert await r.queue.overdue(POOL) == []
        assert _orders(redis_server) == [f"expire {job_id(1)} {claim.fence}"]
        r.later(5_000)
        assert await r.queue.overdue(POOL) == [(job_id(1), claim.fence, "w")]
        # Whoever was to settle it may die before it does: it comes again.
        r.later(5_000)
        assert await r.queue.overdue(POOL) == [(job_id(1), claim.fence, "w")]
        assert await r.queue.settle(POOL, job_id(1), "w", claim.fence, EXPIRED) is Settled.ENDED
        assert (await r.settle(claim)).done is False
        assert await r.queue.overdue(POOL) == []
        assert len(_orders(redis_server)) == 1


async def test_after_a_long_outage_a_worker_is_told_first_all_the_same(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, deadline_in_ms=1_000))
        r.later(60_000)
        assert await r.queue.overdue(POOL) == []
        assert _orders(redis_server) == [f"expire {job_id(1)} {claim.fence}"]
        assert (await r.settle(claim)).done


async def test_a_deadline_whose_record_is_gone_is_forgotten(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, deadline_in_ms=1_000))
        redis_server.command("DEL", keys.job(POOL, job_id(1)))
        r.later(1_000)
        assert await r.queue.overdue(POOL) == []
        assert r.view().deadlines == set()


async def test_overdue_comes_in_bounded_rounds(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(*(a_job(number, deadline_in_ms=10 + number) for number in range(5)))
        r.later(1_000)
        assert [number_of(job) for job, *_ in await r.queue.overdue(POOL, most=2)] == [0, 1]


# --- abandoned --------------------------------------------------------------------------------------------------------


async def test_a_job_left_by_its_last_reader_is_listed_after_the_grace_and_not_before(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.queue.submit(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway="g")
        await r.streams.unsubscribe(job_id(1), "g")
        assert r.view().abandoned == {1}
        assert await r.queue.abandoned(POOL) == []
        r.later(10_000)
        assert await r.queue.abandoned(POOL) == [job_id(1)]
        await r.queue.cancel(job_id(1))
        assert (await r.queue.abandoned(POOL), r.view().states) == ([], {1: "cancelled"})


async def test_an_abandoned_job_is_told_once_to_its_worker_and_one_that_is_gone_is_forgotten(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        for number in (1, 2):
            await r.running(a_job(number, on_disconnect=OnDisconnect.CANCEL), gateway="g")
            await r.streams.unsubscribe(job_id(number), "g")
        redis_server.command("DEL", keys.job(POOL, job_id(2)))
        r.later(10_000)
        for job in await r.queue.abandoned(POOL):
            await r.queue.cancel(job)
        assert await r.queue.abandoned(POOL) == []
        assert redis_server.command("LLEN", keys.control(POOL, "w")) == 1


async def test_now_is_the_servers_time_and_uptime_is_known(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        now = await r.queue.now_ms()
        seconds, _ = redis_server.command("TIME")
        assert 0 <= int(seconds) * 1000 - now + 1_000 < 5_000
        r.later(100_000)
        assert await r.queue.now_ms() >= now + 100_000
        assert await r.queue.uptime_s() >= 0
