"""What probes of the backends found: written by the scheduler's prober, read by whoever chooses or shows a backend.

A backend of which nothing (or nothing recent) is known is absent, and counts as healthy.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import orjson

from common import keys
from common.store import Store

FAILURES_UNTIL_UNHEALTHY: Final = 2
DETAIL_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a backend says it is, in requests; None where it doesn't say."""

    running: int | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe found. `detail` is for people: never a key, an address or an answer's text."""

    succeeded: bool
    latency_ms: float
    detail: str = ""
    load: Load = Load()


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a backend. `failures` counts those in a row; times are Redis's."""

    healthy: bool
    checked_ms: int
    latency_ms: float
    failures: int
    detail: str = ""
    running: int | None = None
    waiting: int | None = None

    @property
    def load(self) -> int | None:
        """Requests that the backend runs or keeps waiting, as far as it says; None where it says neither."""
        if self.running is None and self.waiting is None:
            return None
        return (self.running or 0) + (self.waiting or 0)


@dataclass(frozen=True, slots=True)
class Turned:
    """A backend's health after a probe, and before it."""

    healthy: bool
    was_healthy: bool


class HealthStore:
    """Health in Redis, one hash a pool. Every method may raise StoreUnavailable or StoreFull."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take_turn(self, pool: str, backend: str, *, for_ms: int) -> bool:
        """Whether the caller is to probe this backend now; nobody else in the fleet is for the next `for_ms`."""
        key = keys.probe(pool, backend)
        return await self._store.command("SET", key, 1, "NX", "PX", for_ms) is not None

    async def note(self, pool: str, backend: str, probe: Probe, *, life_ms: int) -> Turned:
        """The backend's health with this probe counted. It stands for `life_ms` unless another probe follows."""
        healthy, was_healthy = await self._store.call(
            "note",
            keys.pool_prefix(pool),
            (keys.health(pool),),
            (
                backend,
                int(probe.succeeded),
                round(probe.latency_ms, 1),
                probe.detail[:DETAIL_MOST_CHARACTERS],
                _text(probe.load.running),
                _text(probe.load.waiting),
                FAILURES_UNTIL_UNHEALTHY,
                life_ms,
            ),
        )
        return Turned(healthy == 1, was_healthy == 1)

    async def read(self, pool: str) -> dict[str, Health]:
        """What is known now of the pool's backends, by name; one whose last probe is too old is left out."""
        flat, (seconds, micros) = await asyncio.gather(
            self._store.command("HGETALL", keys.health(pool)), self._store.command("TIME")
        )
        now_ms = int(seconds) * 1000 + int(micros) // 1000 + self._store.clock_offset_ms
        rows = {name.decode(): orjson.loads(raw) for name, raw in zip(flat[::2], flat[1::2], strict=True)}
        return {name: _health(row) for name, row in rows.items() if row["expires_ms"] > now_ms}


def _health(row: dict[str, Any]) -> Health:
    return Health(
        healthy=row["healthy"],
        checked_ms=row["checked_ms"],
        latency_ms=row["latency_ms"],
        failures=row["failures"],
        detail=row["detail"],
        running=row.get("running"),
        waiting=row.get("waiting"),
    )


def _text(count: int | None) -> str:
    return "" if count is None else str(count)
