"""A track that is muted: what is under way lands, what is kept goes with the settlement, nothing else leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.clock import SystemClock
from common.stream import Refusal, Tokens
from tests.support.runner import until
from workers.publisher import Publisher


class Gate:
    """An appender whose writes land when the test says."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.open = asyncio.Event()

    async def append(self, pool: str, worker: str, tokens: Sequence[Tokens]) -> dict[str, Refusal]:
        self.begun += [item.events for item in tokens]
        await self.open.wait()
        return {}


def a_publisher(gate: Gate) -> Publisher:
    return Publisher(gate, SystemClock(), worker_id=lambda: "w", refused=lambda _job, _why: None)


async def test_what_is_muted_before_its_first_write_is_never_written() -> None:
    gate = Gate()
    publisher = a_publisher(gate)
    track = publisher.track("p", "j", 1)
    track.publish(b"1")
    track.mute()
    track.publish(b"2")
    silent = publisher.track("p", "s", 1)
    silent.mute()
    silent.publish(b"3")
    other = publisher.track("p", "k", 1)
    other.publish(b"other")

    async def written() -> bool:
        return bool(gate.begun)

    await until(written)
    gate.open.set()
    await track.landed()
    await publisher.close()
    assert gate.begun == [b"other"]
    assert not track.anything_sent
    assert await track.finish() == (b"1\n2", 2)


async def test_a_write_under_way_lands_and_nothing_follows_it() -> None:
    gate = Gate()
    publisher = a_publisher(gate)
    track = publisher.track("p", "j", 1)
    track.publish(b"1")

    async def under_way() -> bool:
        return track.flight is not None

    await until(under_way)
    track.publish(b"2")
    track.mute()
    landing = asyncio.ensure_future(track.landed())
    await asyncio.sleep(0)
    assert not landing.done()
    gate.open.set()
    await landing
    await publisher.close()
    assert gate.begun == [b"1"]
    assert await track.finish() == (b"2", 2)
