"""Files over SQLite and PostgreSQL: bytes in chunks, seen by their tenant alone and when whole, swept in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from common.errors import NotFound
from common.ledger.batches import Batch, BatchesLedger, new_batch_id
from common.ledger.database import Database
from common.ledger.files import CHUNK_BYTES, GRACE_MS, File, FilesLedger, new_file_id
from gateway.files import FileWriter, pieces, span
from tests.support.blank_ledger import blank_ledger
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.timeout(30)

STALE_MS = 10_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lengthy)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return blank_ledger(tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh()


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[FilesLedger]:
    """The files of this database."""
    database = Database(make_url(url))
    try:
        yield FilesLedger(database)
    finally:
        await database.close()


async def at(now_ms: int) -> int:
    """The time, as a writer asks for it."""
    return now_ms


async def stored(
    files: FilesLedger, data: bytes, *, tenant: str = "t", now_ms: int = 1_000, life_ms: int | None = None
) -> File:
    """A file of these bytes."""
    writer = FileWriter(files, tenant, lambda: at(now_ms))
    await writer.begin()
    await writer.write(data)
    await writer.end()
    expires_ms = None if life_ms is None else now_ms + life_ms
    file = File(writer.id, tenant, "a.jsonl", "batch", writer.size_bytes, now_ms, expires_ms)
    await files.finish(file)
    return file


async def swept(files: FilesLedger, now_ms: int) -> list[int]:
    """How much each sweep deleted, until there was nothing left to delete."""
    found: list[int] = []
    while number := await files.sweep(now_ms=now_ms, stale_ms=STALE_MS):
        found.append(number)
    return found


async def test_bytes_come_back_as_they_were_stored_from_any_of_them_on(ledger_url: str) -> None:
    data = bytes(range(251)) * (5 * CHUNK_BYTES // 502)
    async with opened(ledger_url) as files:
        file = await stored(files, data)
        assert file.size_bytes == len(data) > 2 * CHUNK_BYTES
        assert await files.get(file.id, "t", now_ms=2_000) == file
        assert b"".join([piece async for piece in pieces(files, file.id)]) == data
        for first in (1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, len(data)):
            assert b"".join([piece async for piece in pieces(files, file.id, first_byte=first)]) == data[first:]
            assert await span(files, file.id, first, 9) == data[first : first + 9]


async def test_a_chunk_that_is_stored_twice_is_there_once(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file_id = new_file_id()
        for _ in range(2):
            await files.begin(file_id, "t", now_ms=1)
            await files.put(file_id, 0, b"a", now_ms=1)
        for _ in range(2):
            await files.finish(File(file_id, "t", "n", "batch", 1, 1))
        assert await files.chunk(file_id, 0) == b"a" and await files.chunk(file_id, 1) is None


async def test_a_file_is_seen_by_nobody_before_it_is_whole_and_by_no_other_tenant(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        half = new_file_id()
        await files.begin(half, "t", now_ms=1)
        await files.put(half, 0, b"a", now_ms=1)
        file = await stored(files, b"x")
        assert await files.get(half, "t", now_ms=2) is None
        assert await files.get(file.id, "other", now_ms=2) is None
        assert not await files.delete(file.id, "other", now_ms=2)
        for tenant, there in (("t", [file]), ("other", [])):
            page = await files.page(tenant, most=9, now_ms=2, purpose=None, after=None, ascending=True)
            assert page == there


async def test_pages_follow_one_another_in_either_order(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        made = [await stored(files, b"x", now_ms=at_ms) for at_ms in (1, 1, 1, 2, 3)]
        expected = [file.id for file in sorted(made, key=lambda file: (file.created_ms, file.id))]
        for ascending in (True, False):
            seen: list[str] = []
            after = None
            while page := await files.page("t", most=2, now_ms=9, purpose="batch", after=after, ascending=ascending):
                seen += [file.id for file in page]
                after = page[-1]
            assert seen == (expected if ascending else expected[::-1])
        assert await files.page("t", most=9, now_ms=9, purpose="vision", after=None, ascending=True) == []


async def test_a_deleted_file_is_gone_at_once_and_its_bytes_after_a_grace(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file = await stored(files, b"x" * (40 * CHUNK_BYTES))
        kept = await stored(files, b"y")
        assert await files.delete(file.id, "t", now_ms=2)
        assert not await files.delete(file.id, "t", now_ms=2)
        assert await files.get(file.id, "t", now_ms=2) is None
        # Whoever reads it has the time to end.
        assert await swept(files, 2 + GRACE_MS) == []
        # Not all at once: what is deleted in one transaction is bounded.
        assert await swept(files, 3 + GRACE_MS) == [32, 9]
        assert await files.chunk(file.id, 0) is None and await files.chunk(kept.id, 0) == b"y"


async def test_an_expired_file_is_gone_at_once_and_its_bytes_after_a_grace(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file = await stored(files, b"x", now_ms=1_000, life_ms=500)
        assert await files.get(file.id, "t", now_ms=1_499) == file
        assert await files.get(file.id, "t", now_ms=1_500) is None
        assert await swept(files, 1_500 + GRACE_MS) == []
        assert await swept(files, 1_501 + GRACE_MS) == [2]


async def test_an_upload_that_was_left_is_swept_and_takes_no_more_bytes(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file_id = new_file_id()
        await files.begin(file_id, "t", now_ms=1_000)
        await files.put(file_id, 0, b"a", now_ms=2_000)
        assert await swept(files, 2_000 + STALE_MS) == []
        assert await swept(files, 2_001 + STALE_MS) == [2]
        with pytest.raises(NotFound):
            await files.put(file_id, 1, b"b", now_ms=3_000)
        with pytest.raises(NotFound):
            await files.finish(File(file_id, "t", "n", "batch", 2, 1))
        assert await files.chunk(file_id, 1) is None


async def test_an_upload_that_was_given_up_is_swept_at_once(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file_id = new_file_id()
        await files.begin(file_id, "t", now_ms=10 * GRACE_MS)
        await files.put(file_id, 0, b"a", now_ms=10 * GRACE_MS)
        await files.give_up(file_id)
        assert await swept(files, 10 * GRACE_MS) == [2]


async def test_what_a_batch_reads_is_kept_until_the_batch_has_ended(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        file = await stored(files, b"x", now_ms=1_000, life_ms=500)
        batches = BatchesLedger(files.database)
        batch = Batch(new_batch_id(), "t", "/v1/responses", file.id, 1_000, 90_000)
        assert await batches.create(batch)
        assert await files.delete(file.id, "t", now_ms=1_001)
        assert await swept(files, 10 * GRACE_MS) == []
        held = await batches.take("one", now_ms=2_000, lease_ms=1_000)
        assert held is not None
        await batches.write(held, {"status": "failed", "ended_ms": 3_000})
        assert await swept(files, 10 * GRACE_MS) == [2]


async def test_a_batch_of_a_file_that_is_not_there_is_not_made(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        batches = BatchesLedger(files.database)
        file = await stored(files, b"x", life_ms=500)
        gone = await stored(files, b"x")
        await files.delete(gone.id, "t", now_ms=1_001)
        for file_id, tenant, now_ms in ((file.id, "t", 1_500), (file.id, "other", 1_100), (gone.id, "t", 1_100)):
            batch = Batch(new_batch_id(), tenant, "/v1/responses", file_id, now_ms, 90_000)
            assert await batches.create(batch) is None
            assert await batches.get(batch.id, tenant) is None


async def test_an_id_that_no_database_can_hold_is_nobodys(ledger_url: str) -> None:
    async with opened(ledger_url) as files:
        assert await files.get("file-\0", "t", now_ms=1) is None
        assert not await files.delete("\0", "t", now_ms=1)
        assert await files.page("t", most=1, now_ms=1, purpose="\0", after=None, ascending=True) == []
        batches = BatchesLedger(files.database)
        assert await batches.get("\0", "t") is None
        batch = Batch(new_batch_id(), "t", "/v1/chat/completions", "file-\0", 1_000, 2_000)
        assert await batches.create(batch) is None


async def test_files_are_written_by_many_at_once(ledger_url: str) -> None:
    async with opened(ledger_url) as one, opened(ledger_url) as other:
        await stored(one, b"first")
        made = await asyncio.gather(
            *(stored(files, bytes([i]) * CHUNK_BYTES) for i in range(4) for files in (one, other))
        )
        for index, file in enumerate(made):
            assert await one.chunk(file.id, 0) == bytes([index // 2]) * CHUNK_BYTES
