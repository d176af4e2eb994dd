"""A worker's lease in each of its pools: taken under a name that nobody had before, renewed, given up, taken anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from common.clock import Clock
from common.contracts import JsonObject
from common.errors import LaterError
from common.queue import Queue
from workers.endings import RETRY_STORE_S
from workers.runs import Duties

log = structlog.get_logger(__name__)

BEATS_A_LEASE: Final = 3


class Lease:
    """One worker's lease. `show` is what `/workers` tells of it, `takes` how many jobs it would take now."""

    def __init__(
        self,
        queue: Queue,
        clock: Clock,
        duties: Duties,
        *,
        lease_s: float,
        show: Callable[[], JsonObject],
        takes: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._pools = list(duties.lanes)
        self._lease_s = lease_s
        self._new_id = duties.new_id
        self._show = show
        self._takes = takes
        self.id = duties.new_id()

    async def register(self) -> None:
        """Takes the lease, however long the store is away."""
        while True:
            try:
                await self.renew(register=True)
                return
            except LaterError as error:
                log.warning("worker.waiting_for_store", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)

    async def renew(self, *, register: bool = False) -> bool:
        """Whether every pool's lease goes on. Raises StoreUnavailable."""
        for pool in self._pools:
            alive = await self._queue.beat(
                pool, self.id, lease_s=self._lease_s, info=self._show(), concurrency=self._takes(), register=register
            )
            if not alive:
                return False
        return True

    async def keep(self, fenced: Callable[[], None], beaten: Callable[[], None]) -> None:
        """Renews it for good, and calls `beaten` after each time. Raises StoreUnavailable.

        Where the worker was given up, `fenced` lets go of its jobs, which are others' now; it gets another name.
        """
        while True:
            await self._clock.sleep(self._lease_s / BEATS_A_LEASE)
            if not await self.renew():
                fenced()
                self.id = self._new_id()
                await self.register()
            beaten()
