"""How much stands aside in a pool that somebody should look at: dead letters, and ends that the ledger has not got."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from common import keys
from common.store import Store


@dataclass(frozen=True, slots=True)
class Aside:
    """Counts of a pool. `unjournaled`: journaled jobs that ended, which a scheduler has still to write down."""

    dead_letters: int
    unjournaled: int


class Backlog:
    """Whoever counts what stands aside."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(self, pool: str) -> Aside:
        """The pool's counts. Raises StoreUnavailable."""
        dead, ended = await asyncio.gather(
            self._store.command("ZCARD", keys.dead(pool)), self._store.command("XLEN", keys.ended(pool))
        )
        return Aside(int(dead), int(ended))
