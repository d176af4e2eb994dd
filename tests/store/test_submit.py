"""submit.lua: every answer, what it writes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

from common import keys
from common.contracts import OnDisconnect, OnInterrupt, Priority, State
from common.queue import Submitted
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, View, a_job, job_id, rig


async def test_an_accepted_job_is_in_its_lane_with_its_deadline_and_one_bell(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        [answer] = await r.submit(a_job(1))
        assert (answer.code, answer.ahead) == (Submitted.ACCEPTED, 0)
        assert r.view() == View(
            states={1: "queued"},
            lanes={"0:m": [1]},
            named={"0:m"},
            deadlines={1},
            bells=1,
            stats={"submitted": 1},
            waiting={"j:t": 1, "t:0:m": 1},
        )


async def test_a_job_with_a_delay_waits_among_the_delayed_and_rings_nobody(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        [answer] = await r.submit(a_job(1, delay_ms=60_000))
        assert answer.code is Submitted.ACCEPTED
        assert r.view() == View(
            states={1: "delayed"}, delayed=[1], deadlines={1}, stats={"submitted": 1}, waiting={"j:t": 1}
        )


async def test_the_same_id_again_is_a_duplicate_and_writes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        [first] = await r.submit(a_job(1))
        before, record, listed = r.view(), r.job(1), await r.listed("t", most=10)
        [second] = await r.submit(a_job(1, tenant="t", body={"messages": []}, priority=Priority.BATCH))
        assert (second.code, second.created_ms) == (Submitted.DUPLICATE, first.created_ms)
        assert (r.view(), r.job(1), await r.listed("t", most=10)) == (before, record, listed)


async def test_a_full_lane_refuses_and_writes_nothing_not_even_in_the_tenants_list(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_in_lane=2) as r:
        await r.submit(a_job(1), a_job(2))
        before = r.view()
        [answer] = await r.submit(a_job(3))
        assert (answer.code, answer.ahead) == (Submitted.FULL, 2)
        assert r.view() == before
        assert await r.queue.get(job_id(3)) is None
        assert await r.listed("t", most=10) == [job_id(2), job_id(1)]
        [elsewhere] = await r.submit(a_job(4, priority=Priority.BATCH))
        assert elsewhere.code is Submitted.ACCEPTED


async def test_delayed_jobs_are_bounded_too(redis_server: RedisServer) -> None:
    async with rig(redis_server, most_in_lane=2) as r:
        await r.submit(a_job(1, delay_ms=1000), a_job(2, delay_ms=1000))
        [late, now] = await r.submit(a_job(3, delay_ms=1000), a_job(4))
        assert (late.code, now.code) == (Submitted.FULL, Submitted.ACCEPTED)


async def test_ahead_counts_the_jobs_that_were_in_the_lane(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert [answer.ahead for answer in await r.submit(a_job(1), a_job(2), a_job(3))] == [0, 1, 2]
        assert (await r.submit(a_job(4, priority=Priority.BATCH)))[0].ahead == 0


async def test_the_record_gives_back_the_job_as_it_was_asked_for(redis_server: RedisServer) -> None:
    asked = a_job(
        1,
        priority=Priority.STANDARD,
        stream=True,
        batch_key="k",
        deadline_in_ms=90_000,
        max_attempts=5,
        cost_tokens=77,
        on_disconnect=OnDisconnect.CANCEL,
        on_interrupt=OnInterrupt.RESTART,
        metadata={"a": "é\u2028\0"},
        request_id="req_1",
    )
    async with rig(redis_server) as r:
        [answer] = await r.submit(asked)
        record = await r.queue.get(asked.id)
        assert record is not None
        assert record.job == asked
        assert (record.state, record.attempt, record.failures, record.fence) == (State.QUEUED, 0, 0, 0)
        assert record.deadline_ms == answer.created_ms + 90_000
        assert (record.started_ms, record.finished_ms, record.outcome, record.result) == (None, None, None, None)


async def test_a_record_tells_its_place_in_the_lane_only_while_it_waits_there(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1), a_job(2), a_job(3, delay_ms=1000))
        places = [(await r.queue.get(job_id(number))) for number in (1, 2, 3)]
        assert [place.position for place in places if place] == [0, 1, None]
        await r.worker()
        await r.claim()
        first, second = await r.queue.get(job_id(1)), await r.queue.get(job_id(2))
        assert first is not None and second is not None
        assert (first.position, first.state, second.position) == (None, State.RUNNING, 0)


async def test_ids_that_are_none_of_ours_are_unknown_without_a_question_to_redis(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        redis_server.command("CONFIG", "RESETSTAT")
        for odd in (
            "",
            "job_",
            "job_default_",
            f"job_Default_{1:032x}",
            f"job_default_{1:032X}x",
            "hr:{default}:stats",
        ):
            assert await r.queue.get(odd) is None
        assert b"cmdstat_hgetall" not in redis_server.command("INFO", "commandstats")


async def test_the_bell_holds_at_most_256_wake_ups(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        for number in range(300):
            await r.submit(a_job(number))
        assert r.view().bells == 256


async def test_a_job_of_one_pool_leaves_another_pool_alone(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        before = r.view()
        await r.submit(a_job(2, pool="other"))
        assert r.view() == before
        assert await r.queue.get(job_id(2, "other")) is not None


async def test_a_tenant_lists_its_jobs_newest_first_page_by_page(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        # In an order that differs from that of the ids, many in one millisecond.
        order = [5, 3, 9, 1, 7, 2, 8]
        await r.submit(*(a_job(number) for number in order))
        await r.submit(a_job(4, tenant="other"))
        newest = [job_id(number) for number in reversed(order)]
        assert await r.listed("t", most=100) == newest
        assert await r.listed("t", most=3) == newest[:3]
        assert await r.listed("t", most=3, after=newest[2]) == newest[3:6]
        assert await r.listed("t", most=3, after=newest[-1]) == []
        assert await r.listed("t", most=3, after=job_id(4)) is None


async def test_a_tenants_list_lives_as_long_as_its_longest_lived_record(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, deadline_in_ms=86_400_000))
        await r.submit(a_job(2, deadline_in_ms=1_000))
        record = redis_server.command("PTTL", keys.job(POOL, job_id(1)))
        assert redis_server.command("PTTL", keys.tenant_jobs(POOL, "t")) >= record - 1_000


async def test_a_tenants_list_is_bounded_and_drops_the_oldest(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        index = keys.tenant_jobs(POOL, "t")
        redis_server.command("ZADD", index, *(word for n in range(10_000) for word in (n, job_id(n))))
        newest = 20_000
        await r.submit(a_job(newest))
        # It is cut at about every 32nd job.
        while redis_server.command("ZCARD", index) > 10_000:
            newest += 1
            assert newest < 21_000
            await r.submit(a_job(newest))
        assert redis_server.command("ZSCORE", index, job_id(0)) is None
        assert (await r.listed("t", most=1)) == [job_id(newest)]


async def test_bodies_and_names_of_every_kind_come_through_unchanged(redis_server: RedisServer) -> None:
    odd = {"text": "a|b:c{d}\r\n\0\u2028💧", "deep": [[[{"": None}]]], "number": 2**53}
    async with rig(redis_server) as r:
        job = replace(a_job(1, model="llama3:8b-q4/x@y+z"), body=odd, batch_key="a|b\n{}")
        await r.submit(job)
        await r.worker()
        [claim] = await r.claim(lanes=("0:llama3:8b-q4/x@y+z",))
        assert claim.job == job
