"""Walks all our keys, a bounded step at a time: finds those that should end by themselves and would not, and who holds
jobs. Whoever walks decides what to do about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common import keys
from common.store import Store

KEYS_A_TRIP: Final = 500
NEVER_ENDS: Final = -1


@dataclass(frozen=True, slots=True)
class Sight:
    """What one step saw. `holders` are (pool, worker) of whose held jobs there is a record."""

    looked_at: int
    lasting: tuple[str, ...]
    holders: tuple[tuple[str, str], ...]


class Survey:
    """A walk over the keys of one server that goes on where its last step ended, and begins anew at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursor = b"0"

    async def step(self, pools: Sequence[str], *, most_keys: int) -> Sight:
        """What was seen on the way past about `most_keys` keys; holders of these pools only."""
        names = [raw.decode() for raw in await self._names(most_keys)]
        watched = [name for name in names if keys.kind_of(name) not in keys.ALLOWED_WITHOUT_TTL]
        lives_ms = await asyncio.gather(*(self._store.command("PTTL", name) for name in watched))
        prefixes = {pool: keys.held(pool, "") for pool in pools}
        return Sight(
            looked_at=len(names),
            lasting=tuple(name for name, life_ms in zip(watched, lives_ms, strict=True) if life_ms == NEVER_ENDS),
            holders=tuple(
                (pool, name.removeprefix(prefix))
                for pool, prefix in prefixes.items()
                for name in names
                if name.startswith(prefix)
            ),
        )

    async def _names(self, most_keys: int) -> list[bytes]:
        names: dict[bytes, None] = {}
        for _ in range(max(1, most_keys // KEYS_A_TRIP)):
            words = ("SCAN", self._cursor, "MATCH", keys.EVERY_KEY, "COUNT", KEYS_A_TRIP)
            self._cursor, found = await self._store.command(*words)
            # SCAN may name a key twice.
            names.update(dict.fromkeys(found))
            if self._cursor == b"0":
                break
        return list(names)

    async def end_later(self, names: Sequence[str], *, life_s: int) -> int:
        """How many of these keys end by themselves from now on. Safe to send again: it never moves an end."""
        done = (self._store.command("EXPIRE", name, life_s, "NX") for name in names)
        return sum(await asyncio.gather(*done))
