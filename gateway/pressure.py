"""Watches how full the store is, so that new work is refused while there is still room for running work to end."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from common.clock import Clock
from common.errors import HeadraceError, StoreFull
from common.inspection import parse_info
from common.store import Store

log = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
RETRY_AFTER_S: Final = 5.0
# New work is taken again once so much of the limit is free, lest it be let in and refused by turns.
REOPENS_BELOW: Final = 0.95


class Pressure:
    """Whether the store has room for new work, by its own account of a second ago.

    Where the store can't be asked, what it said last holds: its silence is for others to deal with.
    """

    def __init__(self, store: Store, clock: Clock, *, most_share: float) -> None:
        self._store = store
        self._clock = clock
        self._most_share = most_share
        self._task: asyncio.Task[None] | None = None
        self.share = 0.0
        self.full = False

    def check(self) -> None:
        """Nothing, where there is room. Raises StoreFull."""
        if self.full:
            raise store_full()

    def start(self) -> None:
        """Begins to watch."""
        self._task = asyncio.create_task(self._watch(), name="store pressure")

    async def close(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Asks the store once. Raises StoreUnavailable."""
        self.share = used_share(await self._store.command("INFO", "memory"))
        full = self.share >= self._most_share * (REOPENS_BELOW if self.full else 1)
        if full != self.full:
            self.full = full
            log.warning("store.full" if full else "store.has_room", share=round(self.share, 3))

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except HeadraceError as error:
                log.debug("store.not_looked_at", error=error.failure.message)
            await self._clock.sleep(PERIOD_S)


def used_share(info: bytes) -> float:
    """How much of its memory limit a server uses, by its INFO; 0 where it has no limit."""
    said = parse_info(info)
    limit_bytes = int(said.get("maxmemory", 0))
    # Buffers for replicas and the append-only file don't count when the server refuses a write.
    used_bytes = int(said.get("used_memory", 0)) - int(said.get("mem_not_counted_for_evict", 0))
    return used_bytes / limit_bytes if limit_bytes else 0.0


def store_full() -> StoreFull:
    """The refusal of new work, with the time after which it may be tried again."""
    return StoreFull(retry_after_s=RETRY_AFTER_S)
