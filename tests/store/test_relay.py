"""What readers of one job are told must not depend on where they read it: live, from the store, or the rest of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.contracts import OnInterrupt, Position
from common.metrics import GatewayMetrics
from common.queue import Claim
from gateway.dialects.openai import ChunkShape
from gateway.hub import Hub
from gateway.readers import Limits, Subscription
from gateway.relay import Relay
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success

# The queue begins no other job anew; that a reader may want no second answer all the same is the relay's own care.
RESTARTABLE = a_job(1, on_interrupt=OnInterrupt.RESTART)


@asynccontextmanager
async def a_hub(seeded: Rig) -> AsyncGenerator[Hub]:
    hub = Hub(seeded.store, seeded.streams, seeded.queue, SystemClock(), pools=[POOL], limits=Limits())
    await seeded.streams.keep_inbox(POOL, hub.id)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


def relayed(reader: Subscription, how: OnInterrupt, seen: Position | None = None) -> AsyncGenerator[bytes, None]:
    shape = ChunkShape(job_id(1), 0, "m", include_usage=False)
    return Relay(reader, shape, GatewayMetrics(CollectorRegistry()), on_interrupt=how, seen=seen).bytes([])


async def frames(stream: AsyncGenerator[bytes, None], *, most: int = 1_000) -> list[str]:
    """The stream's events, up to its end or to so many."""
    raw = b""
    async for piece in stream:
        raw += piece
        if raw.count(b"\n\n") >= most:
            break
    await stream.aclose()
    return [frame for frame in raw.decode().removeprefix("retry: 1000\n").split("\n\n") if frame]


def id_of(frame: str) -> str:
    return frame.partition("\n")[0].removeprefix("id: ")


def events(count: int, word: str) -> bytes:
    return b"\n".join(b'{"choices":["%b%d"]}' % (word.encode(), number) for number in range(count))


async def put_back(seeded: Rig, claim: Claim) -> Claim:
    await seeded.queue.release(POOL, claim.job.id, "w", claim.fence, failed=True)
    return (await seeded.claim())[0]


async def three_attempts(seeded: Rig, first: Claim) -> Claim:
    """One that breaks off after two events, one that says nothing, and one that comes to its end."""
    assert await seeded.append(first, 2, events(2, "lost")) is None
    third = await put_back(seeded, await put_back(seeded, first))
    assert await seeded.append(third, 3, events(3, "kept")) is None
    await seeded.settle(third, end=success(outcome_seq=4))
    return third


@pytest.mark.parametrize("how", OnInterrupt)
async def test_an_answer_begun_anew_reads_the_same_live_and_from_the_store(
    redis_server: RedisServer, how: OnInterrupt
) -> None:
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        live = relayed(hub.expect(job_id(1)), how)
        await three_attempts(seeded, await seeded.running(RESTARTABLE, gateway=hub.id))
        stored = relayed(await hub.watch(job_id(1), None), how)
        heard = await frames(live)
        assert len(heard) == (2 + 1 + 3 + 1 if how is OnInterrupt.RESTART else 2 + 1)
        assert await frames(stored) == heard


async def test_a_resume_from_a_reset_has_the_whole_of_the_answer_begun_anew(redis_server: RedisServer) -> None:
    how = OnInterrupt.RESTART
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        live = relayed(hub.expect(job_id(1)), how)
        third = await three_attempts(seeded, await seeded.running(RESTARTABLE, gateway=hub.id))
        whole = await frames(live)
        reset = next(number for number, frame in enumerate(whole) if "event: reset" in frame)
        assert id_of(whole[reset]) == f"{third.fence}-0"
        for number, frame in enumerate(whole[:-1]):
            seen = Position.parse(id_of(frame))
            rest = relayed(await hub.watch(job_id(1), seen), how, seen)
            assert await frames(rest) == whole[number + 1 :]


async def test_a_refusal_of_an_answer_begun_anew_is_told_again_to_who_comes_back(redis_server: RedisServer) -> None:
    how = OnInterrupt.FAIL
    async with rig(redis_server) as seeded, a_hub(seeded) as hub:
        await three_attempts(seeded, await seeded.running(RESTARTABLE, gateway=hub.id))
        *_, last, refusal = await frames(relayed(await hub.watch(job_id(1), None), how))
        assert "upstream_interrupted" in refusal
        assert not refusal.startswith("id:")
        seen = Position.parse(id_of(last))
        assert await frames(relayed(await hub.watch(job_id(1), seen), how, seen)) == [refusal]
