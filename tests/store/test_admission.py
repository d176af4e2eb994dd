"""What submit.lua refuses and what it says of the wait: idempotency keys, limits of tenants, deadlines out of reach."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from common import keys
from common.contracts import Job, OnDisconnect, Outcome, Priority, State, Usage
from common.queue import Admitted, AttemptError, Cancelling, Place, PutBack, Queue, Retention, Settlement, Submitted
from common.store import Store
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success

RACERS = 100
TRIALS = int(os.environ.get("HEADRACE_TEST_TRIALS") or 10)
GATEWAYS = 3


def keyed(number: int, key: str = "k", body: str = "b", **changes: Any) -> Job:
    """Job `number` with an idempotency key and the fingerprint of its body."""
    return a_job(number, idempotency=key, fingerprint=body, **changes)


def pace(server: RedisServer, tokens_per_s: float, service_ms: float = 0, model: str = "m") -> None:
    """Notes a measured pace, as the scheduler does, and how long jobs take, as their ends do."""
    server.command("HSET", keys.stats(POOL), f"drain_tokens_per_s:{model}", tokens_per_s)
    server.command("HSET", keys.fair(POOL), f"m:0:{model}", f"{service_ms} 1")


# --- idempotency keys -------------------------------------------------------------------------------------------------


async def test_a_key_that_is_known_gives_the_first_job_and_writes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        [first] = await r.submit(keyed(1))
        before = r.view()
        [again] = await r.submit(keyed(2))
        assert (again.code, again.job_id, again.created_ms) == (Submitted.DUPLICATE, job_id(1), first.created_ms)
        assert r.view() == before
        assert await r.listed("t", most=9) == [job_id(1)]


async def test_a_key_with_another_body_is_refused_and_writes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(keyed(1))
        before = r.view()
        [other] = await r.submit(keyed(2, body="c"))
        assert (other.code, other.job_id) == (Submitted.OTHER_BODY, job_id(1))
        assert r.view() == before
        assert await r.listed("t", most=9) == [job_id(1)]


async def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        answers = await r.submit(keyed(1), keyed(2, tenant="other", body="c"))
        assert [answer.code for answer in answers] == [Submitted.ACCEPTED, Submitted.ACCEPTED]
        assert await r.queue.by_key(POOL, "t", "k") == job_id(1)
        assert await r.queue.by_key(POOL, "other", "k") == job_id(2)


async def test_a_key_outlives_its_jobs_end_by_the_time_that_was_promised(redis_server: RedisServer) -> None:
    kept = Retention(result_s=60, stream_s=60, idempotency_s=3_600)
    async with rig(redis_server, retention=kept) as r:
        claim = await r.running(keyed(1))
        await r.settle(claim)
        for name in (keys.idempotency(POOL, "t", "k"), keys.job(POOL, job_id(1))):
            assert 3_500_000 < redis_server.command("PTTL", name) <= 3_600_000
        [again] = await r.submit(keyed(2))
        assert (again.code, again.job_id) == (Submitted.DUPLICATE, job_id(1))


async def test_a_key_of_a_refused_job_is_free_again(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_in_lane=1) as r:
        await r.submit(a_job(1))
        [refused] = await r.submit(keyed(2))
        assert refused.code is Submitted.FULL
        assert await r.queue.by_key(POOL, "t", "k") is None


async def test_a_body_is_held_against_the_key_in_every_pool(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.queue.same_body("t", "k", "one", life_ms=60_000)
        assert await r.queue.same_body("t", "k", "one", life_ms=60_000)
        assert not await r.queue.same_body("t", "k", "two", life_ms=60_000)
        assert await r.queue.same_body("u", "k", "two", life_ms=60_000)
        assert redis_server.command("PTTL", keys.tenant_idempotency("t", "k")) > 0


async def test_a_key_whose_job_is_gone_is_free_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(keyed(1))
        redis_server.command("DEL", keys.job(POOL, job_id(1)))
        assert await r.queue.by_key(POOL, "t", "k") is None
        [made] = await r.submit(keyed(2, body="c"))
        assert (made.code, made.job_id) == (Submitted.ACCEPTED, job_id(2))
        assert await r.queue.by_key(POOL, "t", "k") == job_id(2)


async def left(r: Rig, number: int) -> None:
    """The only reader of this job leaves, and the grace passes."""
    await r.streams.subscribe(job_id(number), "g")
    await r.streams.unsubscribe(job_id(number), "g")
    r.later(10_001)


@pytest.mark.parametrize("runs", [False, True])
async def test_who_lost_the_connection_and_asks_again_late_begins_anew(redis_server: RedisServer, runs: bool) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(keyed(1, on_disconnect=OnDisconnect.CANCEL))
        claims = await r.claim() if runs else []
        await left(r, 1)
        told = await r.queue.cancel(job_id(1), unread=True)
        assert told is (Cancelling.TOLD if runs else Cancelling.ENDED)
        [again] = await r.submit(keyed(2))
        assert (again.code, again.job_id) == (Submitted.ACCEPTED, job_id(2))
        # The old one's end has no say over the new one's key.
        for claim in claims:
            await r.settle(claim, end=Settlement(Outcome(State.CANCELLED)))
        assert await r.queue.by_key(POOL, "t", "k") == job_id(2)
        assert redis_server.command("PTTL", keys.idempotency(POOL, "t", "k")) > 86_400_000


async def test_what_its_caller_cancelled_stays_the_keys_answer(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(keyed(1))
        assert await r.queue.cancel(job_id(1)) is Cancelling.ENDED
        [again] = await r.submit(keyed(2))
        assert (again.code, again.job_id) == (Submitted.DUPLICATE, job_id(1))


async def test_an_ended_or_journaled_job_keeps_its_key_when_its_readers_leave(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(keyed(1, on_disconnect=OnDisconnect.CANCEL))
        [claim] = await r.claim()
        await left(r, 1)
        await r.settle(claim)
        redis_server.command("ZADD", keys.abandoned(POOL), 0, job_id(1))
        assert await r.queue.cancel(job_id(1), unread=True) is Cancelling.ENDED
        assert await r.queue.by_key(POOL, "t", "k") == job_id(1)
        await r.submit(keyed(2, key="l", journal=True, on_disconnect=OnDisconnect.CANCEL))
        await left(r, 2)
        assert await r.queue.cancel(job_id(2), unread=True) is Cancelling.ENDED
        assert await r.queue.by_key(POOL, "t", "l") == job_id(2)


async def test_one_that_is_read_again_is_not_cancelled_for_want_of_readers(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, on_disconnect=OnDisconnect.CANCEL), a_job(2, on_disconnect=OnDisconnect.CANCEL))
        await left(r, 1)
        [listed] = await r.queue.abandoned(POOL)
        # Someone comes between the list and the call.
        await r.streams.subscribe(job_id(1), "g")
        assert await r.queue.cancel(listed, unread=True) is Cancelling.READ
        await r.streams.unsubscribe(job_id(1), "g")
        assert await r.queue.cancel(listed, unread=True) is Cancelling.READ
        assert r.view().states[1] == "queued"
        r.later(10_001)
        assert await r.queue.cancel(listed, unread=True) is Cancelling.ENDED
        assert await r.queue.cancel(listed, unread=True) is Cancelling.READ
        assert r.view().abandoned == set()


async def test_of_two_readers_the_second_keeps_the_job(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.submit(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway="one")
        await r.streams.subscribe(job_id(1), "two")
        await r.streams.unsubscribe(job_id(1), "one")
        r.later(60_000)
        assert await r.queue.abandoned(POOL) == []
        await r.streams.unsubscribe(job_id(1), "two")
        assert await r.queue.abandoned(POOL) == []
        r.later(10_001)
        assert await r.queue.abandoned(POOL) == [job_id(1)]


@pytest.mark.timeout(600)
async def test_of_a_hundred_racers_at_three_gateways_one_makes_the_job(redis_server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        stores = [Store.from_url(redis_server.url) for _ in range(GATEWAYS)]
        for store in stores:
            stack.push_async_callback(store.close)
        queues = [Queue(store) for store in stores]
        for trial in range(TRIALS):
            racers = [keyed(trial * RACERS + n, key=f"k{trial}") for n in range(RACERS)]
            answers = await asyncio.gather(*(queues[n % GATEWAYS].submit(job) for n, job in enumerate(racers)))
            assert one_made(answers)
        stats = await queues[0].stats(POOL)
        assert stats["submitted"] == TRIALS


def one_made(answers: list[Admitted]) -> bool:
    """Whether one of these was accepted and all others were given that one's job."""
    [made] = [answer for answer in answers if answer.code is Submitted.ACCEPTED]
    rest = {(answer.code, answer.job_id) for answer in answers if answer is not made}
    return rest == {(Submitted.DUPLICATE, made.job_id)}


# --- limits of tenants ------------------------------------------------------------------------------------------------


async def test_a_tenant_may_have_only_so_much_waiting_and_others_are_not_touched(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_waiting=2) as r:
        await r.worker()
        codes = [answer.code for answer in await r.submit(a_job(1), a_job(2, delay_ms=60_000), a_job(3))]
        assert codes == [Submitted.ACCEPTED, Submitted.ACCEPTED, Submitted.TENANT_FULL]
        assert [answer.code for answer in await r.submit(a_job(4, tenant="u"))] == [Submitted.ACCEPTED]
        assert await r.numbers() == [1]
        assert [answer.code for answer in await r.submit(a_job(5))] == [Submitted.ACCEPTED]


async def test_a_tenants_own_limit_goes_before_the_general_one(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_waiting=1) as r:
        await r.submit(a_job(1))
        assert (await r.queue.submit(a_job(2), most_waiting=2)).code is Submitted.ACCEPTED
        refused = await r.queue.submit(a_job(3), most_waiting=2)
        assert (refused.code, refused.ahead) == (Submitted.TENANT_FULL, 2)
        assert await r.listed("t", most=9) == [job_id(2), job_id(1)]


async def test_a_submission_says_how_many_of_its_tenants_jobs_wait_now_and_how_many_may(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server, most_waiting=2, most_in_lane=2) as r:

        async def told(job: Job, most_waiting: int | None = None) -> tuple[Submitted, int | None, int]:
            answer = await r.queue.submit(job, most_waiting=most_waiting)
            return answer.code, answer.waiting, answer.most_waiting

        assert await told(keyed(1)) == (Submitted.ACCEPTED, 1, 2)
        assert await told(a_job(2, delay_ms=60_000)) == (Submitted.ACCEPTED, 2, 2)
        assert await told(a_job(3)) == (Submitted.TENANT_FULL, 2, 2)
        assert await told(a_job(1)) == (Submitted.DUPLICATE, 2, 2), "the same submission, sent again"
        assert await told(keyed(4)) == (Submitted.DUPLICATE, None, 2), "another's, by its key"
        assert await told(keyed(4, body="c")) == (Submitted.OTHER_BODY, None, 2)
        assert await told(a_job(5, tenant="u"), most_waiting=7) == (Submitted.ACCEPTED, 1, 7)
        assert await told(a_job(6), most_waiting=7) == (Submitted.FULL, 2, 7)
        await r.worker()
        assert await r.numbers() == [1]
        assert await told(a_job(7)) == (Submitted.ACCEPTED, 2, 2)


@pytest.mark.parametrize("way", ["settled", "put back and settled", "expired", "cancelled"])
async def test_what_no_longer_waits_is_no_longer_counted(redis_server: RedisServer, way: str) -> None:
    async with rig(redis_server, most_waiting=1) as r:
        await r.worker(lease_s=1_000)
        await r.submit(a_job(1, deadline_in_ms=60_000))
        if way in ("settled", "put back and settled"):
            [claim] = await r.claim()
            if way != "settled":
                await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True)
                assert (await r.queue.submit(a_job(2))).code is Submitted.TENANT_FULL
                [claim] = await r.claim()
            await r.settle(claim)
        elif way == "expired":
            r.later(61_000)
            for job, fence, worker in await r.queue.overdue(POOL):
                await r.queue.settle(POOL, job, worker, fence, Settlement(Outcome(State.EXPIRED)))
        else:
            await r.queue.cancel(job_id(1))
        assert r.view().waiting == {}
        assert (await r.queue.submit(a_job(3))).code is Submitted.ACCEPTED


# --- the wait ---------------------------------------------------------------------------------------------------------


async def test_a_job_that_would_end_after_its_deadline_is_refused_and_told_by_how_much(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 100, service_ms=500)
        await r.submit(a_job(1, cost_tokens=1_000))
        # A quarter more than the wait, and twice what a job takes, must fit.
        [taken] = await r.submit(a_job(2, tenant="u", cost_tokens=500, deadline_in_ms=13_500))
        assert (taken.code, taken.ahead, taken.wait_ms) == (Submitted.ACCEPTED, 1, 10_000)
        before = r.view()
        [late] = await r.submit(a_job(3, tenant="v", deadline_in_ms=13_500))
        assert (late.code, late.wait_ms, late.retry_ms) == (Submitted.TOO_LATE, 15_000, 6_250)
        [just] = await r.submit(a_job(4, tenant="v", deadline_in_ms=19_000))
        assert (just.code, just.retry_ms) == (Submitted.TOO_LATE, 3_750)
        assert r.view() == before


async def test_what_was_accepted_before_is_refused_by_no_limit(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_in_lane=1, most_waiting=1) as r:
        pace(redis_server, 1)
        await r.submit(a_job(1, cost_tokens=1_000))
        assert (await r.queue.submit(a_job(2, deadline_in_ms=10))).code is Submitted.TENANT_FULL
        assert (await r.queue.submit(a_job(2, deadline_in_ms=10), accepted=True)).code is Submitted.ACCEPTED


async def test_an_unknown_pace_refuses_nobody_and_promises_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, cost_tokens=10**9))
        [taken] = await r.submit(a_job(2, deadline_in_ms=1))
        assert (taken.code, taken.wait_ms) == (Submitted.ACCEPTED, None)


async def test_a_job_for_later_is_not_held_against_the_wait_of_now(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 1)
        await r.submit(a_job(1, cost_tokens=1_000))
        [taken] = await r.submit(a_job(2, delay_ms=60_000, deadline_in_ms=70_000))
        assert taken.code is Submitted.ACCEPTED


async def test_with_nothing_ahead_a_short_deadline_is_tried(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 1, service_ms=60_000)
        [taken] = await r.submit(a_job(1, deadline_in_ms=10))
        assert (taken.code, taken.wait_ms) == (Submitted.ACCEPTED, 0)


async def test_the_wait_counts_the_models_higher_classes_and_no_lower_ones_or_other_models(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 100)
        await r.submit(a_job(1, cost_tokens=100), a_job(2, cost_tokens=10_000, model="other"))
        await r.submit(a_job(3, cost_tokens=10_000, priority=Priority.BATCH))
        [standard] = await r.submit(a_job(4, cost_tokens=7, priority=Priority.STANDARD))
        assert (standard.ahead, standard.wait_ms) == (0, 1_000)


async def test_a_quiet_tenant_waits_only_for_its_own_share_of_a_loud_ones_backlog(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 10)
        await r.submit(*(a_job(n, tenant="loud", cost_tokens=10) for n in range(100)))
        [quiet] = await r.submit(a_job(200, tenant="quiet", cost_tokens=10))
        assert (quiet.ahead, quiet.wait_ms) == (1, 1_000)


async def test_a_place_without_a_pace_has_no_time(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1), a_job(2))
        assert await r.queue.places(POOL, [job_id(2)]) == [Place(State.QUEUED, 1, None)]
        await r.submit(a_job(3, priority=Priority.STANDARD))
        pace(redis_server, 2)
        # The model's higher classes go first, and take their time.
        assert await r.queue.places(POOL, [job_id(3)]) == [Place(State.QUEUED, 0, 1_000)]


async def test_a_jobs_place_moves_up_as_others_are_taken(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pace(redis_server, 20)
        await r.worker()
        await r.submit(*(a_job(n, cost_tokens=10) for n in range(1, 5)))
        await r.submit(a_job(5, delay_ms=60_000))
        asked = [job_id(n) for n in (1, 4, 5, 99)]
        assert await r.queue.places(POOL, asked) == [
            Place(State.QUEUED, 0, 0),
            Place(State.QUEUED, 3, 1_500),
            Place(State.DELAYED, None, None),
            None,
        ]
        assert await r.numbers(2) == [1, 2]
        assert await r.queue.places(POOL, asked[:2]) == [Place(State.RUNNING, None, None), Place(State.QUEUED, 1, 500)]


async def test_tokens_that_wait_are_counted_by_lane_through_a_retry(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(a_job(1, cost_tokens=70), a_job(2, cost_tokens=5))
        [claim] = await r.claim()
        assert r.view().waiting == {"j:t": 1, "t:0:m": 5}
        await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True, delay_ms=1_000)
        assert r.view().waiting == {"j:t": 2, "t:0:m": 5}
        r.later(1_000)
        await r.queue.promote(POOL)
        assert r.view().waiting == {"j:t": 2, "t:0:m": 75}
        lanes = await r.queue.lanes(POOL)
        assert [(lane.depth, lane.tokens) for lane in lanes] == [(2, 75)]


async def test_tokens_are_counted_once_whichever_way_a_job_leaves_and_comes_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await r.submit(a_job(1, cost_tokens=70, deadline_in_ms=1_000), *(a_job(n, cost_tokens=5) for n in (2, 3)))
        r.later(2_000)
        # The claim passes the late one, which the scheduler ends later.
        [claim] = await r.claim()
        assert r.view().waiting == {"j:t": 2, "t:0:m": 5}
        for job, fence, worker in await r.queue.overdue(POOL):
            await r.queue.settle(POOL, job, worker, fence, Settlement(Outcome(State.EXPIRED)))
        assert r.view().waiting == {"j:t": 1, "t:0:m": 5}
        await r.queue.release(POOL, job_id(2), "w", claim.fence, failed=True)
        assert r.view().waiting == {"j:t": 2, "t:0:m": 10}


async def test_the_counts_heal_when_nothing_waits_any_more(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        redis_server.command("HSET", keys.waiting(POOL), "j:gone", 7, "t:0:m", 900)
        await r.submit(a_job(1))
        assert await r.numbers() == [1]
        assert r.view().waiting == {}


async def test_a_replayed_submission_with_a_key_is_the_same_job_after_a_lost_reply(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        job = keyed(1)
        await r.submit(job)
        [again] = await r.submit(replace(job))
        assert (again.code, again.job_id) == (Submitted.DUPLICATE, job.id)


async def test_the_errors_of_attempts_are_kept_in_order_up_to_the_end(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        first = AttemptError(1, "upstream_error", "no", backend="gpu", worker="w", at_ms=5)
        await r.queue.put_back(POOL, job_id(1), "w", claim.fence, PutBack(failed=True, error=first))
        [claim] = await r.claim()
        last = AttemptError(2, "attempts_exhausted", "zu spät\nzweite Zeile")
        end = replace(success(), outcome=Outcome(State.FAILED, usage=Usage(1, 2)), error=last, dead=True)
        await r.settle(claim, end=end)
        record = await r.queue.get(job_id(1))
        assert record is not None
        assert record.errors == (first, last)
