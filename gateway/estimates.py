"""Follows how long each model's answers are, so that what a job will take is told by what its like took."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from common.clock import Clock
from common.contracts import Priority
from common.errors import HeadraceError
from common.queue import Queue

log = structlog.get_logger(__name__)

PERIOD_S: Final = 2.0


class Estimates:
    """The mean length of each model's last answers, as the queue noted it two seconds ago.

    Where the store can't be asked, or has forgotten, what was known last holds.
    """

    def __init__(self, queue: Queue, clock: Clock, *, pool_by_model: Mapping[str, str]) -> None:
        self._queue = queue
        self._clock = clock
        self._models: dict[str, list[str]] = {}
        for model, pool in pool_by_model.items():
            self._models.setdefault(pool, []).append(model)
        self._usual: dict[tuple[Priority, str], float] = {}
        self._task: asyncio.Task[None] | None = None

    def answer_tokens(self, model: str, priority: Priority) -> float | None:
        """How many tokens an answer usually has: in this class, else in the highest that knows; None: nobody knows."""
        known = (self._usual.get((cls, model)) for cls in (priority, *Priority))
        return next((tokens for tokens in known if tokens is not None), None)

    def start(self) -> None:
        """Begins to follow."""
        self._task = asyncio.create_task(self._follow(), name="estimates")

    async def close(self) -> None:
        """Stops following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Reads once what is known. Raises StoreUnavailable."""
        for usual in await asyncio.gather(*(self._queue.usual_answers(*item) for item in self._models.items())):
            self._usual.update(usual)

    async def _follow(self) -> None:
        while True:
            try:
                await self.look()
            except HeadraceError as error:
                log.debug("estimates.not_read", error=error.failure.message)
            await self._clock.sleep(PERIOD_S)
