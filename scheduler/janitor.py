"""The janitor: forgets what says nothing any more, and finds what should not be there at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import structlog

from common.queue import Queue
from common.survey import Survey

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JanitorParams:
    """`most_keys` bounds the keys looked at in one round; `lasting_life_s` is what a key gets that had no end."""

    period_s: float = 60
    most_keys: int = 5_000
    dead_life_s: float = 86_400
    lasting_life_s: int = 86_400


class Janitor:
    """Keeps the store tidy. Stopped: fair-share times of tenants that left pile up, slowly; nothing else happens."""

    name: ClassVar[str] = "janitor"

    def __init__(self, queue: Queue, survey: Survey, pools: Sequence[str], params: JanitorParams | None = None) -> None:
        self._queue = queue
        self._survey = survey
        self._pools = pools
        self._params = params or JanitorParams()

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How much was forgotten, ended or handed to the reaper."""
        return sum([await self._tidy(pool) for pool in self._pools]) + await self._look_round()

    async def _tidy(self, pool: str) -> int:
        before_ms = await self._queue.now_ms() - int(self._params.dead_life_s * 1000)
        return await self._queue.sweep_fair(pool) + await self._queue.forget_dead(pool, before_ms=before_ms)

    async def _look_round(self) -> int:
        sight = await self._survey.step(self._pools, most_keys=self._params.most_keys)
        return await self._end_lasting(sight.lasting) + await self._give_up_holders(sight.holders)

    async def _end_lasting(self, names: tuple[str, ...]) -> int:
        """A key that never ends would in time fill the store; it is a fault of ours, so it is said loudly."""
        if not names:
            return 0
        log.error("janitor.keys_without_ttl", keys=len(names), examples=names[:3])
        return await self._survey.end_later(names, life_s=self._params.lasting_life_s)

    async def _give_up_holders(self, holders: tuple[tuple[str, str], ...]) -> int:
        """Workers that hold jobs and are on no list: only a store that lost part of its data leaves such."""
        given_up = await asyncio.gather(*(self._queue.give_up_worker(pool, worker) for pool, worker in holders))
        for (pool, worker), done in zip(holders, given_up, strict=True):
            if done:
                log.error("janitor.worker_unlisted", pool=pool, worker=worker)
        return sum(given_up)
