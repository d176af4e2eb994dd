"""The hub on a real store: every event once and in order, whatever was missed; and an error, never silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest

from common import keys
from common.contracts import OnDisconnect, OnInterrupt, Position
from common.errors import NotFound, PositionGone, StreamLost
from common.queue import Claim
from common.stream import EVENTS, OUTCOME, STARTED, Entry
from gateway.hub import MOST_PLACES, Hub
from gateway.readers import Limits, SlowReader, Subscription
from tests.support.clock import BriskClock
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success

pytestmark = pytest.mark.either_server


@asynccontextmanager
async def a_hub(seeded: Rig, *, limits: Limits | None = None) -> AsyncGenerator[Hub]:
    hub = Hub(seeded.store, seeded.streams, seeded.queue, BriskClock(), pools=[POOL], limits=limits or Limits())
    for pool in (POOL,):
        await seeded.streams.keep_inbox(pool, hub.id)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


def events(*numbers: int) -> bytes:
    return b"\n".join(b'{"choices":[%d]}' % number for number in numbers)


async def say(seeded: Rig, claim: Claim, *numbers: int) -> None:
    assert await seeded.append(claim, numbers[-1], events(*numbers)) is None


async def end(seeded: Rig, claim: Claim, seq: int) -> None:
    await seeded.settle(claim, end=success(outcome_seq=seq))


async def read(reader: Subscription, *, until_seq: int | None = None) -> list[str]:
    """The events that came, as `seq:payload`, up to an event's number or to the outcome ("end")."""
    seen: list[str] = []
    while True:
        entries = await reader.next()
        for entry in entries:
            seen += told(entry)
        if any(entry.kind == OUTCOME or entry.last.seq >= (until_seq or 2**32) for entry in entries):
            return seen


def told(entry: Entry) -> list[str]:
    if entry.kind == OUTCOME:
        return ["end"]
    if entry.kind != EVENTS:
        return []
    lines = entry.body.split(b"\n")
    first = entry.last.seq - len(lines) + 1
    return [f"{first + i}:{line.decode()[12:-2]}" for i, line in enumerate(lines)]


def numbers(first: int, last: int) -> list[str]:
    return [f"{n}:{n}" for n in range(first, last + 1)]


async def test_a_reader_of_its_own_job_hears_every_event_as_it_comes(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        await say(seeded, claim, 1)
        assert await read(reader, until_seq=1) == ["1:1"]
        await say(seeded, claim, 2, 3)
        await end(seeded, claim, 4)
        assert await read(reader) == ["2:2", "3:3", "end"]


async def test_two_readers_of_one_job_hear_the_same(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as here, a_hub(seeded) as there:
        own = here.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=here.id)
        await say(seeded, claim, 1, 2)
        other = await there.watch(job_id(1), None)
        await say(seeded, claim, 3)
        await end(seeded, claim, 4)
        expected = [*numbers(1, 3), "end"]
        assert await read(own) == expected
        assert await read(other) == expected


@pytest.mark.parametrize("seen", range(7))
async def test_a_resume_at_any_event_gives_the_later_ones_once(redis_server: RedisServer, seen: int) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        claim = await seeded.running(a_job(1))
        await say(seeded, claim, 1, 2, 3)
        await say(seeded, claim, 4, 5, 6)
        reader = await hub.watch(job_id(1), Position(claim.fence, seen))
        await end(seeded, claim, 7)
        assert await read(reader) == [*numbers(seen + 1, 6), "end"]


async def test_events_that_come_while_a_reader_catches_up_are_neither_lost_nor_doubled(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        claim = await seeded.running(a_job(1))
        for number in range(1, 1201):  # more than two pages
            await say(seeded, claim, number)
        reader = await hub.watch(job_id(1), None)
        first = await read(reader, until_seq=1)
        for number in range(1201, 1301):
            await say(seeded, claim, number)
        await end(seeded, claim, 1301)
        assert first + await read(reader) == [*numbers(1, 1300), "end"]


async def test_a_reader_whose_inbox_lost_frames_reads_them_from_the_stream(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        await say(seeded, claim, 1)
        assert await read(reader, until_seq=1) == ["1:1"]
        redis_server.command("HSET", keys.job(POOL, job_id(1)), "inbox", "")
        await say(seeded, claim, 2, 3)
        redis_server.command("HSET", keys.job(POOL, job_id(1)), "inbox", hub.id)
        await say(seeded, claim, 4)
        assert await read(reader, until_seq=4) == numbers(2, 4)


async def test_an_end_whose_frame_was_lost_is_found_after_a_silence(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        reader, waiter = hub.expect(job_id(1)), hub.expect_end(job_id(1))
        claim = await seeded.running(a_job(1))
        await say(seeded, claim, 1)
        await end(seeded, claim, 2)
        assert await read(reader) == ["1:1", "end"]
        assert await waiter.end is None


async def test_the_whole_result_comes_with_the_end_to_one_who_waits_for_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        waiter = hub.expect_end(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        await seeded.settle(claim, end=success(outcome_seq=1, result=b'{"x":1}', share_result=True))
        entry = await waiter.end
        assert entry is not None
        assert entry.result == b'{"x":1}'


async def test_a_trimmed_stream_is_an_error_and_not_a_gap(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        claim = await seeded.running(a_job(1))
        for number in range(1, 6):
            await say(seeded, claim, number)
        redis_server.command("XTRIM", keys.stream(POOL, job_id(1)), "MAXLEN", 2)
        reader = await hub.watch(job_id(1), None)
        with pytest.raises(PositionGone):
            await read(reader)


async def test_a_stream_deleted_under_a_reader_is_an_error_within_a_few_seconds(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        await say(seeded, claim, 1)
        assert await read(reader, until_seq=1) == ["1:1"]
        redis_server.command("DEL", keys.stream(POOL, job_id(1)))
        with pytest.raises(StreamLost):
            await read(reader)


async def test_a_store_that_lost_everything_ends_every_reader_with_an_error(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        readers: Sequence[Subscription] = [hub.expect(job_id(n)) for n in (1, 2)]
        for n in (1, 2):
            await seeded.queue.submit(a_job(n), gateway=hub.id)
        redis_server.command("FLUSHALL")
        for reader in readers:
            with pytest.raises(StreamLost):
                await read(reader)


async def test_a_position_of_a_rebuilt_stream_is_refused(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        claim = await seeded.running(a_job(1))
        await say(seeded, claim, 1)
        with pytest.raises(StreamLost):
            await hub.watch(job_id(1), Position(claim.fence - 5, 1))


async def test_an_unknown_job_cannot_be_watched(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        with pytest.raises(NotFound):
            await hub.watch(job_id(9), None)
        assert hub.readers == 0


async def test_a_reader_that_takes_nothing_is_cut_at_its_limit_and_can_resume(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded, limits=Limits(reader_bytes=1000, patience_s=0)) as hub:
        slow, quick = hub.expect(job_id(1)), hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        seen: list[str] = []
        for number in range(1, 101):
            await say(seeded, claim, number)
            seen += await read(quick, until_seq=number)
        with pytest.raises(SlowReader):
            await slow.next()
        assert seen == numbers(1, 100)
        again = await hub.watch(job_id(1), Position(claim.fence, 40))
        assert await read(again, until_seq=100) == numbers(41, 100)


async def test_a_silent_job_lets_its_reader_say_something(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded, limits=Limits(keepalive_s=0.1)) as hub:
        reader = hub.expect(job_id(1))
        await seeded.queue.submit(a_job(1), gateway=hub.id)
        assert await reader.next() == []


async def test_the_last_reader_to_leave_marks_a_job_that_wants_it_for_cancelling(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        first, second = hub.expect(job_id(1)), hub.expect(job_id(1))
        await seeded.queue.submit(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway=hub.id)
        first.close()
        assert seeded.view().abandoned == set()
        second.close()

        async def marked() -> bool:
            return seeded.view().abandoned == {1}

        await until(marked)
        back = await hub.watch(job_id(1), None)
        assert seeded.view().abandoned == set()
        back.close()


async def test_a_second_attempt_follows_the_first_with_a_higher_fence(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        reader = hub.expect(job_id(1))
        first = await seeded.running(a_job(1, on_interrupt=OnInterrupt.RESTART), gateway=hub.id)
        await say(seeded, first, 1, 2)
        await seeded.queue.release(POOL, job_id(1), "w", first.fence, failed=True)
        second = (await seeded.claim())[0]
        await say(seeded, second, 1)
        await end(seeded, second, 2)
        assert await read(reader) == ["1:1", "2:2", "1:1", "end"]
        assert second.fence > first.fence


# --- places in the queue ----------------------------------------------------------------------------------------------


async def test_a_waiting_reader_hears_its_place_and_no_more_of_it_once_its_job_runs(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        await seeded.submit(a_job(1))
        reader = hub.expect(job_id(2))
        await seeded.queue.submit(a_job(2), gateway=hub.id)
        assert await reader.next() == []
        assert reader.place is not None and reader.place.position == 1
        await seeded.queue.cancel(job_id(1))
        assert await reader.next() == []
        assert reader.place.position == 0
        await seeded.worker()
        assert await seeded.numbers() == [2]
        assert [entry.kind for entry in await reader.next()] == [STARTED]
        assert reader.place is None


@pytest.mark.timeout(60)
async def test_thousands_of_waiting_readers_all_hear_their_place_a_bounded_number_at_a_time(
    redis_server: RedisServer,
) -> None:
    count = 2 * MOST_PLACES + 10
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        readers = [hub.expect(job_id(number)) for number in range(count)]
        await asyncio.gather(*(seeded.queue.submit(a_job(number), gateway=hub.id) for number in range(count)))

        seen: set[int] = set()

        async def all_placed() -> bool:
            seen.add(sum(reader.place is not None for reader in readers))
            return count in seen

        waits = [asyncio.ensure_future(reader.next()) for reader in readers]
        await until(all_placed, limit_s=40)
        assert seen == {0, MOST_PLACES, 2 * MOST_PLACES, count}
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def test_a_job_that_came_after_its_caller_had_left_is_cancelled_like_any_unread_one(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        hub.expect(job_id(1)).close()
        claim = await seeded.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway=hub.id)
        await say(seeded, claim, 1)

        async def unread() -> bool:
            return bool(seeded.view().abandoned)

        await until(unread)
        assert seeded.view().abandoned == {1}
