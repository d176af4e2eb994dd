"""How attempts end in the store: settled, or put back to run again. Tried until the store takes it, since the scripts
refuse it once the job is another's. Each attempt that failed leaves its error in the job's record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from common.clock import Clock
from common.contracts import Failure, Outcome, State
from common.errors import LaterError
from common.queue import AttemptError, PutBack, Queue, Released, Settled, Settlement
from workers.runs import Attempt

log = structlog.get_logger(__name__)

RETRY_STORE_S: Final = 0.2
MESSAGE_MOST_CHARACTERS: Final = 500
CANCELLED: Final = Failure("cancelled", "The job was cancelled.")
LATE: Final = Failure("deadline_exceeded", "The job's deadline passed.")
NEVER_BEGAN: Final = Failure("attempts_exhausted", "Every attempt at the job was lost before it began.")

Answer = TypeVar("Answer", Settled, Released)


class Endings:
    """One worker's last words about its attempts."""

    def __init__(self, queue: Queue, clock: Clock, *, worker_id: Callable[[], str]) -> None:
        self._queue = queue
        self._clock = clock
        self._worker_id = worker_id

    async def settle(self, attempt: Attempt, end: Settlement) -> None:
        """Ends the job, unless it is another's by now."""
        claim, told = attempt.claim, self._with_error(attempt, end)
        code = await self._persist(lambda: self._queue.finish(claim, self._worker_id(), told))
        if not code.done:
            log.warning("worker.settle_refused", job_id=claim.job.id, code=code.name)

    async def put_back(self, attempt: Attempt, back: PutBack, failure: Failure) -> Settlement | None:
        """None where the job went back (or is no longer ours); else how it ends instead, with this failure."""
        # A write that lands after the job went back would be refused as another attempt's.
        attempt.run.mute()
        await attempt.run.landed()
        claim = attempt.claim
        code = await self._persist(
            lambda: self._queue.put_back(claim.job.pool, claim.job.id, self._worker_id(), claim.fence, back)
        )
        ending = _ending(code, failure)
        if ending is None:
            return None
        end = replace(await attempt.run.break_off(*ending), error=back.error)
        return replace(end, dead=True) if code is Released.ATTEMPTS_USED_UP else end

    async def return_lost(self, pool: str, job_id: str, fence: int, *, failed: bool) -> None:
        """Puts back a job that the store counts as ours and that nobody here works at. Raises StoreUnavailable."""
        log.warning("worker.job_unknown", job_id=job_id)
        back = PutBack(failed=failed, error=await self._never_heard(pool, job_id) if failed else None)
        code = await self._queue.put_back(pool, job_id, self._worker_id(), fence, back)
        ending = _ending(code, NEVER_BEGAN)
        if ending is not None:
            dead = code is Released.ATTEMPTS_USED_UP
            end = Settlement(Outcome(ending[0], failure=ending[1]), dead=dead, error=back.error)
            await self._queue.settle(pool, job_id, self._worker_id(), fence, end)

    async def _never_heard(self, pool: str, job_id: str) -> AttemptError:
        number, at_ms = await asyncio.gather(self._queue.attempt(pool, job_id), self._queue.now_ms())
        text = "The worker never heard that the job was its own."
        return AttemptError(number, "claim_lost", text, worker=self._worker_id(), at_ms=at_ms)

    def error(self, attempt: Attempt, failure: Failure, backend: str) -> AttemptError:
        """What is kept of a failed attempt."""
        claim = attempt.claim
        at_ms = claim.claimed_ms + round((self._clock.monotonic_s() - attempt.began_s) * 1000)
        text = failure.message[:MESSAGE_MOST_CHARACTERS]
        return AttemptError(claim.attempt, failure.code, text, backend, self._worker_id(), at_ms)

    def _with_error(self, attempt: Attempt, end: Settlement) -> Settlement:
        outcome = end.outcome
        if end.error is not None or outcome.failure is None or outcome.status not in (State.FAILED, State.EXPIRED):
            return end
        return replace(end, error=self.error(attempt, outcome.failure, outcome.backend))

    async def _persist(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        while True:
            try:
                return await step()
            except LaterError as error:
                log.warning("worker.store_unavailable", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)


def _ending(code: Released, failure: Failure) -> tuple[State, Failure] | None:
    """How a job ends that was not put back, and why; None where it was, or is no longer ours."""
    match code:
        case Released.PUT_BACK | Released.REFUSED:
            return None
        case Released.INTERRUPTED:
            text = "The answer broke off after its first tokens; ask again."
            return State.FAILED, Failure("upstream_interrupted", text)
        case Released.ATTEMPTS_USED_UP:
            return State.FAILED, failure
        case Released.CANCELLED:
            return State.CANCELLED, CANCELLED
        case Released.EXPIRED:
            return State.EXPIRED, LATE
