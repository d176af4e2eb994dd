"""append.lua and the readers' side: positions, refusals, inboxes, frames, and who still reads."""

from __future__ import annotations

import pytest

from common import keys
from common.contracts import OnDisconnect, Position
from common.keys import INBOX_MOST_ENTRIES
from common.queue import Released
from common.stream import EVENTS, INBOX_LIFE_MS, OUTCOME, STARTED, InboxReader, Refusal, Tokens
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, number_of, rig


async def frames(r: Rig, gateway: str, pools: tuple[str, ...] = (POOL,)) -> list[tuple[int, str, bytes, bytes]]:
    """What a gateway's inbox holds, as (job number, position, kind, body)."""
    async with r.store.blocking() as connection:
        found = await InboxReader(connection, gateway, pools).frames()
    return [(number_of(name), str(entry.last), entry.kind, entry.body) for name, entry in found]


async def test_tokens_stand_in_the_stream_under_their_last_events_position(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert await r.append(claim, 1, b'{"a":1}') is None
        assert await r.append(claim, 3, b'{"b":2}\n{"c":3}') is None
        assert r.ids(1) == [f"{claim.fence}-{seq}" for seq in (0, 1, 3)]
        assert r.view().streams[1] == [("s", b"1"), ("c", b'{"a":1}'), ("c", b'{"b":2}\n{"c":3}')]


async def test_an_append_sent_twice_is_written_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        for _ in range(2):
            assert await r.append(claim, 1, b"{}") is None
        assert r.ids(1) == [f"{claim.fence}-0", f"{claim.fence}-1"]


@pytest.mark.parametrize("worker, step", [("other", 0), ("", 0), ("w", 1), ("w", -1)])
async def test_an_append_by_anyone_but_the_owner_is_refused(redis_server: RedisServer, worker: str, step: int) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1), gateway="g")
        await r.streams.keep_inbox(POOL, "g")
        before = r.view()
        tokens = [Tokens(job_id(1), claim.fence + step, 1, b"{}")]
        assert await r.streams.append(POOL, worker, tokens) == {job_id(1): Refusal.FENCED}
        assert r.view() == before
        assert await frames(r, "g") == []


async def test_tokens_of_a_stream_that_is_gone_are_refused_as_lost_and_make_no_new_one(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        redis_server.command("DEL", keys.stream(POOL, job_id(1)))
        assert await r.append(claim, 1, b"{}") is Refusal.LOST
        assert r.view().streams == {}


async def test_one_call_carries_many_jobs_and_names_those_it_refused(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(number) for number in range(6)))
        claims = await r.claim(6)
        await r.queue.release(POOL, job_id(1), "w", claims[1].fence, failed=False)
        await r.settle(claims[2])
        redis_server.command("DEL", keys.stream(POOL, job_id(4)))
        redis_server.command("DEL", keys.job(POOL, job_id(5)))
        tokens = [Tokens(claim.job.id, claim.fence, 1, b"{}") for claim in claims]
        assert await r.streams.append(POOL, "w", tokens) == {
            job_id(1): Refusal.FENCED,
            job_id(2): Refusal.FENCED,
            job_id(4): Refusal.LOST,
            job_id(5): Refusal.FENCED,
        }
        assert [kind for number in (0, 3) for kind, _ in r.view().streams[number]] == ["s", "c", "s", "c"]


async def test_one_frame_carries_the_tokens_of_all_jobs_of_a_gateway_in_order(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for gateway in ("g1", "g2"):
            await r.streams.keep_inbox(POOL, gateway)
        for number, gateway in ((1, "g1"), (2, "g1"), (3, "g2"), (4, "")):
            await r.queue.submit(a_job(number), gateway=gateway)
        await r.streams.subscribe(job_id(3), "g1")
        claims = await r.claim(4)
        tokens = [Tokens(c.job.id, c.fence, 1, str(number_of(c.job.id)).encode()) for c in claims]
        assert await r.streams.append(POOL, "w", tokens) == {}
        fence = {number_of(claim.job.id): claim.fence for claim in claims}
        assert await frames(r, "g1") == [(n, f"{fence[n]}-1", b"c", str(n).encode()) for n in (1, 2, 3)]
        assert await frames(r, "g2") == [(3, f"{fence[3]}-1", b"c", b"3")]
        assert redis_server.command("XLEN", keys.inbox(POOL, "g1")) == 2


async def test_a_frame_of_more_than_a_thousand_jobs_is_split_and_complete(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.streams.keep_inbox(POOL, "g")
        count = 1_300
        for start in range(0, count, 100):
            for number in range(start, start + 100):
                await r.queue.submit(a_job(number), gateway="g")
        claims = [*await r.claim(1_000), *await r.claim(1_000)]
        tokens = [Tokens(claim.job.id, claim.fence, 1, b"%d" % number_of(claim.job.id)) for claim in claims]
        assert await r.streams.append(POOL, "w", tokens) == {}
        assert redis_server.command("XLEN", keys.inbox(POOL, "g")) == 3
        assert [(number, body) for number, _, _, body in await frames(r, "g")] == [
            (number, b"%d" % number) for number in range(count)
        ]


async def test_an_inbox_keeps_only_so_much(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.streams.keep_inbox(POOL, "g")
        claim = await r.running(a_job(1), gateway="g")
        name = keys.inbox(POOL, "g")
        for _ in range(INBOX_MOST_ENTRIES // 1_000 + 2):
            redis_server.command("EVAL", "for i = 1, 1000 do redis.call('XADD', KEYS[1], '*', 'x', '') end", 1, name)
        assert redis_server.command("XLEN", name) > INBOX_MOST_ENTRIES
        await r.append(claim, 1, b"{}")
        # Redis trims whole nodes of a hundred entries.
        assert INBOX_MOST_ENTRIES <= redis_server.command("XLEN", name) <= INBOX_MOST_ENTRIES + 100


async def test_a_gateway_that_died_is_forgotten_and_its_jobs_marked_where_they_want_that(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.streams.keep_inbox(POOL, "alive")
        for number, policy in ((1, OnDisconnect.CANCEL), (2, OnDisconnect.CONTINUE), (3, OnDisconnect.CANCEL)):
            await r.queue.submit(a_job(number, on_disconnect=policy), gateway="dead")
        await r.streams.subscribe(job_id(3), "alive")
        claims = await r.claim(3)
        tokens = [Tokens(claim.job.id, claim.fence, 1, b"{}") for claim in claims]
        assert await r.streams.append(POOL, "w", tokens) == {}
        assert r.view().abandoned == {1}
        assert [r.job(number)["inbox"] for number in (1, 2, 3)] == [b"", b"", b"alive"]
        assert redis_server.command("EXISTS", keys.inbox(POOL, "dead")) == 0
        assert [number for number, *_ in await frames(r, "alive")] == [3]
        r.later(10_000)
        assert await r.queue.abandoned(POOL) == [job_id(1)]


async def test_a_reader_that_comes_back_in_time_saves_the_job(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway="g")
        await r.streams.unsubscribe(job_id(1), "g")
        assert r.view().abandoned == {1}
        assert await r.streams.subscribe(job_id(1), "g2")
        assert r.view().abandoned == set()
        r.later(60_000)
        assert await r.queue.abandoned(POOL) == []


async def test_a_job_is_left_alone_while_another_gateway_still_reads(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway="g1")
        await r.streams.subscribe(job_id(1), "g2")
        await r.streams.unsubscribe(job_id(1), "g1")
        assert (r.view().abandoned, r.job(1)["inbox"]) == (set(), b"g2")
        await r.streams.unsubscribe(job_id(1), "g2")
        assert (r.view().abandoned, r.job(1)["inbox"]) == ({1}, b"")


async def test_leaving_marks_neither_a_job_that_goes_on_nor_an_ended_nor_an_unknown_one(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1, on_disconnect=OnDisconnect.CONTINUE), gateway="g")
        await r.settle(await r.running(a_job(2, on_disconnect=OnDisconnect.CANCEL), gateway="g"))
        for number in (1, 2, 3):
            await r.streams.unsubscribe(job_id(number), "g")
        assert r.view().abandoned == set()
        assert redis_server.command("EXISTS", keys.job(POOL, job_id(3))) == 0


async def test_subscribing_twice_sends_each_frame_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.streams.keep_inbox(POOL, "g")
        claim = await r.running(a_job(1))
        # Names of which one is a part of another, and one full of pattern characters.
        for gateway in ("g", "g", "gg", "%w+", "g"):
            assert await r.streams.subscribe(job_id(1), gateway)
        assert r.job(1)["inbox"] == b"g,gg,%w+"
        await r.append(claim, 1, b"{}")
        assert len(await frames(r, "g")) == 1


async def test_an_unknown_job_cannot_be_subscribed_to(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert not await r.streams.subscribe(job_id(1), "g")
        assert redis_server.command("DBSIZE") == 0
        with pytest.raises(ValueError, match="not a job id"):
            await r.streams.subscribe("hr:{default}:job:x", "g")


async def test_keeping_an_inbox_tells_whether_it_was_lost(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.streams.keep_inbox(POOL, "g") is False
        assert await r.streams.keep_inbox(POOL, "g") is True
        assert 0 < redis_server.command("PTTL", keys.inbox(POOL, "g")) <= INBOX_LIFE_MS
        await r.streams.drop_inbox(POOL, "g")
        assert await r.streams.keep_inbox(POOL, "g") is False


@pytest.mark.either_server
async def test_an_inbox_reader_goes_on_where_it_was_over_several_pools(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r, r.store.blocking() as connection:
        for pool in (POOL, "other"):
            await r.streams.keep_inbox(pool, "g")
        reader = InboxReader(connection, "g", (POOL, "other"))
        assert await reader.frames() == []
        claim = await r.running(a_job(1), gateway="g")
        await r.append(claim, 1, b"1")
        assert [entry.body for _, entry in await reader.frames()] == [b"1"]
        await r.append(claim, 2, b"2")
        await r.append(claim, 3, b"3")
        assert [entry.body for _, entry in await reader.frames()] == [b"2", b"3"]
        await r.append(claim, 4, b"4")
        assert [entry.body for _, entry in await reader.frames()] == [b"4"]


async def test_entries_after_a_position_are_every_later_one_in_order(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, max_attempts=9))
        await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=False)
        [second] = await r.claim()
        for seq in (1, 3, 4):
            await r.append(second, seq, b"%d" % seq)
        await r.settle(second)
        everything = await r.streams.after(job_id(1), None)
        assert [entry.kind for entry in everything] == [STARTED, STARTED, EVENTS, EVENTS, EVENTS, OUTCOME]
        assert [entry.last.seq for entry in everything] == [0, 0, 1, 3, 4, 5]
        later = await r.streams.after(job_id(1), Position(second.fence, 1))
        assert [entry.body for entry in later[:-1]] == [b"3", b"4"]
        # In the middle of an entry of several events: the whole entry, which its reader cuts.
        assert [e.last.seq for e in await r.streams.after(job_id(1), Position(second.fence, 2))] == [3, 4, 5]
        assert await r.streams.after(job_id(1), everything[-1].last) == []
        assert [e.last.seq for e in await r.streams.after(job_id(1), Position(claim.fence, 0), most=2)] == [0, 1]


async def test_the_largest_position_that_can_be_asked_for_gives_nothing_and_no_error(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        assert await r.streams.after(job_id(1), Position.parse("9999999999999999-9999999999")) == []
        assert len(await r.streams.after(job_id(1), Position.parse("0-0"))) == 1


async def test_a_glance_tells_state_and_last_position_of_each_job(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.append(claim, 7, b"{}")
        await r.submit(a_job(2))
        assert await r.streams.glance(POOL, [job_id(n) for n in (1, 2, 3)]) == [
            ("running", Position(claim.fence, 7)),
            ("queued", None),
            ("", None),
        ]
        assert await r.streams.glance(POOL, []) == []


async def test_a_retry_after_readers_saw_nothing_may_follow_an_append_that_was_refused(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        assert await r.append(claim, 1, b"{}", "other") is Refusal.FENCED
        assert await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True) is Released.PUT_BACK
