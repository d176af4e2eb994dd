"""Rows of requests on their way into the ledger: together in one transaction, taken back where nobody was told yes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from common.clock import SystemClock
from common.errors import LedgerUnavailable
from common.ledger.database import Database
from common.ledger.journal import JournalLedger
from common.ledger.rows import Accepted
from gateway.journal import MOST_ROWS, Writer
from tests.support.blank_ledger import blank_ledger
from tests.support.runner import until
from tests.support.seeds import job_id

pytestmark = pytest.mark.timeout(20)


class WatchedLedger(JournalLedger):
    """A ledger that tells how many rows each transaction had, and can be made to wait before it begins."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.transactions: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, accepted: Sequence[Accepted], withdrawn: Sequence[str]) -> None:
        """As ever."""
        self.transactions.append(len(accepted))
        await self.open.wait()
        await super().write(accepted, withdrawn)

    async def numbers(self) -> list[int]:
        """The numbers of the jobs that it has."""
        ids = await self.open_ids("default", after="", created_by_ms=10, most=10_000)
        return [int(one.rpartition("_")[2], 16) for one in ids]


@asynccontextmanager
async def desk(place: Path) -> AsyncGenerator[tuple[WatchedLedger, Writer]]:
    """A ledger, and a gateway's writer of it."""
    ledger = WatchedLedger(Database(make_url(blank_ledger(place))))
    writer = Writer(ledger, SystemClock())
    try:
        await ledger.database.identity()
        yield ledger, writer
    finally:
        await writer.close()
        await ledger.database.close()


def row(number: int, spec: bytes = b"{}") -> Accepted:
    """Job `number`."""
    return Accepted(job_id(number), "default", "t", spec, 1, 2)


async def test_rows_that_come_while_one_is_written_go_together(tmp_path: Path) -> None:
    async with desk(tmp_path) as (ledger, writer):
        await asyncio.gather(*(writer.add(row(number)) for number in range(20)))
        ledger.open.clear()
        first = asyncio.create_task(writer.add(row(100)))
        await until(lambda: _is(len(ledger.transactions) == 2))
        rest = [asyncio.create_task(writer.add(row(101 + number))) for number in range(MOST_ROWS + 10)]
        await asyncio.sleep(0)
        ledger.open.set()
        await asyncio.gather(first, *rest)
        assert ledger.transactions == [20, 1, MOST_ROWS, 10]
        assert len(await ledger.numbers()) == 20 + 1 + MOST_ROWS + 10


async def _is(fact: bool) -> bool:
    return fact


async def test_large_rows_are_written_a_few_at_a_time(tmp_path: Path) -> None:
    async with desk(tmp_path) as (ledger, writer):
        await asyncio.gather(*(writer.add(row(number, b"x" * 5_000_000)) for number in range(7)))
        assert ledger.transactions == [3, 3, 1]


async def test_a_caller_that_gave_up_before_its_row_was_written_leaves_none(tmp_path: Path) -> None:
    async with desk(tmp_path) as (ledger, writer):
        ledger.open.clear()
        first = asyncio.create_task(writer.add(row(1)))
        await until(lambda: _is(ledger.transactions == [1]))
        gone = asyncio.create_task(writer.add(row(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        ledger.open.set()
        await first
        assert await ledger.numbers() == [1] and writer.owed == 0


async def test_the_row_of_a_caller_that_gave_up_too_late_is_taken_back(tmp_path: Path) -> None:
    async with desk(tmp_path) as (ledger, writer):
        ledger.open.clear()
        gone = asyncio.create_task(writer.add(row(1)))
        await until(lambda: _is(ledger.transactions == [1]))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert writer.owed == 1
        ledger.open.set()
        await until(lambda: _is(writer.owed == 0))
        assert await ledger.numbers() == []


@pytest.mark.lengthy
async def test_while_the_ledger_is_away_callers_are_refused_and_later_nothing_of_theirs_is_there(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as (ledger, writer):
        await writer.add(row(1))
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = await asyncio.gather(writer.add(row(2)), writer.add(row(3)), return_exceptions=True)
            assert [type(one) for one in told] == [LedgerUnavailable] * 2
            assert writer.owed == 2
            other.execute("ROLLBACK")
        await until(lambda: _is(writer.owed == 0))
        await writer.add(row(4))
        assert await ledger.numbers() == [1, 4]


async def test_a_gateway_that_stops_takes_back_what_it_owes(tmp_path: Path) -> None:
    async with desk(tmp_path) as (ledger, writer):
        await writer.add(row(1))
        writer.take_back(job_id(1))
        await writer.close()
        assert writer.owed == 0 and await ledger.numbers() == []
