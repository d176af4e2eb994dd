"""The machine's clock: wall time to store, monotonic time to subtract."""

from __future__ import annotations

import asyncio
import time

from common.clock import Clock, SystemClock


def test_wall_time_is_in_milliseconds_since_the_epoch() -> None:
    clock: Clock = SystemClock()
    before = time.time()
    now_ms = clock.now_ms()
    assert int(before * 1000) - 1 <= now_ms <= int(time.time() * 1000) + 1
    assert isinstance(now_ms, int)


def test_monotonic_time_only_goes_forward() -> None:
    clock = SystemClock()
    times = [clock.monotonic_s() for _ in range(1_000)]
    assert times == sorted(times)


async def test_a_longer_sleep_ends_after_a_shorter_one() -> None:
    clock, ended = SystemClock(), list[float]()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        ended.append(seconds)

    await asyncio.gather(sleep(0.2), sleep(0.01))
    assert ended == [0.01, 0.2]
