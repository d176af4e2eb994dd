"""What the fleet shares about a backend: who may use how many of its slots, and which of its API keys rest.

Slots are leases, never counters: whatever a dead worker held comes back when its lease lapses, by Redis's clock.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from common import keys
from common.store import Store

REASON_MOST_CHARACTERS: Final = 100


class BackendSlots:
    """Concurrency per backend over the whole fleet. Every method may raise StoreUnavailable.

    A worker starts a call only while fewer are in use than it was last told, and none once its lease has lapsed. It
    renews through one object, one renewal of a backend at a time: what it was told last is remembered here.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: dict[tuple[str, str], int] = {}

    async def renew(self, backend: str, worker: str, *, want: int, in_use: int, most: int, lease_ms: int) -> int:
        """Slots that this worker may use now, those in use among them; less than these: it waits until calls end.

        It is never above `want`, and all live grants together (or what is still used, where that is more) never above
        `most` through it. What a worker is told less than before is free for others from its next renewal on: until
        this one's reply it may begin calls by the old number. Safe to send again.
        """
        told = self._told.get((backend, worker), 0)
        granted: int = await self._store.call(
            "slots",
            keys.backend_prefix(backend),
            (keys.backend_slots(backend),),
            (worker, max(0, want), max(0, in_use), max(0, most), max(1, lease_ms), told),
        )
        self._told[backend, worker] = granted
        return granted

    async def give_up(self, backend: str, worker: str) -> None:
        """Gives this worker's slots back at once, when none is in use any more. Safe to send again."""
        self._told.pop((backend, worker), None)
        await self._store.command("HDEL", keys.backend_slots(backend), worker)

    async def read(self, backend: str) -> dict[str, tuple[int, int]]:
        """Each worker's slots by its id: granted, in use when it last renewed; lapsed leases are left out.

        A worker that was told less counts with what it was told before until it renews again.
        """
        now_ms, rows = await _hash(self._store, keys.backend_slots(backend))
        found: dict[str, tuple[int, int]] = {}
        for worker, row in rows.items():
            granted, _, in_use, ends_ms, before = (int(word) for word in row.split())
            if ends_ms > now_ms:
                found[worker] = (max(granted, before), in_use)
        return found


@dataclass(frozen=True, slots=True)
class Rest:
    """How long an API key is not to be used yet, and why, in a word."""

    left_ms: int
    why: str


class KeyStates:
    """Which of a backend's API keys rest, told by their digests. Every method may raise StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def block(self, backend: str, digest: str, *, for_ms: int, why: str) -> None:
        """Takes the key with this digest out of use for so long; a shorter time never ends a longer one.

        `why` is for people: never a key or an answer's text. Safe to send again.
        """
        if for_ms > 0:
            await self._store.call(
                "block",
                keys.backend_prefix(backend),
                (keys.backend_keys(backend),),
                (digest, for_ms, why[:REASON_MOST_CHARACTERS]),
            )

    async def read(self, backend: str) -> dict[str, Rest]:
        """The keys that rest, by digest; usable ones are left out."""
        now_ms, rows = await _hash(self._store, keys.backend_keys(backend))
        rests = {digest: _rest(row, now_ms) for digest, row in rows.items()}
        return {digest: rest for digest, rest in rests.items() if rest.left_ms > 0}


def _rest(row: bytes, now_ms: int) -> Rest:
    until_ms, _, why = row.partition(b" ")
    return Rest(int(until_ms) - now_ms, why.decode(errors="replace"))


async def _hash(store: Store, key: str) -> tuple[int, dict[str, bytes]]:
    """Redis's time in ms, and a hash's fields, in one trip."""
    flat, (seconds, micros) = await asyncio.gather(store.command("HGETALL", key), store.command("TIME"))
    now_ms = int(seconds) * 1000 + int(micros) // 1000 + store.clock_offset_ms
    return now_ms, {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
