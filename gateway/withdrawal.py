"""Takes back submissions whose callers were refused although the store may have got them, or may get them yet."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

import structlog

from common.clock import Clock
from common.errors import HeadraceError
from common.queue import Queue

log = structlog.get_logger(__name__)

RETRY_S: Final = 0.5
AT_ONCE: Final = 200
MOST_OWED: Final = 20_000


class Withdrawals:
    """The jobs of this process that nobody was told of: cancelled, or kept from coming into being, as soon as may be.

    They are in this process's memory: where it is killed before the store is back, such a job runs to its end unread.
    """

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._owed: dict[str, None] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def owed(self) -> int:
        """How many are still to be taken back."""
        return len(self._owed)

    def owe(self, job_id: str) -> None:
        """Has this submission taken back."""
        if len(self._owed) >= MOST_OWED:
            log.error("withdrawal.given_up", job_id=next(iter(self._owed)))
            del self._owed[next(iter(self._owed))]
        self._owed[job_id] = None
        self._some.set()

    def start(self) -> None:
        """Begins to work off what is owed."""
        self._task = asyncio.create_task(self._run(), name="withdrawals")

    async def close(self) -> None:
        """Stops; tries what is left once more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._owed:
            await self._some_off()
        if self._owed:
            log.error("withdrawal.left_undone", jobs=len(self._owed))

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if not await self._some_off():
                await self._clock.sleep(RETRY_S)

    async def _some_off(self) -> bool:
        """Whether some could be taken back."""
        ids = list(islice(self._owed, AT_ONCE))
        results = await asyncio.gather(*map(self._queue.withdraw, ids), return_exceptions=True)
        for job_id, result in zip(ids, results, strict=True):
            if result is None:
                self._owed.pop(job_id, None)
            elif not isinstance(result, HeadraceError):
                raise result
        if not self._owed:
            self._some.clear()
        done = sum(result is None for result in results)
        if done:
            log.info("withdrawal.done", jobs=done, left=len(self._owed))
        return done > 0
