"""Breakers of backends in Redis: closed, open after failures in a row, half-open with one probe in the whole fleet.

Counting and choosing happen in `breaker.lua`, by Redis's clock; here are its callers and what its fields mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final

from common import keys
from common.store import Store

IDLE_LIFE_S: Final = 600
"""How long a breaker that nobody asks or tells anything is remembered, beyond its own times."""


class Phase(StrEnum):
    """How a breaker stands. Half-open: the cool-off is over, and one probe decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(IntEnum):
    """Whether a call may be made; what `breaker.lua` answers to `ask`."""

    PASS = 0
    PROBE = 1
    REFUSED = 2


@dataclass(frozen=True, slots=True)
class BreakerView:
    """A breaker at one moment. `retry_ms`: from then until a probe may be made; 0 when closed or when it may be now."""

    phase: Phase = Phase.CLOSED
    failures: int = 0
    retry_ms: int = 0


class BreakerStore:
    """Breakers in Redis, one a backend. Every method may raise StoreUnavailable.

    `failures` in a row open it for `cooloff_s`. A probe is held for `probe_s`, so a worker that died holds nothing; one
    worker makes one probe at a time.
    """

    def __init__(self, store: Store, *, failures: int = 3, cooloff_s: float = 30, probe_s: float = 10) -> None:
        self._store = store
        life_s = IDLE_LIFE_S + 2 * (cooloff_s + probe_s)
        self._limits = (failures, *(max(1, round(seconds * 1000)) for seconds in (cooloff_s, probe_s, life_s)))

    async def ask(self, backend: str, worker: str) -> Verdict:
        """Whether this worker may call the backend now; PROBE to one in the whole fleet, until it reports.

        Only worth a trip while the last view isn't CLOSED. Sent again after a lost reply it may be REFUSED, for as long
        as the probe that nobody makes is held.
        """
        verdict, _ = await self._call(backend, "ask", worker)
        return verdict

    async def failed(self, backend: str, worker: str, *, probe: bool) -> BreakerView:
        """The breaker after this call failed; `probe` where `ask` had answered PROBE. Sent again it counts again."""
        return (await self._call(backend, "failed", worker, probe=probe))[1]

    async def succeeded(self, backend: str, worker: str, *, probe: bool) -> BreakerView:
        """The breaker after this call went well; `probe` where `ask` had answered PROBE. Safe to send again."""
        return (await self._call(backend, "succeeded", worker, probe=probe))[1]

    async def released(self, backend: str, worker: str) -> BreakerView:
        """The breaker after this worker gave its probe back, for which it made no call: another may be made at once.

        Safe to send again for as long as the worker makes no other probe.
        """
        return (await self._call(backend, "released", worker, probe=True))[1]

    async def read(self, backends: Sequence[str]) -> dict[str, BreakerView]:
        """How each of these breakers stands, in one trip; one of which nothing is known is closed."""
        *rows, (seconds, micros) = await asyncio.gather(
            *(self._fields(backend) for backend in backends), self._store.command("TIME")
        )
        now_ms = int(seconds) * 1000 + int(micros) // 1000 + self._store.clock_offset_ms
        return {
            backend: view_of(*(int(value or 0) for value in row), now_ms=now_ms)
            for backend, row in zip(backends, rows, strict=True)
        }

    def _fields(self, backend: str) -> asyncio.Future[Any]:
        return self._store.command("HMGET", keys.breaker(backend), "failures", "open_until_ms", "probe_until_ms")

    async def _call(self, backend: str, what: str, worker: str, *, probe: bool = False) -> tuple[Verdict, BreakerView]:
        verdict, failures, open_until_ms, probe_until_ms, now_ms = await self._store.call(
            "breaker",
            keys.backend_prefix(backend),
            (keys.breaker(backend),),
            (what, worker, int(probe), *self._limits),
        )
        return Verdict(verdict), view_of(failures, open_until_ms, probe_until_ms, now_ms=now_ms)


def view_of(failures: int, open_until_ms: int, probe_until_ms: int, *, now_ms: int) -> BreakerView:
    """What a breaker's fields mean at this time of Redis's clock, in ms."""
    if open_until_ms == 0:
        return BreakerView(Phase.CLOSED, failures, 0)
    phase = Phase.OPEN if open_until_ms > now_ms else Phase.HALF_OPEN
    return BreakerView(phase, failures, max(0, open_until_ms - now_ms, probe_until_ms - now_ms))
