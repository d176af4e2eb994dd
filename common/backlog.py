"""How much stands aside in a pool that somebody should look at: dead letters, and ends that the ledger has not got."""

from __future__ import annotations

from common import keys
from common.store import Store


class Backlog:
    """Counts of a pool. Every method may raise StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def dead_letters(self, pool: str) -> int:
        """The number of dead letters on the pool's list."""
        return int(await self._store.command("ZCARD", keys.dead(pool)))

    async def unjournaled(self, pool: str) -> int:
        """The number of journaled jobs that ended and wait for a scheduler to write that into the ledger."""
        return int(await self._store.command("XLEN", keys.ended(pool)))
