"""claim.lua: what a worker gets, what is written, and what is never given out."""

from __future__ import annotations

import orjson

from common import keys
from common.contracts import Priority, State
from common.queue import BATCH_WINDOW, Released, Settled
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, View, a_job, job_id, rig


async def test_a_claim_marks_owner_fence_and_attempt_and_opens_the_stream(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        [answer] = await r.submit(a_job(1))
        [claim] = await r.claim()
        assert (claim.job, claim.attempt, claim.failures) == (a_job(1), 1, 0)
        assert (claim.created_ms, claim.deadline_ms) == (answer.created_ms, answer.created_ms + 600_000)
        assert answer.created_ms <= claim.claimed_ms <= claim.fence
        record = r.job(1)
        assert (record["worker"], record["state"], record["attempt"]) == (b"w", b"running", b"1")
        assert int(record["fence"]) == claim.fence
        assert int(record["started_ms"]) == claim.claimed_ms
        assert r.ids(1) == [f"{claim.fence}-0"]
        assert await r.queue.held(POOL, "w") == {job_id(1): claim.fence}
        assert r.view() == View(
            states={1: "running"},
            held={"w": {1}},
            deadlines={1},
            workers={"w"},
            stats={"submitted": 1},
            streams={1: [("s", b"1")]},
        )


async def test_a_worker_without_a_lease_gets_none_and_changes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        before = r.view()
        assert await r.queue.claim(POOL, "stranger", most=5, lanes=("0:m",)) is None
        assert r.view() == before


async def test_a_reaped_worker_gets_none(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        await r.submit(a_job(2))
        r.later(20_000)
        assert len(await r.queue.reap(POOL)) == 1
        assert await r.queue.claim(POOL, "w", most=5, lanes=("0:m",)) is None


async def test_nothing_waiting_gives_an_empty_list(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        assert await r.claim(10) == []
        await r.submit(a_job(1, delay_ms=60_000))
        assert await r.claim(10) == []


async def test_a_claim_of_no_jobs_takes_none(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1))
        before = r.view()
        assert await r.claim(0) == []
        assert r.view() == before


async def test_a_claim_takes_at_most_what_was_asked_for_and_the_rest_later(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(number) for number in range(5)))
        assert await r.numbers(3) == [0, 1, 2]
        assert r.view().named == {"0:m"}
        assert await r.numbers(3) == [3, 4]
        assert await r.numbers(3) == []


async def test_a_very_large_claim_is_served_up_to_a_thousand_at_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for start in range(0, 1_200, 100):
            await r.submit(*(a_job(number) for number in range(start, start + 100)))
        assert await r.numbers(20_000) == list(range(1_000))
        assert await r.numbers(20_000) == list(range(1_000, 1_200))


async def test_lanes_that_the_worker_leaves_out_stay_as_they_are(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, model="open"), a_job(2, model="m"), a_job(3, model="open"))
        assert await r.numbers(9) == [2]
        view = r.view()
        assert view.lanes == {"0:open": [1, 3]}
        assert view.named == {"0:open"}
        assert view.bells == 3


async def test_the_last_job_taken_clears_the_bells_and_the_lanes_name(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2))
        assert r.view().bells == 2
        await r.claim(1)
        assert (r.view().bells, r.view().named) == (2, {"0:m"})
        await r.claim(1)
        assert (r.view().bells, r.view().named) == (0, set())


async def test_a_job_past_its_deadline_is_never_given_out(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        [late] = await r.submit(a_job(1, deadline_in_ms=5_000))
        await r.submit(a_job(2, deadline_in_ms=5_001 + 60_000))
        r.later(5_000)
        assert await r.queue.now_ms() >= late.created_ms + 5_000
        assert await r.numbers(9) == [2]
        assert r.view().states[1] == "queued"
        assert r.view().deadlines == {1, 2}
        # Its end is the scheduler's.
        assert await r.queue.overdue(POOL) == [(job_id(1), 0, "")]


async def test_late_jobs_at_the_head_do_not_hide_the_live_ones_behind_them(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(*(a_job(number, deadline_in_ms=1_000) for number in range(40)))
        await r.submit(a_job(100), a_job(101), a_job(102))
        r.later(1_000)
        assert await r.numbers(1) == [100]
        assert await r.numbers(2) == [101, 102]


async def test_a_flood_of_late_jobs_is_cleared_in_bounded_steps_with_a_bell_for_the_next(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        for start in range(0, 1_100, 100):
            await r.submit(*(a_job(number, deadline_in_ms=1_000) for number in range(start, start + 100)))
        await r.submit(a_job(5_000))
        r.later(60_000)
        redis_server.command("DEL", keys.urgent_bell(POOL))
        assert await r.numbers(8) == []
        assert len(r.view().lanes["0:m"]) == 101
        assert [redis_server.command("LLEN", bell) for bell in (keys.urgent_bell(POOL), keys.bell(POOL))] == [1, 1]
        assert await r.numbers(8) == [5_000]
        assert r.view().lanes == {}


async def test_a_lane_member_whose_record_is_gone_is_dropped(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2))
        redis_server.command("DEL", keys.job(POOL, job_id(1)))
        assert await r.numbers(1) == [2]
        assert r.view().lanes == {}


async def test_a_worker_whose_lease_lapsed_but_was_not_reaped_goes_on(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1)
        await r.submit(a_job(1))
        r.later(5_000)
        assert await r.numbers() == [1]


async def test_fences_rise_with_each_claim_even_when_the_clock_goes_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        first = await r.running(a_job(1, max_attempts=9))
        fences = [first.fence]
        for step in (0, 10_000, -50_000, -1):
            r.later(step)
            assert await r.queue.release(POOL, job_id(1), "w", fences[-1], failed=False) is Released.PUT_BACK
            [claim] = await r.claim()
            fences.append(claim.fence)
        assert fences == sorted(set(fences))
        assert [entry.partition("-")[0] for entry in r.ids(1)] == [str(fence) for fence in fences]
        assert [body for _, body in r.view().streams[1]] == [b"1", b"2", b"3", b"4", b"5"]


async def test_an_attempt_counts_every_claim_and_failures_only_failed_ones(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=False)
        [claim] = await r.claim()
        assert (claim.attempt, claim.failures) == (2, 0)
        await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=True)
        [claim] = await r.claim()
        assert (claim.attempt, claim.failures) == (3, 1)


async def test_two_workers_never_get_the_same_job(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker("a")
        await r.worker("b")
        await r.submit(*(a_job(number) for number in range(20)))
        taken = [number for worker in "abababab" for number in await r.numbers(3, worker)]
        assert sorted(taken) == list(range(20))
        view = r.view()
        assert view.held["a"] | view.held["b"] == set(range(20))
        assert view.held["a"].isdisjoint(view.held["b"])


async def test_the_stream_outlives_the_deadline_by_its_retention(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1, deadline_in_ms=100_000))
        life_ms = redis_server.command("PTTL", keys.stream(POOL, job_id(1)))
        assert 3_600_000 + 90_000 < life_ms <= 3_600_000 + 100_000


# --- batch keys -------------------------------------------------------------------------------------------------------


async def test_jobs_with_the_first_ones_batch_key_come_along(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(n, batch_key="ab"[n % 2]) for n in range(8)))
        assert await r.numbers(4) == [0, 2, 4, 6]
        assert await r.numbers(9) == [1, 3, 5, 7]


async def test_when_a_key_is_used_up_the_order_of_the_lane_goes_on(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, batch_key="a"), a_job(2), a_job(3, batch_key="b"), a_job(4, batch_key="a"), a_job(5))
        assert await r.numbers(9) == [1, 4, 2, 3, 5]


async def test_jobs_without_a_key_are_not_taken_for_having_none_in_common(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1), a_job(2, batch_key="a"), a_job(3))
        assert await r.numbers(2) == [1, 2]


async def test_a_key_is_gathered_only_within_the_window(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        inside, outside = BATCH_WINDOW - 1, BATCH_WINDOW
        keyed = {0, inside, outside}
        await r.submit(*(a_job(n, batch_key="k" if n in keyed else "") for n in range(BATCH_WINDOW + 2)))
        assert await r.numbers(3) == [0, inside, 1]


async def test_a_batch_key_never_reaches_into_another_model_or_class(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, batch_key="k"), a_job(2), a_job(3, model="n"), a_job(4, batch_key="k", model="n"))
        await r.submit(a_job(5, batch_key="k", priority=Priority.STANDARD))
        assert await r.numbers(2, lanes=("0:m", "0:n", "1:m")) == [1, 3]


async def test_a_late_job_with_the_key_is_dropped_and_not_given_out(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(a_job(1, batch_key="k"), a_job(2, batch_key="k", deadline_in_ms=10), a_job(3, batch_key="k"))
        r.later(1_000)
        assert await r.numbers(9) == [1, 3]


# --- beat and leave ---------------------------------------------------------------------------------------------------


async def test_a_beat_renews_the_lease_and_shows_what_the_worker_does(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10)
        [before] = await r.queue.workers(POOL)
        r.later(5_000)
        assert await r.queue.beat(POOL, "w", lease_s=10, info={"slots": 4})
        [after] = await r.queue.workers(POOL)
        assert after.lease_expires_ms - before.lease_expires_ms >= 5_000
        assert (after.id, after.pool, after.info) == ("w", POOL, {"slots": 4})
        info = keys.worker_info(POOL, "w")
        assert orjson.loads(redis_server.command("GET", info)) == {"slots": 4}
        assert 10_000 < redis_server.command("PTTL", info) <= 30_000


async def test_a_beat_of_a_stranger_is_refused_until_it_registers(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert not await r.queue.beat(POOL, "w", lease_s=10, info={})
        assert redis_server.command("DBSIZE") == 0
        await r.worker()
        assert await r.queue.beat(POOL, "w", lease_s=10, info={})


async def test_a_lapsed_worker_that_nobody_reaped_may_beat_again_a_reaped_one_not(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        r.later(60_000)
        assert await r.queue.beat(POOL, "w", lease_s=10, info={})
        assert await r.queue.reap(POOL) == []
        r.later(60_000)
        assert len(await r.queue.reap(POOL)) == 1
        assert not await r.queue.beat(POOL, "w", lease_s=10, info={})


async def test_a_worker_with_jobs_cannot_leave_and_one_without_leaves_nothing_behind(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.queue.cancel(claim.job.id)
        before = r.view()
        assert not await r.queue.leave(POOL, "w")
        assert r.view() == before
        assert await r.settle(claim) is Settled.ENDED
        assert await r.queue.leave(POOL, "w")
        assert r.view().workers == set()
        assert redis_server.command("KEYS", "*:w") == []
        assert await r.queue.leave(POOL, "w")


async def test_the_record_of_a_running_job_says_so(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        record = await r.queue.get(job_id(1))
        assert record is not None
        assert (record.state, record.fence, record.attempt) == (State.RUNNING, claim.fence, 1)
        assert (record.started_ms, record.position) == (claim.claimed_ms, None)
