"""The journal's keeper: writes ended jobs into the ledger, and refills a store that lost open ones."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import structlog

from common.clock import Clock
from common.contracts import Failure, Job, Outcome, State
from common.ledger.journal import JournalLedger
from common.ledger.rows import End, Entry
from common.outbox import Outbox, Signed
from common.queue import Queue, Submitted

log = structlog.get_logger(__name__)

LOST: Final = Failure(
    "redis_lost", "The queue's store lost the job, and its deadline passed before it could run again."
)
CANCELLED: Final = Failure("cancelled", "The job was cancelled.")


@dataclass(frozen=True, slots=True)
class JournalParams:
    """`grace_s`: how old an open job must be before the store is expected to know it; a gateway needs less to say so.

    `most` bounds one batch, `most_batches` the batches of each kind in one round, `most_bytes` what is held in memory.
    """

    period_s: float = 0.5
    grace_s: float = 2.5
    mark_life_s: float = 15.0
    result_life_s: float = 86_400
    key_life_s: float = 86_400
    tidy_s: float = 60.0
    most: int = 200
    most_batches: int = 20
    most_bytes: int = 8 * 1024 * 1024


@dataclass(slots=True)
class _Watch:
    """How far the look through a pool's open jobs has come; thorough until a pass that began late enough is through."""

    after: str = ""
    began_ms: int = 0
    thorough_until_ms: int | None = None
    run_id: str | None = None
    rerun_cursor: int | None = None
    ours: bool = True


class Journal:
    """Keeps ledger and store together. Stopped: ended jobs pile up in the store; one that was emptied stays empty."""

    name: ClassVar[str] = "journal"

    def __init__(
        self,
        ledger: JournalLedger,
        outbox: Outbox,
        queue: Queue,
        clock: Clock,
        pools: Sequence[str],
        params: JournalParams | None = None,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._queue = queue
        self._clock = clock
        self._params = params or JournalParams()
        self._reader = secrets.token_hex(8)
        self._watches = {pool: _Watch() for pool in pools}
        self._tidied_s = -self._params.tidy_s

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many jobs were written down, submitted again, or forgotten."""
        identity = await self._ledger.database.identity()
        done = 0
        for pool, watch in self._watches.items():
            if await self._is_ours(pool, watch, identity):
                settled, all_settled = await self._settle(pool)
                done += settled + (await self._look_after(pool, watch) if all_settled else 0)
        return done + await self._tidy()

    # --- whose journal it is, and whether the store is the one we knew ------------------------------------------------

    async def _is_ours(self, pool: str, watch: _Watch, identity: str) -> bool:
        """Whether this ledger keeps the pool's journal; notices a store that lost something."""
        signed = await self._outbox.sign(pool, identity, life_s=self._params.mark_life_s)
        if signed is Signed.ANOTHERS:
            if watch.ours:
                log.error("journal.another_ledger", pool=pool, mend="give all processes the same HEADRACE_DATABASE_URL")
            watch.ours = False
            return False
        run_id = await self._outbox.run_id()
        if signed is Signed.ANEW or run_id != watch.run_id or not watch.ours:
            log.info(
                "journal.thorough_look", pool=pool, mark_lost=signed is Signed.ANEW, known=watch.run_id is not None
            )
            await self._begin_thorough(watch)
        watch.run_id, watch.ours = run_id, True
        return True

    async def _begin_thorough(self, watch: _Watch) -> None:
        now_ms = await self._queue.now_ms()
        watch.after, watch.began_ms, watch.rerun_cursor = "", now_ms, 0
        # What was being accepted just then is old enough only in a pass that begins after the grace.
        watch.thorough_until_ms = now_ms + int(self._params.grace_s * 1000)

    # --- ends into the ledger -----------------------------------------------------------------------------------------

    async def _settle(self, pool: str) -> tuple[int, bool]:
        """The number of ends written, and whether none is left."""
        written = 0
        for _ in range(self._params.most_batches):
            ended = await self._outbox.read(pool, self._reader, most=self._params.most)
            if not ended:
                return written, True
            # The rest of them, where their results are large, are read again.
            ends = await self._outbox.ends(pool, ended, most_bytes=self._params.most_bytes)
            await self._write(pool, ends)
            await self._outbox.strike(pool, [one.entry for one in ended[: len(ends)]])
            written += len(ends)
        return written, False

    async def _write(self, pool: str, ends: Sequence[End]) -> None:
        """The first end of a job stands; where the store has another one, readers are sent to the ledger."""
        last = {end.id: end for end in ends}
        first = {end.id: end for end in reversed(ends)}
        standing = await self._ledger.end(first.values())
        for job_id, end in last.items():
            if end.accepted is not None and standing.get(job_id, end.fence) != end.fence:
                log.warning("journal.ended_twice", job_id=job_id, status=end.status.value)
                await self._queue.defer(pool, job_id)

    # --- open jobs that the store lost --------------------------------------------------------------------------------

    async def _look_after(self, pool: str, watch: _Watch) -> int:
        done = await self._end_reruns(pool, watch)
        batches = self._params.most_batches if watch.thorough_until_ms is not None else 1
        for _ in range(batches):
            came_round, missing = await self._look(pool, watch)
            done += await self._refill(pool, missing)
            if came_round:
                break
        return done

    async def _look(self, pool: str, watch: _Watch) -> tuple[bool, list[str]]:
        """Whether that was the last batch of a pass, and the jobs in it that the store does not know."""
        now_ms = await self._queue.now_ms()
        if not watch.after:
            watch.began_ms = now_ms
        by_ms = now_ms - int(self._params.grace_s * 1000)
        ids = await self._ledger.open_ids(pool, after=watch.after, created_by_ms=by_ms, most=self._params.most)
        came_round = len(ids) < self._params.most
        watch.after = "" if came_round else ids[-1]
        if came_round and watch.thorough_until_ms is not None and watch.began_ms >= watch.thorough_until_ms:
            watch.thorough_until_ms = None
        states = await self._outbox.states(pool, ids)
        await self._write_ended(pool, [job_id for job_id, state in states.items() if state and state.ended])
        return came_round, [job_id for job_id, state in states.items() if state is None]

    async def _write_ended(self, pool: str, job_ids: Sequence[str]) -> None:
        """Ends that the store has and the ledger doesn't: it lost them, or another scheduler is about to write them."""
        if job_ids:
            ends = [await self._outbox.end_of(pool, job_id) for job_id in job_ids]
            await self._write(pool, [end for end in ends if end is not None])

    async def _refill(self, pool: str, job_ids: Sequence[str]) -> int:
        done = 0
        while job_ids:
            entries = await self._ledger.open_among(job_ids, most_bytes=self._params.most_bytes)
            if not entries:
                break
            now_ms = await self._queue.now_ms()
            ends = [end for entry in entries if (end := _end_of_lost(entry, now_ms)) is not None]
            if ends:
                await self._ledger.end(ends)
            ended = {end.id for end in ends}
            again = [entry for entry in entries if entry.accepted.id not in ended]
            taken = await asyncio.gather(*(self._submit(entry, now_ms) for entry in again))
            # Whoever ended one meanwhile found nothing to end in the store.
            await self._cancel_ended(pool, [entry.accepted.id for entry in again])
            refused = len(again) - sum(taken)
            log.warning("journal.refilled", pool=pool, submitted=sum(taken), failed=len(ends), refused=refused)
            done += sum(taken) + len(ends)
            job_ids = [one for one in job_ids if one > entries[-1].accepted.id]
        return done

    async def _submit(self, entry: Entry, now_ms: int) -> bool:
        """Whether the queue has the job again, under its own id and with what is left of its time."""
        job = _again(entry, now_ms)
        admitted = await self._queue.submit(job, accepted=True)
        if admitted.code is Submitted.OTHER_BODY or (
            admitted.code is Submitted.DUPLICATE and admitted.job_id != job.id
        ):
            # Its key was lost with the store and given to another job since; this one was promised all the same.
            admitted = await self._queue.submit(replace(job, idempotency="", fingerprint=""), accepted=True)
        return admitted.code in (Submitted.ACCEPTED, Submitted.DUPLICATE)

    # --- jobs that run again although they have ended -----------------------------------------------------------------

    async def _end_reruns(self, pool: str, watch: _Watch) -> int:
        """A store that went back in time runs again what the ledger knows to have ended."""
        cancelled = 0
        while watch.rerun_cursor is not None:
            watch.rerun_cursor, ids = await self._outbox.unended(pool, watch.rerun_cursor, most=self._params.most)
            cancelled += await self._cancel_ended(pool, ids)
            if watch.rerun_cursor == 0:
                watch.rerun_cursor = None
        return cancelled

    async def _cancel_ended(self, pool: str, job_ids: Sequence[str]) -> int:
        ended = await self._ledger.ended_among(job_ids) if job_ids else set[str]()
        for job_id in sorted(ended):
            log.warning("journal.rerun_cancelled", job_id=job_id)
            await self._queue.defer(pool, job_id)
            await self._queue.cancel(job_id)
        return len(ended)

    # --- what need not be kept any longer -----------------------------------------------------------------------------

    async def _tidy(self) -> int:
        if self._clock.monotonic_s() - self._tidied_s < self._params.tidy_s:
            return 0
        now_ms, params = await self._queue.now_ms(), self._params
        ended_ms = now_ms - int(params.result_life_s * 1000)
        keyed_ms = now_ms - int(max(params.result_life_s, params.key_life_s) * 1000)
        forgotten = 0
        for _ in range(params.most_batches):
            batch = await self._ledger.forget(ended_before_ms=ended_ms, keyed_before_ms=keyed_ms, most=params.most)
            forgotten += batch
            if batch < self._params.most:
                break
        for pool in self._watches:
            await self._outbox.forget_readers(pool)
        self._tidied_s = self._clock.monotonic_s()
        return forgotten


def _end_of_lost(entry: Entry, now_ms: int) -> End | None:
    """How a job ends that the store lost; None where it can still run."""
    job = entry.accepted
    if entry.cancel_asked:
        outcome = Outcome(State.CANCELLED, failure=CANCELLED)
    elif job.deadline_ms <= now_ms:
        outcome = Outcome(State.FAILED, failure=LOST)
    else:
        return None
    return End(job.id, outcome.status, outcome.encode(), now_ms, accepted=job)


def _again(entry: Entry, now_ms: int) -> Job:
    job = Job.decode(entry.accepted.spec)
    delay_left_ms = max(0, entry.accepted.created_ms + job.delay_ms - now_ms) if job.delay_ms else 0
    return replace(job, deadline_in_ms=entry.accepted.deadline_ms - now_ms, delay_ms=delay_left_ms)
