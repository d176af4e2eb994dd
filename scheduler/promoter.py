"""The promoter: what became due. Delayed jobs go into their lanes, late ones expire, abandoned ones are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import structlog

from common.contracts import Failure, Outcome, State
from common.queue import Queue, Settlement
from scheduler.lost import attempt_error, with_what_was_produced

log = structlog.get_logger(__name__)

TOO_LATE: Final = Settlement(
    Outcome(State.EXPIRED, failure=Failure("deadline_exceeded", "The job's deadline passed while it waited."))
)

OUTLIVED: Final = Settlement(
    Outcome(
        State.EXPIRED, failure=Failure("deadline_exceeded", "The job's deadline passed, and its worker did not end it.")
    )
)


@dataclass(frozen=True, slots=True)
class PromoterParams:
    """`most` bounds one batch, `most_batches` the batches of each kind in one round."""

    period_s: float = 0.2
    most: int = 500
    most_batches: int = 10


class Promoter:
    """Moves what became due. Stopped: delayed jobs never start, waiting ones outlive their deadline."""

    name: ClassVar[str] = "promoter"

    def __init__(self, queue: Queue, pools: Sequence[str], params: PromoterParams | None = None) -> None:
        self._queue = queue
        self._pools = pools
        self._params = params or PromoterParams()

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many jobs were moved or ended."""
        done = await asyncio.gather(*(self._pool(pool) for pool in self._pools))
        return sum(done)

    async def _pool(self, pool: str) -> int:
        return await self._promote(pool) + await self._expire(pool) + await self._cancel(pool)

    async def _promote(self, pool: str) -> int:
        moved = 0
        for _ in range(self._params.most_batches):
            batch = await self._queue.promote(pool, most=self._params.most)
            moved += batch
            if batch < self._params.most:
                break
        return moved

    async def _expire(self, pool: str) -> int:
        ended = 0
        for _ in range(self._params.most_batches):
            late = await self._queue.overdue(pool, most=self._params.most)
            # One that was claimed or ended meanwhile refuses: then it isn't ours to end.
            done = await asyncio.gather(*(self._end(pool, job, fence, worker) for job, fence, worker in late))
            ended += sum(done)
            if len(late) < self._params.most:
                break
        return ended

    async def _end(self, pool: str, job_id: str, fence: int, worker: str) -> bool:
        """Whether this call ended a job past its deadline: one that waits, or one whose worker lives and hangs."""
        end = TOO_LATE
        if worker:
            log.warning("job.taken_from_worker", job_id=job_id, worker=worker)
            error = await attempt_error(
                self._queue,
                pool,
                job_id,
                worker,
                code="deadline_exceeded",
                message="The worker did not end it in time.",
            )
            end = await with_what_was_produced(self._queue, pool, job_id, fence, replace(OUTLIVED, error=error))
        return (await self._queue.settle(pool, job_id, worker, fence, end)).done

    async def _cancel(self, pool: str) -> int:
        ids = await self._queue.abandoned(pool, most=self._params.most)
        await asyncio.gather(*(self._queue.cancel(job_id, unread=True) for job_id in ids))
        return len(ids)
