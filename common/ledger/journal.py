"""The journal: which jobs were accepted, which of them are open, how the others ended. An end is written once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, case, delete, exists, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.contracts import State
from common.ledger.database import Database
from common.ledger.rows import Accepted, End, Entry
from common.ledger.tables import BATCH_LINES, JOBS, LISTED, OPEN_LINE

REQUEST_LIMIT_S: Final = 1.5
ROUND_LIMIT_S: Final = 10.0

_ACCEPTED_NAMES: Final = (
    *("id", "pool", "tenant", "spec", "idempotency", "fingerprint", "created_ms", "deadline_ms", "batch"),
)
_END_NAMES: Final = ("status", "outcome", "result", "fence", "attempt", "failures", "started_ms", "finished_ms")
_HEAD: Final = [JOBS.c[name] for name in _ACCEPTED_NAMES]
_OPEN: Final = JOBS.c.status.is_(None)
_KEYED: Final = JOBS.c.idempotency != ""


class JournalLedger:
    """Journaled jobs in SQL. Every method may raise LedgerUnavailable, and is safe to call again."""

    def __init__(self, database: Database) -> None:
        self.database = database
        dialect = sqlite if database.is_sqlite else postgresql
        self._accept = dialect.insert(JOBS).on_conflict_do_nothing(index_elements=["id"])
        ending = dialect.insert(JOBS)
        self._end = ending.on_conflict_do_update(
            index_elements=["id"], set_={name: ending.excluded[name] for name in _END_NAMES}, where=_OPEN
        )

    # --- the gateway's side -------------------------------------------------------------------------------------------

    async def write(self, accepted: Sequence[Accepted], withdrawn: Sequence[str]) -> None:
        """Adds these jobs and takes back those that are still open, in one transaction."""

        async def work(connection: AsyncConnection) -> None:
            if accepted:
                await connection.execute(self._accept, [_head(one) for one in accepted])
            if withdrawn:
                await connection.execute(delete(JOBS).where(JOBS.c.id.in_(withdrawn), _OPEN))

        await self.database.run(work, limit_s=REQUEST_LIMIT_S, write=True)

    async def ask_cancel(self, job_id: str) -> None:
        """Notes that the job is to be cancelled, for a store that may forget it."""
        asked = update(JOBS).where(JOBS.c.id == job_id, _OPEN).values(cancel_asked=True)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(asked)

        await self.database.run(work, limit_s=REQUEST_LIMIT_S, write=True)

    async def erase(self, job_id: str) -> None:
        """Deletes the job, ended or not."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(JOBS).where(JOBS.c.id == job_id))

        await self.database.run(work, limit_s=REQUEST_LIMIT_S, write=True)

    async def get(self, job_id: str) -> Entry | None:
        """The job, or None where the ledger does not have it (or no longer)."""

        found = await self._entries(select(JOBS).where(JOBS.c.id == job_id), REQUEST_LIMIT_S)
        return found[0] if found else None

    async def by_key(self, tenant: str, idempotency: str) -> Entry | None:
        """The tenant's newest job that came with this idempotency key, or None."""
        keyed = select(JOBS).where(JOBS.c.tenant == tenant, JOBS.c.idempotency == idempotency, _KEYED)
        found = await self._entries(keyed.order_by(JOBS.c.created_ms.desc()).limit(1), REQUEST_LIMIT_S)
        return found[0] if found else None

    async def of_tenant(self, tenant: str, *, most: int, below: tuple[int, str] | None = None) -> list[tuple[int, str]]:
        """(when accepted in µs, id) of the tenant's jobs, newest first, those that come after `below` in this order.

        Lines of batches are left out.
        """
        newest = select(JOBS.c.created_ms, JOBS.c.id).where(JOBS.c.tenant == tenant, LISTED)
        if below is not None:
            below_ms, rest_us = divmod(below[0], 1000)
            start = (below_ms + 1, "") if rest_us else (below_ms, below[1])
            newest = newest.where(tuple_(JOBS.c.created_ms, JOBS.c.id) < start)
        newest = newest.order_by(JOBS.c.created_ms.desc(), JOBS.c.id.desc()).limit(most)

        async def work(connection: AsyncConnection) -> list[tuple[int, str]]:
            return [(row.created_ms * 1000, row.id) for row in await connection.execute(newest)]

        return await self.database.run(work, limit_s=REQUEST_LIMIT_S, write=False)

    async def _entries(self, query: Select[Any], limit_s: float) -> list[Entry]:
        async def work(connection: AsyncConnection) -> Sequence[RowMapping]:
            return (await connection.execute(query)).mappings().all()

        return [_entry(row) for row in await self.database.run(work, limit_s=limit_s, write=False)]

    # --- the scheduler's side -----------------------------------------------------------------------------------------

    async def end(self, ends: Iterable[End]) -> dict[str, int]:
        """Writes these ends; the fence of the end that stands, for each of these jobs. The first one stands.

        An end without its job is written only where the job is known.
        """
        # In one order everywhere, so that two schedulers never wait for one another in a circle.
        ordered = sorted(ends, key=lambda end: end.id)
        known = [_ended(end) | _head(end.accepted) for end in ordered if end.accepted is not None]
        bare = [end for end in ordered if end.accepted is None]

        async def work(connection: AsyncConnection) -> dict[str, int]:
            if known:
                await connection.execute(self._end, known)
            for end in bare:
                await connection.execute(update(JOBS).where(JOBS.c.id == end.id, _OPEN).values(**_ended(end)))
            standing = select(JOBS.c.id, JOBS.c.fence).where(JOBS.c.id.in_([end.id for end in ordered]))
            return {row.id: row.fence for row in await connection.execute(standing)}

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    async def open_ids(self, pool: str, *, after: str, created_by_ms: int, most: int) -> list[str]:
        """Ids of the pool's open jobs that follow `after`, in order; of those created by then."""
        some = select(JOBS.c.id).where(
            JOBS.c.pool == pool, JOBS.c.id > after, _OPEN, JOBS.c.created_ms <= created_by_ms
        )
        return await self._ids(some.order_by(JOBS.c.id).limit(most))

    async def ended_among(self, job_ids: Sequence[str]) -> set[str]:
        """Those of these jobs that have ended."""
        return set(await self._ids(select(JOBS.c.id).where(JOBS.c.id.in_(job_ids), JOBS.c.status.is_not(None))))

    async def _ids(self, query: Select[tuple[str]]) -> list[str]:
        async def work(connection: AsyncConnection) -> list[str]:
            return [row.id for row in await connection.execute(query)]

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=False)

    async def open_among(self, job_ids: Sequence[str], *, most_bytes: int) -> list[Entry]:
        """The first of these jobs that are open, as many as have specs of so many bytes together, at least one."""
        so_far = func.sum(func.length(JOBS.c.spec)).over(order_by=JOBS.c.id)
        sized = select(JOBS.c.id, so_far.label("so_far"), func.row_number().over(order_by=JOBS.c.id).label("number"))
        sized = sized.where(JOBS.c.id.in_(job_ids), _OPEN).subquery()
        fitting = select(sized.c.id).where((sized.c.so_far <= most_bytes) | (sized.c.number == 1))
        some = select(*_HEAD, JOBS.c.cancel_asked, JOBS.c.status).where(JOBS.c.id.in_(fitting)).order_by(JOBS.c.id)
        return await self._entries(some, ROUND_LIMIT_S)

    async def forget(self, *, ended_before_ms: int, keyed_before_ms: int, most: int) -> int:
        """The number of jobs deleted that ended before then, the oldest first; those with a key have their own time.

        A line of a batch stays until its batch has taken its end.
        """
        too_old = case((_KEYED, keyed_before_ms), else_=ended_before_ms)
        latest_ms = max(ended_before_ms, keyed_before_ms)
        oldest = select(JOBS.c.id).where(JOBS.c.status.is_not(None), JOBS.c.finished_ms < latest_ms)
        oldest = oldest.where(~exists().where(BATCH_LINES.c.job_id == JOBS.c.id, OPEN_LINE))
        oldest = oldest.where(JOBS.c.finished_ms < too_old).order_by(JOBS.c.finished_ms).limit(most)

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(delete(JOBS).where(JOBS.c.id.in_(oldest)))).rowcount

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    async def counts(self) -> dict[str, int]:
        """How many jobs are open and how many of each end are kept."""
        name: ColumnElement[str] = case((_OPEN, "open"), else_=JOBS.c.status)
        counted = select(name.label("name"), func.count().label("number")).group_by(name)

        async def work(connection: AsyncConnection) -> dict[str, int]:
            return {row.name: row.number for row in await connection.execute(counted)}

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=False)


# --- rows and values --------------------------------------------------------------------------------------------------


def _head(accepted: Accepted) -> dict[str, Any]:
    return {name: getattr(accepted, name) for name in _ACCEPTED_NAMES}


def _ended(end: End) -> dict[str, Any]:
    return {name: getattr(end, name) for name in _END_NAMES} | {"status": end.status.value}


def _entry(row: RowMapping) -> Entry:
    accepted = Accepted(**{name: row[name] for name in _ACCEPTED_NAMES})
    end = None
    if row["status"] is not None:
        told: dict[str, Any] = {name: row[name] for name in _END_NAMES if name in row}
        told["status"] = State(row["status"])
        end = End(id=accepted.id, accepted=accepted, **told)
    return Entry(accepted, bool(row["cancel_asked"]), end)
