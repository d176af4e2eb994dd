"""How a worker hears: the bells that call it to work while it has free slots, and the orders that are meant for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from common import keys
from common.queue import Queue
from common.store import BlockingReader, Store
from workers.bells import Ring, bells, ring_of
from workers.orders import Order, read_order

ROUND_S: Final = 1.0


class Hearing:
    """One worker's ears, each on a connection of its own. Every method may raise StoreUnavailable.

    `wanted` is set where it is worth looking for work, `looked` by who has looked, `freed` where a slot may be free.
    `kept`: the pools whose free slots are for interactive work alone; `unheard`: those of them that it waits in now.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        pools: Collection[str],
        *,
        worker_id: Callable[[], str],
        free: Callable[[], int],
        bell_wait_s: float,
    ) -> None:
        self._store = store
        self._queue = queue
        self._pools = pools
        self._worker_id = worker_id
        self._free = free
        self._bell_wait_s = bell_wait_s
        self.wanted = asyncio.Event()
        self.looked = asyncio.Event()
        self.freed = asyncio.Event()
        self.kept: set[str] = set()
        self.unheard: frozenset[str] = frozenset()

    async def note_kept(self, pool: str, *, kept: bool) -> None:
        """Which bells the worker waits on follows from this, also where it waits already."""
        if kept:
            self.kept.add(pool)
            return
        self.kept.discard(pool)
        if pool in self.unheard:
            await self._queue.nudge(pool, self._worker_id())

    async def listen(self) -> None:
        """Sets `wanted` at each ring that this worker has room for, and where none came for a while."""
        async with self._store.blocking() as reader:
            while True:
                if self._free() <= 0:
                    self.freed.clear()
                    await self.freed.wait()
                    continue
                ring = await self._ring(reader)
                if ring is None or not (ring.nudged or self._free() <= 0):
                    # A first token waits for the claim; to listen again has time until that is answered.
                    self.looked.clear()
                    self.wanted.set()
                    await self.looked.wait()
                elif not ring.nudged:
                    # The slots went to others meanwhile: the call is for a worker that has one.
                    await self._queue.ring(ring.pool, urgent=ring.urgent)

    async def _ring(self, reader: BlockingReader) -> Ring | None:
        """The next ring; None after a while without any, as one may be lost, and slots are not kept for ever."""
        self.unheard = frozenset(self.kept)
        heard, wait_s = bells(self._pools, self._worker_id(), self.unheard), self._bell_wait_s
        try:
            rung = await reader.command("BLPOP", *heard, wait_s, wait_s=wait_s)
        finally:
            self.unheard = frozenset()
        return None if rung is None else ring_of(heard[rung[0].decode()], rung[1])

    async def obey(self, connected: Callable[[], None], carry_out: Callable[[Order], None]) -> None:
        """Has each order carried out; `connected` is called first, since one may have been lost before."""
        async with self._store.blocking() as reader:
            connected()
            while True:
                # The worker may have another name by now.
                lists = [keys.control(pool, self._worker_id()) for pool in self._pools]
                found = await reader.command("BLPOP", *lists, ROUND_S, wait_s=ROUND_S)
                order = read_order(found[1]) if found is not None else None
                if order is not None:
                    carry_out(order)
