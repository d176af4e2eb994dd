"""The hub under unlucky timing: late answers, floods, a store that is away when readers leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from common import keys
from common.clock import Clock, SystemClock
from common.contracts import OnDisconnect, Position
from common.errors import StoreUnavailable
from common.stream import EVENTS, Entry, StreamStore
from gateway.hub import Hub
from gateway.readers import Limits
from tests.support.clock import BriskClock, ManualClock
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success

pytestmark = pytest.mark.either_server


class LateAnswers(StreamStore):
    """Gives the answer of `glance` away only when the test lets it."""

    def __init__(self, seeded: Rig) -> None:
        super().__init__(seeded.store)
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def glance(self, pool: str, job_ids: Sequence[str]) -> list[tuple[str, Position | None]]:
        answer = await super().glance(pool, job_ids)
        self.asked.set()
        await self.let_go.wait()
        return answer


class LostAnswers(StreamStore):
    """Keeps the inbox, and loses the answer where the test says so."""

    losing = False

    async def keep_inbox(self, pool: str, gateway: str) -> bool:
        there = await super().keep_inbox(pool, gateway)
        if self.losing:
            raise StoreUnavailable()
        return there


def a_hub(
    seeded: Rig, streams: StreamStore | None = None, limits: Limits | None = None, clock: Clock | None = None
) -> Hub:
    streams, clock = streams or seeded.streams, clock or SystemClock()
    return Hub(seeded.store, streams, seeded.queue, clock, pools=[POOL], limits=limits or Limits())


def events(first: int, last: int, size: int = 0) -> bytes:
    return b"\n".join(b'{"choices":[%d],"x":"%s"}' % (n, b"x" * size) for n in range(first, last + 1))


async def test_a_token_that_came_while_the_store_was_asked_is_not_taken_for_a_loss(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded:
        streams = LateAnswers(seeded)
        hub = a_hub(seeded, streams)
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        looking = asyncio.create_task(hub._look_after(POOL, 0.0))
        await streams.asked.wait()  # it says: nothing was written yet
        reader.offer(Entry(Position(claim.fence, 1), EVENTS, events(1, 1)))
        streams.let_go.set()
        await looking
        assert [entry.last.seq for entry in await reader.next()] == [1]
        assert reader._error is None


async def test_a_page_read_while_the_store_was_asked_is_not_taken_for_a_loss(redis_server: RedisServer) -> None:
    async with rig(redis_server) as seeded:
        streams = LateAnswers(seeded)
        hub = a_hub(seeded, streams)
        claim = await seeded.running(a_job(1))
        reader = await hub.watch(job_id(1), None)
        looking = asyncio.create_task(hub._look_after(POOL, 0.0))
        await streams.asked.wait()
        await seeded.append(claim, 3, events(1, 3))
        assert [entry.last.seq for entry in await reader.next()] == [0, 3]
        streams.let_go.set()
        await looking
        assert reader._error is None


async def test_a_reader_that_takes_what_it_gets_survives_a_flood_larger_than_it_may_hold(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as seeded:
        hub = a_hub(seeded, limits=Limits(reader_bytes=1_000))
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1), gateway=hub.id)
        # All of it comes in one turn of the loop, as after a hiccup; the reader had no chance to take any of it.
        for number in range(1, 61):
            await seeded.append(claim, number, events(number, number, 40))
            reader.offer(Entry(Position(claim.fence, number), EVENTS, events(number, number, 40)))
        await seeded.settle(claim, end=success(outcome_seq=61))
        seen: list[int] = []
        while not reader.ended or reader._buffer:
            entries = await reader.next()
            assert sum(len(entry.body) for entry in entries) <= 2_000, "a page may not hold much more than a reader"
            seen += [entry.last.seq for entry in entries]
        assert seen == [*range(62)]


async def test_a_job_whose_last_reader_left_while_the_store_was_away_is_marked_afterwards(
    own_server: RedisServer,
) -> None:
    async with rig(own_server) as seeded:
        hub = a_hub(seeded, clock=BriskClock())
        await hub.start()
        reader = hub.expect(job_id(1))
        await seeded.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway=hub.id)
        own_server.kill()
        reader.close()
        await until(lambda: _is(bool(hub._owed)))
        own_server.start()
        await until(lambda: _is(seeded.view().abandoned == {1}))
        await hub.close()


async def test_readers_of_an_inbox_that_lapsed_while_the_store_was_away_are_not_taken_for_gone(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as seeded:
        clock = ManualClock()
        hub = a_hub(seeded, clock=clock)
        await hub.start()
        reader = hub.expect(job_id(1))
        claim = await seeded.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway=hub.id)
        await until(lambda: _is(redis_server.command("EXISTS", keys.inbox(POOL, hub.id)) == 1))
        # What an outage longer than the inbox's life leaves: a worker writes before the gateway is back.
        redis_server.command("DEL", keys.inbox(POOL, hub.id))
        await seeded.append(claim, 1, events(1, 1))
        assert seeded.view().abandoned == {1}
        await clock.until_sleeping()
        clock.advance(1.0)
        await until(lambda: _is(seeded.view().abandoned == set()))
        assert seeded.job(1)["inbox"] == hub.id.encode()
        await seeded.append(claim, 2, events(2, 2))
        got: list[int] = []
        while got[-1:] != [2]:
            got += [entry.last.seq for entry in await reader.next()]
        assert got == [0, 1, 2]
        await hub.close()


async def test_an_inbox_that_was_made_anew_is_not_taken_for_the_old_one_where_that_answer_was_lost(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as seeded:
        clock, streams = ManualClock(), LostAnswers(seeded.store)
        hub = a_hub(seeded, streams, clock=clock)
        await hub.start()
        hub.expect(job_id(1))
        claim = await seeded.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway=hub.id)
        await until(lambda: _is(redis_server.command("EXISTS", keys.inbox(POOL, hub.id)) == 1))
        # What a server that was frozen does first when it goes on: a worker's write, then what a gateway gave up on.
        redis_server.command("DEL", keys.inbox(POOL, hub.id))
        await seeded.append(claim, 1, events(1, 1))
        streams.losing = True
        await clock.until_sleeping()
        clock.advance(1.0)
        await until(lambda: _is(redis_server.command("EXISTS", keys.inbox(POOL, hub.id)) == 1))
        assert seeded.view().abandoned == {1}
        streams.losing = False
        await clock.until_sleeping()
        clock.advance(1.0)
        await until(lambda: _is(seeded.view().abandoned == set()))
        assert seeded.job(1)["inbox"] == hub.id.encode()
        await hub.close()


async def _is(state: bool) -> bool:
    return state
