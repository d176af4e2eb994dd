"""Time, passed in: wall time to store, monotonic time to subtract, sleeping to wait."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a component may ask of time; a test hands in one that it moves by hand."""

    def now_ms(self) -> int:
        """Wall time in milliseconds since the epoch: to store and to show, never to subtract."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that only goes forward: to subtract, never to store."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
