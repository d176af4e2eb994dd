"""The lines of batches in SQL: begun, found again with their jobs' ends, ended once, read in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.contracts import State
from common.ledger.batches import ROUND_LIMIT_S, Batch, held_in
from common.ledger.database import Database
from common.ledger.tables import BATCH_LINES, JOBS, OPEN_LINE

OPEN: Final = "open"
GOOD: Final = "good"
BAD: Final = "bad"
UNDONE: Final = "undone"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was begun. `custom_id` is JSON; `first_byte`, `size_bytes`: where in the input it stands.

    `record`: its line in the output or error file, once it has ended.
    """

    number: int
    custom_id: bytes
    first_byte: int
    size_bytes: int
    job_id: str = ""
    state: str = OPEN
    record: bytes | None = None


@dataclass(frozen=True, slots=True)
class LineEnd:
    """How a line ends."""

    number: int
    state: str
    record: bytes


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of an open line's job, by the ledger; `spec`, `outcome` and `result` as the queue wrote them."""

    line: Line
    spec: bytes
    status: State
    outcome: bytes
    result: bytes
    created_ms: int


_LINE: Final = [BATCH_LINES.c[name] for name in Line.__slots__]


class LinesLedger:
    """The lines of batches. Every method may raise LedgerUnavailable, those that write Fenced; all are safe to repeat.

    `values` of the writes are the batch's own, as they are afterwards: counts are never added to what is there.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = sqlite if database.is_sqlite else postgresql
        self._add = dialect.insert(BATCH_LINES).on_conflict_do_nothing()

    async def begin(self, held: Batch, lines: Sequence[Line], values: dict[str, Any]) -> Batch:
        """The batch, once these lines are its own. Raises Fenced."""
        rows = [{"batch_id": held.id, **{name: getattr(line, name) for name in Line.__slots__}} for line in lines]

        async def work(connection: AsyncConnection) -> Batch:
            batch = await held_in(connection, held, values)
            if rows:
                await connection.execute(self._add, rows)
            return batch

        return await self._database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    async def end(self, held: Batch, ends: Sequence[LineEnd], values: dict[str, Any]) -> Batch:
        """The batch, once these of its open lines have ended so. Raises Fenced."""
        ending = update(BATCH_LINES).where(BATCH_LINES.c.batch_id == held.id, BATCH_LINES.c.state == OPEN)
        ending = ending.where(BATCH_LINES.c.number == bindparam("its_number"))
        ending = ending.values(state=bindparam("its_state"), record=bindparam("its_record"))
        rows = [{"its_number": end.number, "its_state": end.state, "its_record": end.record} for end in ends]

        async def work(connection: AsyncConnection) -> Batch:
            batch = await held_in(connection, held, values)
            if rows:
                await connection.execute(ending, rows)
            return batch

        return await self._database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    async def rename(self, held: Batch, number: int, job_id: str) -> None:
        """The open line has another job from now on. Raises Fenced."""
        mine = (BATCH_LINES.c.batch_id == held.id) & (BATCH_LINES.c.number == number) & (BATCH_LINES.c.state == OPEN)

        async def work(connection: AsyncConnection) -> None:
            await held_in(connection, held, {})
            await connection.execute(update(BATCH_LINES).where(mine).values(job_id=job_id))

        await self._database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    async def ask_cancel(self, held: Batch) -> None:
        """The journal has it that the jobs of the open lines are to end. Raises Fenced."""
        theirs = select(BATCH_LINES.c.job_id).where(_open(held.id))
        asked = update(JOBS).where(JOBS.c.id.in_(theirs), JOBS.c.status.is_(None)).values(cancel_asked=True)

        async def work(connection: AsyncConnection) -> None:
            await held_in(connection, held, {})
            await connection.execute(asked)

        await self._database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    # --- what is open -------------------------------------------------------------------------------------------------

    async def load(self, batch_id: str) -> tuple[int, int]:
        """How many lines are open, and their bytes in the input."""
        some = select(func.count(), func.coalesce(func.sum(BATCH_LINES.c.size_bytes), 0)).where(_open(batch_id))
        rows = await self._rows(some)
        return int(rows[0][0]), int(rows[0][1])

    async def open(self, batch_id: str, *, after: int = 0, most: int) -> list[Line]:
        """Open lines with a job, those that follow number `after`."""
        some = select(*_LINE).where(_open(batch_id), BATCH_LINES.c.number > after)
        return _lines(await self._rows(some.order_by(BATCH_LINES.c.number).limit(most)))

    async def unjournaled(self, batch_id: str, *, after: int = 0, most: int) -> list[Line]:
        """Open lines of whose job the journal has nothing, those that follow number `after`."""
        journaled = exists().where(JOBS.c.id == BATCH_LINES.c.job_id)
        some = select(*_LINE).where(_open(batch_id), ~journaled, BATCH_LINES.c.number > after)
        return _lines(await self._rows(some.order_by(BATCH_LINES.c.number).limit(most)))

    async def ended(self, batch_id: str, *, most: int, most_bytes: int) -> list[JobEnd]:
        """Open lines whose jobs have ended by the journal, of so many bytes together, at least one."""
        size = func.coalesce(func.length(JOBS.c.result), 0) + func.length(JOBS.c.spec)
        over = JOBS.c.id == BATCH_LINES.c.job_id
        sized = select(BATCH_LINES.c.number, size.label("size")).join(JOBS, over)
        numbers = _fitting(sized.where(_open(batch_id), JOBS.c.status.is_not(None)), most, most_bytes)
        told = [JOBS.c[name] for name in ("spec", "status", "outcome", "result", "created_ms")]
        rows = await self._rows(
            select(*_LINE, *told).join(JOBS, over).where(_open(batch_id), BATCH_LINES.c.number.in_(numbers))
        )
        return [_job_end(row) for row in rows]

    # --- what has ended -----------------------------------------------------------------------------------------------

    async def records(
        self, batch_id: str, states: Sequence[str], *, after: int, most: int, most_bytes: int
    ) -> list[tuple[int, bytes]]:
        """(number, record) of lines that ended so, in order from the one after `after`: as many bytes, at least one."""
        some = (BATCH_LINES.c.batch_id == batch_id) & BATCH_LINES.c.state.in_(states) & (BATCH_LINES.c.number > after)
        size = func.coalesce(func.length(BATCH_LINES.c.record), 0)
        numbers = _fitting(select(BATCH_LINES.c.number, size.label("size")).where(some), most, most_bytes)
        wanted = select(BATCH_LINES.c.number, BATCH_LINES.c.record)
        wanted = wanted.where(BATCH_LINES.c.batch_id == batch_id, BATCH_LINES.c.number.in_(numbers))
        rows = await self._rows(wanted.order_by(BATCH_LINES.c.number))
        return [(row[0], row[1] or b"") for row in rows]

    async def _rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
        async def work(connection: AsyncConnection) -> Sequence[Row[*tuple[Any, ...]]]:
            return (await connection.execute(query)).all()

        return await self._database.run(work, limit_s=ROUND_LIMIT_S, write=False)


def _fitting(sized: Select[*tuple[Any, ...]], most: int, most_bytes: int) -> Select[*tuple[Any, ...]]:
    """The numbers of the first of these rows, as many as have so many bytes together, at least one."""
    first = sized.order_by(BATCH_LINES.c.number).limit(most).subquery()
    so_far = func.sum(first.c.size).over(order_by=first.c.number).label("so_far")
    rank = func.row_number().over(order_by=first.c.number).label("rank")
    summed = select(first.c.number, so_far, rank).subquery()
    return select(summed.c.number).where((summed.c.so_far <= most_bytes) | (summed.c.rank == 1))


def _open(batch_id: str) -> ColumnElement[bool]:
    return and_(BATCH_LINES.c.batch_id == batch_id, OPEN_LINE)


def _lines(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Line]:
    return [Line(*row) for row in rows]


def _job_end(row: Row[*tuple[Any, ...]]) -> JobEnd:
    size = len(_LINE)
    spec, status, outcome, result, created_ms = row[size:]
    return JobEnd(Line(*row[:size]), spec, State(status), outcome or b"", result or b"", created_ms)
