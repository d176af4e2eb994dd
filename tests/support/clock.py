"""Clocks for tests: one that is moved by hand, one that runs fast by itself, one that stops while nobody is served."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

from common.clock import SystemClock
from tests.support.runner import until

TICK_S: Final = 0.01


@asynccontextmanager
async def stopwatch() -> AsyncGenerator[Callable[[], float]]:
    """Tells how long this event loop was served since, in seconds.

    On a crowded machine a process stands still now and then, and no promise holds for such moments: each counts no more
    than two ticks, so that what was late because nobody was served is not taken for slow.
    """
    served_s = 0.0

    async def tick() -> None:
        nonlocal served_s
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            served_s += min(now_s - before_s, 2 * TICK_S)
            before_s = now_s

    ticking = asyncio.create_task(tick())
    try:
        yield lambda: served_s
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


class ManualClock:
    """Time that stands still until `advance`."""

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        return int(self._now_s * 1000)

    def monotonic_s(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    @property
    def sleeping(self) -> int:
        """How many wait on this clock."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Moves time, and wakes those whose time has come."""
        self._now_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)

    async def until_sleeping(self, number: int = 1) -> None:
        """Waits until so many wait on this clock."""

        async def enough() -> bool:
            return self.sleeping >= number

        await until(enough)


class BriskClock(SystemClock):
    """The machine's clock at many times its speed, for what looks about once a second.

    Whatever keeps other time (a reply of the store, a lease there) is as slow as ever.
    """

    def __init__(self, speed: float = 20) -> None:
        self._speed = speed
        self._began_ms = super().now_ms()
        self._began_s = super().monotonic_s()

    def now_ms(self) -> int:
        return self._began_ms + int((super().now_ms() - self._began_ms) * self._speed)

    def monotonic_s(self) -> float:
        return self._began_s + (super().monotonic_s() - self._began_s) * self._speed

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self._speed)
