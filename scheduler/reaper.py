"""The reaper: takes the jobs of silent workers away from them, and has them run again or end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import structlog

from common.clock import Clock
from common.contracts import Failure, Outcome, State
from common.errors import StoreUnavailable
from common.queue import PutBack, Queue, Released, Settlement
from scheduler.lost import attempt_error, with_what_was_produced

log = structlog.get_logger(__name__)

LONGEST_PERIOD_S: Final = 1.0
ROUNDS_A_LEASE: Final = 5
WORKER_LOST: Final = "The worker's lease lapsed while it ran the job."

ENDS: Final = {
    Released.INTERRUPTED: Settlement(
        Outcome(
            State.FAILED,
            failure=Failure("upstream_interrupted", "The worker was lost in the middle of the answer; ask again."),
        )
    ),
    Released.ATTEMPTS_USED_UP: Settlement(
        Outcome(
            State.FAILED,
            failure=Failure(
                "attempts_exhausted", "Every attempt at the job failed; with the last its worker was lost."
            ),
        ),
        dead=True,
    ),
    Released.CANCELLED: Settlement(
        Outcome(State.CANCELLED, failure=Failure("cancelled", "The job was cancelled; its worker was lost meanwhile."))
    ),
    Released.EXPIRED: Settlement(
        Outcome(
            State.EXPIRED,
            failure=Failure("deadline_exceeded", "The job's deadline passed and its worker was lost."),
        )
    ),
}
"""How a job ends that may not run again, by why."""


@dataclass(frozen=True, slots=True)
class ReaperParams:
    """`lease_s` is the workers' lease; `most` bounds one batch of jobs, `most_batches` the batches of one round."""

    lease_s: float = 15
    most: int = 200
    most_batches: int = 10

    @property
    def period_s(self) -> float:
        return min(LONGEST_PERIOD_S, self.lease_s / ROUNDS_A_LEASE)


class Reaper:
    """Releases what dead workers hold. Stopped: a killed worker's jobs stay running for ever.

    After an outage of the store every lease may have lapsed though every worker lives. A worker whom nobody reaped may
    renew a lapsed lease, so the reaper gives all of them one lease's time first.
    """

    name: ClassVar[str] = "reaper"

    def __init__(self, queue: Queue, clock: Clock, pools: Sequence[str], params: ReaperParams | None = None) -> None:
        self._queue = queue
        self._clock = clock
        self._pools = pools
        self._params = params or ReaperParams()
        self._outage_s: float | None = None

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many jobs were put back or ended."""
        try:
            if await self._after_outage():
                return 0
            return sum(await asyncio.gather(*(self._pool(pool) for pool in self._pools)))
        except StoreUnavailable:
            self._outage_s = self._clock.monotonic_s()
            raise

    async def _after_outage(self) -> bool:
        """Whether the store was away (seen from here), or not there at all, within the last lease's time."""
        # Asked in every round: an outage lasts as long as this fails.
        if await self._queue.uptime_s() < self._params.lease_s:
            return True
        return self._outage_s is not None and self._clock.monotonic_s() - self._outage_s < self._params.lease_s

    async def _pool(self, pool: str) -> int:
        freed = 0
        for _ in range(self._params.most_batches):
            lost = await self._queue.reap(pool, most=self._params.most)
            freed += sum(await asyncio.gather(*(self._free(pool, worker, job, fence) for worker, job, fence in lost)))
            if len(lost) < self._params.most:
                break
        return freed

    async def _free(self, pool: str, worker: str, job_id: str, fence: int) -> bool:
        """Whether this call put the job back or ended it; False where another scheduler was quicker."""
        error = await attempt_error(self._queue, pool, job_id, worker, code="worker_lost", message=WORKER_LOST)
        code = await self._queue.put_back(pool, job_id, worker, fence, PutBack(failed=True, error=error))
        if code is Released.REFUSED:
            return False
        if (end := ENDS.get(code)) is not None:
            told = await with_what_was_produced(self._queue, pool, job_id, fence, replace(end, error=error))
            if not (await self._queue.settle(pool, job_id, worker, fence, told)).done:
                return False
        log.warning("job.reaped", job_id=job_id, worker=worker, outcome=code.name.lower())
        return True
