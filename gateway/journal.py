"""Accepts background jobs by the ledger: committed to SQL before the queue has them and before the caller is told.

From the commit on the job is accepted, whatever becomes of the queue's store: the scheduler submits what the store does
not know. Only a refusal by the queue itself, or a caller who was told no, takes a row back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import structlog

from common.clock import Clock
from common.contracts import Failure, Job, Outcome, State
from common.errors import HeadraceError, LedgerUnavailable, StoreUnavailable
from common.ledger.journal import JournalLedger
from common.ledger.rows import Accepted, End, Entry
from common.outbox import Outbox
from common.queue import Admitted, Queue, Record, Submitted
from common.store import Store
from gateway.admission import Admission
from gateway.idempotency import reused
from gateway.pressure import Pressure

log = structlog.get_logger(__name__)

LONGEST_WAIT_S: Final = 1.9
RETRY_S: Final = 0.5
LOOK_AGAIN_S: Final = 1.0
MOST_ROWS: Final = 256
MOST_BYTES: Final = 16 * 1024 * 1024
MOST_OWED: Final = 20_000


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A job taken, journaled or not; `admitted` is None where the queue gets it only later."""

    job: Job
    admitted: Admitted | None


class Writer:
    """Rows of requests that come together, in one transaction; at most one is under way."""

    def __init__(self, ledger: JournalLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._waiting: dict[str, tuple[Accepted, asyncio.Future[None]]] = {}
        self._owed: dict[str, None] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def owed(self) -> int:
        """How many rows are still to be taken back."""
        return len(self._owed)

    async def add(self, accepted: Accepted) -> None:
        """The row is on disk. Raises LedgerUnavailable; a row that may have got there is then taken back."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[accepted.id] = accepted, done
        self._go_on()
        try:
            await done
        except BaseException:
            if self._waiting.pop(accepted.id, None) is None:
                self.take_back(accepted.id)
            raise

    def take_back(self, job_id: str) -> None:
        """Has an open job's row deleted, as soon as may be."""
        if len(self._owed) >= MOST_OWED:
            log.error("journal.row_left", job_id=next(iter(self._owed)))
            del self._owed[next(iter(self._owed))]
        self._owed[job_id] = None
        self._go_on()

    def _go_on(self) -> None:
        self._some.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="journal writer")

    async def close(self) -> None:
        """Writes what waits and takes back what is owed, once; then stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting or self._owed:
            await self._write()
        if self._owed:
            log.error("journal.rows_left", jobs=len(self._owed))

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting or self._owed:
                # One turn of the loop, so that what comes at the same moment is written together.
                await asyncio.sleep(0)
                if not await self._write() and not self._waiting:
                    await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(RETRY_S):
                await self._some.wait()
        except TimeoutError:
            pass

    async def _write(self) -> bool:
        """Whether a transaction went through."""
        rows = self._take()
        owed = list(islice(self._owed, MOST_ROWS))
        try:
            await self._ledger.write([accepted for accepted, _ in rows], owed)
        except LedgerUnavailable as error:
            for _, done in rows:
                _refuse(done, error)
            return False
        except BaseException:
            for _, done in rows:
                _refuse(done, LedgerUnavailable("The ledger was closed."))
            raise
        for job_id in owed:
            self._owed.pop(job_id, None)
        for _, done in rows:
            if not done.done():
                done.set_result(None)
        return True

    def _take(self) -> list[tuple[Accepted, asyncio.Future[None]]]:
        rows: list[tuple[Accepted, asyncio.Future[None]]] = []
        size_bytes = 0
        for accepted, done in islice(self._waiting.values(), MOST_ROWS):
            size_bytes += len(accepted.spec)
            if rows and size_bytes > MOST_BYTES:
                break
            rows.append((accepted, done))
        for accepted, _ in rows:
            del self._waiting[accepted.id]
        return rows


def _refuse(done: asyncio.Future[None], error: HeadraceError) -> None:
    if not done.done():
        done.set_exception(error)


class Journal:
    """The gateway's side of the journal: takes jobs by it, and looks there for those that the store does not know."""

    def __init__(
        self,
        ledger: JournalLedger | None,
        store: Store,
        queue: Queue,
        admission: Admission,
        pressure: Pressure,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._pressure = pressure
        self._outbox = Outbox(store)
        self._queue = queue
        self._admission = admission
        self._clock = clock
        self._writer = Writer(ledger, clock) if ledger else None
        self._kept: dict[str, tuple[float, bool]] = {}
        self._told: set[str] = set()

    async def close(self) -> None:
        """Ends what is under way, then closes the database."""
        if self._writer is not None:
            await self._writer.close()
        if self._ledger is not None:
            await self._ledger.database.close()

    # --- jobs in ------------------------------------------------------------------------------------------------------

    async def accept(self, job: Job) -> Acceptance:
        """The job is accepted, by the ledger where one keeps this pool's journal.

        Raises LedgerUnavailable, and whatever `Admission.admit` raises; the job then does not count as accepted.
        """
        if self._writer is None:
            return Acceptance(job, await self._admission.admit(job))
        self._pressure.check()
        ends_s = asyncio.get_running_loop().time() + LONGEST_WAIT_S
        known = None
        try:
            async with asyncio.timeout_at(ends_s):
                kept = await self._is_kept(job.pool)
                if kept and job.idempotency:
                    known = await self._known(job)
                if kept and known is None:
                    job = replace(job, journal=True)
                    await self._writer.add(await self._row(job))
        except TimeoutError:
            raise LedgerUnavailable() from None
        if known is not None:
            return known
        return Acceptance(job, await (self._enqueue(job, ends_s) if kept else self._admission.admit(job)))

    async def _known(self, job: Job) -> Acceptance | None:
        """What an earlier request with the same idempotency key got; None where there was none. Raises KeyReused."""
        assert self._ledger is not None
        if await self._queue.by_key(job.pool, job.tenant, job.idempotency) is not None:
            return Acceptance(job, await self._admission.admit(job))
        # A store that lost everything lost its keys too.
        entry = await self._ledger.by_key(job.tenant, job.idempotency)
        if entry is None:
            return None
        if entry.accepted.fingerprint != job.fingerprint:
            raise reused()
        return Acceptance(job, await self._counting(entry))

    async def _counting(self, entry: Entry) -> Admitted:
        """The job that counts for a row's key: of several requests at once each may have written a row, and only the
        queue says whose it is. So the row's own job is submitted, which changes nothing where it or another was."""
        row = entry.accepted
        known = Admitted(Submitted.DUPLICATE, row.id, row.created_ms, 0)
        if entry.end is not None or entry.cancel_asked:
            return known
        now_ms = await self._queue.now_ms()
        job = Job.decode(row.spec)
        left_ms = max(0, row.created_ms + job.delay_ms - now_ms) if job.delay_ms else 0
        job = replace(job, deadline_in_ms=max(1, row.deadline_ms - now_ms), delay_ms=left_ms)
        admitted = await self._queue.submit(job)
        return admitted if admitted.code in (Submitted.ACCEPTED, Submitted.DUPLICATE) else known

    async def _row(self, job: Job) -> Accepted:
        # By the store's clock; and a store that is away is told now, with nothing written.
        now_ms = await self._queue.now_ms()
        return Accepted(
            id=job.id,
            pool=job.pool,
            tenant=job.tenant,
            spec=job.encode(),
            created_ms=now_ms,
            deadline_ms=now_ms + job.deadline_in_ms,
            idempotency=job.idempotency,
            fingerprint=job.fingerprint,
            batch=job.batch,
        )

    async def _enqueue(self, job: Job, ends_s: float) -> Admitted | None:
        """What the queue says to a job that the ledger has; None where it says nothing at the moment."""
        assert self._writer is not None
        try:
            async with asyncio.timeout_at(ends_s):
                admitted = await self._admission.admit(job)
        except (TimeoutError, StoreUnavailable):
            log.warning("journal.enqueued_later", job_id=job.id)
            return None
        except HeadraceError:
            self._writer.take_back(job.id)
            raise
        if admitted.job_id != job.id:
            self._writer.take_back(job.id)
        return admitted

    async def _is_kept(self, pool: str) -> bool:
        """Whether a scheduler with the same ledger keeps this pool's journal; looked up every second."""
        looked_s, kept = self._kept.get(pool, (-LOOK_AGAIN_S, False))
        if self._clock.monotonic_s() - looked_s >= LOOK_AGAIN_S:
            kept = await self._look(pool, kept)
            self._kept[pool] = self._clock.monotonic_s(), kept
        return kept

    async def _look(self, pool: str, kept: bool) -> bool:
        assert self._ledger is not None
        database = self._ledger.database
        signed = await self._outbox.signed(pool)
        if signed is None:
            # No scheduler says anything just now. A file may be this process's alone, a server is everybody's.
            return kept or database.shared
        try:
            same = signed == await database.identity()
        except LedgerUnavailable:
            if kept or database.shared:
                raise
            # A file that was never of use here, in a container that may not write one.
            same = False
        if not same and pool not in self._told:
            self._told.add(pool)
            log.error("journal.another_ledger", pool=pool, mend="give all processes the same HEADRACE_DATABASE_URL")
        return same

    # --- jobs that the store does not know (any longer) ---------------------------------------------------------------

    async def record(self, job_id: str) -> Record | None:
        """The job as the ledger knows it, or None. Raises LedgerUnavailable."""
        entry = await self._ledger.get(job_id) if self._ledger else None
        return None if entry is None else _record(entry)

    async def erase(self, job_id: str) -> None:
        """The ledger has nothing of the job any longer. Raises LedgerUnavailable."""
        if self._ledger is not None:
            await self._ledger.erase(job_id)

    async def cancelled(self, job_id: str, *, known: bool) -> None:
        """Notes that the job was cancelled; ends it where the store does not know it. Raises LedgerUnavailable."""
        if self._ledger is None:
            return
        await self._ledger.ask_cancel(job_id)
        if not known:
            outcome = Outcome(State.CANCELLED, failure=Failure("cancelled", "The job was cancelled."))
            await self._ledger.end([End(job_id, State.CANCELLED, outcome.encode(), await self._queue.now_ms())])


def _record(entry: Entry) -> Record:
    accepted, end = entry.accepted, entry.end
    job = Job.decode(accepted.spec)
    return Record(
        job=job,
        state=end.status if end else State.DELAYED if job.delay_ms else State.QUEUED,
        fence=end.fence if end else 0,
        attempt=end.attempt if end else 0,
        failures=end.failures if end else 0,
        created_ms=accepted.created_ms,
        deadline_ms=accepted.deadline_ms,
        started_ms=end.started_ms if end else None,
        finished_ms=end.finished_ms if end else None,
        outcome=Outcome.decode(end.outcome) if end else None,
        result=end.result if end else None,
        position=None,
    )
