"""Files in SQL: their rows, and their bytes in chunks, so that every gateway has them and none holds one in memory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, RowMapping, delete, exists, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.errors import NotFound
from common.ledger.database import Database
from common.ledger.tables import BATCHES, FILE_CHUNKS, FILES

CHUNK_BYTES: Final = 512 * 1024
"""Every chunk of a file but its last is so long; files that are stored keep it, so it never changes."""

LIMIT_S: Final = 1.5
CHUNK_LIMIT_S: Final = 10.0
SWEEP_LIMIT_S: Final = 10.0
SWEPT_AT_ONCE: Final = 32
# Whoever began to read it, or to make a batch of it, just before it was gone, is done with that by then.
GRACE_MS: Final = 60_000

UPLOADING: Final = "uploading"
READY: Final = "ready"
DELETED: Final = "deleted"


@dataclass(frozen=True, slots=True)
class File:
    """A file that is there; `expires_ms` is None for one that is kept until it is deleted."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size_bytes: int
    created_ms: int
    expires_ms: int | None = None


class FileStore(Protocol):
    """Where the bytes of files are, chunk by chunk from number 0. Both may raise LedgerUnavailable."""

    async def put(self, file_id: str, number: int, data: bytes, *, now_ms: int) -> None:
        """The chunk is stored; the same again changes nothing. Raises NotFound where the file was given up."""
        ...

    async def chunk(self, file_id: str, number: int) -> bytes | None:
        """The chunk, or None where there is none of that number."""
        ...


def new_file_id() -> str:
    """A fresh id of 128 random bits."""
    return f"file-{secrets.token_hex(16)}"


class FilesLedger:
    """Files by id and by tenant. Every method may raise LedgerUnavailable, and is safe to call again."""

    def __init__(self, database: Database) -> None:
        self.database = database
        dialect = sqlite if database.is_sqlite else postgresql
        self._put = dialect.insert(FILE_CHUNKS).on_conflict_do_nothing()
        self._begin = dialect.insert(FILES).on_conflict_do_nothing()

    # --- bytes in and out ---------------------------------------------------------------------------------------------

    async def begin(self, file_id: str, tenant: str, *, now_ms: int) -> None:
        """A file of no bytes yet, which nobody sees before `finish`."""
        row = {"id": file_id, "tenant": tenant, "state": UPLOADING, "created_ms": now_ms, "touched_ms": now_ms}

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._begin, row)

        await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def put(self, file_id: str, number: int, data: bytes, *, now_ms: int) -> None:
        """The chunk is stored. Raises NotFound where the file was swept, because nothing of it came for long."""
        touched = update(FILES).where(FILES.c.id == file_id, FILES.c.state == UPLOADING).values(touched_ms=now_ms)

        async def work(connection: AsyncConnection) -> None:
            if (await connection.execute(touched)).rowcount != 1:
                raise NotFound("The upload took too long and was given up.")
            await connection.execute(self._put, {"file_id": file_id, "number": number, "data": data})

        await self.database.run(work, limit_s=CHUNK_LIMIT_S, write=True)

    async def give_up(self, file_id: str) -> None:
        """The upload is over without its end: its bytes are swept, and at once, as nobody has ever read them."""
        gone = update(FILES).where(FILES.c.id == file_id, FILES.c.state == UPLOADING)
        gone = gone.values(state=DELETED, touched_ms=0)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(gone)

        await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def finish(self, file: File) -> None:
        """The file is there for its tenant. Raises NotFound where it was swept."""

        async def work(connection: AsyncConnection) -> None:
            await finish_in(connection, file)

        await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def chunk(self, file_id: str, number: int) -> bytes | None:
        """The chunk, or None where there is none of that number."""
        wanted = select(FILE_CHUNKS.c.data).where(FILE_CHUNKS.c.file_id == file_id, FILE_CHUNKS.c.number == number)

        async def work(connection: AsyncConnection) -> bytes | None:
            return (await connection.execute(wanted)).scalar_one_or_none()

        return await self.database.run(work, limit_s=CHUNK_LIMIT_S, write=False)

    # --- rows ---------------------------------------------------------------------------------------------------------

    async def get(self, file_id: str, tenant: str, *, now_ms: int) -> File | None:
        """The tenant's file, or None where there is none by that id (or no longer)."""
        found = await self._files(select(FILES).where(FILES.c.id == file_id, FILES.c.tenant == tenant, _there(now_ms)))
        return found[0] if found else None

    async def page(
        self, tenant: str, *, most: int, now_ms: int, purpose: str | None, after: File | None, ascending: bool
    ) -> list[File]:
        """The tenant's files in the order of their making, those that come after `after`."""
        some = select(FILES).where(FILES.c.tenant == tenant, _there(now_ms))
        if purpose is not None:
            some = some.where(FILES.c.purpose == purpose)
        place = tuple_(FILES.c.created_ms, FILES.c.id)
        if after is not None:
            start = tuple_(after.created_ms, after.id)
            some = some.where(place > start if ascending else place < start)
        order = (FILES.c.created_ms, FILES.c.id)
        return await self._files(some.order_by(*(order if ascending else [one.desc() for one in order])).limit(most))

    async def delete(self, file_id: str, tenant: str, *, now_ms: int) -> bool:
        """Whether there was such a file; its bytes are swept later."""
        gone = update(FILES).where(FILES.c.id == file_id, FILES.c.tenant == tenant, _there(now_ms))
        gone = gone.values(state=DELETED, touched_ms=now_ms)

        async def work(connection: AsyncConnection) -> bool:
            return (await connection.execute(gone)).rowcount == 1

        return await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def _files(self, query: Any) -> list[File]:
        async def work(connection: AsyncConnection) -> list[File]:
            return [_file(row) for row in (await connection.execute(query)).mappings()]

        return await self.database.run(work, limit_s=LIMIT_S, write=False)

    # --- what need not be kept any longer -----------------------------------------------------------------------------

    async def sweep(self, *, now_ms: int, stale_ms: int) -> int:
        """How many chunks and rows were deleted of one file that nobody needs; 0 where there is none.

        Nobody needs what was deleted or has expired `GRACE_MS` ago, but as the input of a batch that has not ended; and
        an upload that nothing was added to for `stale_ms`.
        """
        used = exists().where(BATCHES.c.input_file_id == FILES.c.id, BATCHES.c.ended_ms.is_(None))
        stale = (FILES.c.state == UPLOADING) & (FILES.c.touched_ms < now_ms - stale_ms)
        deleted = (FILES.c.state == DELETED) & (FILES.c.touched_ms < now_ms - GRACE_MS)
        over = or_(deleted, stale, FILES.c.expires_ms < now_ms - GRACE_MS)
        doomed = select(FILES.c.id).where(over, ~used).limit(1)

        async def work(connection: AsyncConnection) -> int:
            file_id = (await connection.execute(doomed)).scalar_one_or_none()
            return 0 if file_id is None else await _sweep(connection, file_id)

        return await self.database.run(work, limit_s=SWEEP_LIMIT_S, write=True)


async def finish_in(connection: AsyncConnection, file: File) -> None:
    """The same as `FilesLedger.finish`, as a part of a larger transaction."""
    values = {name: getattr(file, name) for name in ("filename", "purpose", "size_bytes", "created_ms", "expires_ms")}
    # A second time it is ready already.
    mine = update(FILES).where(FILES.c.id == file.id, FILES.c.state.in_((UPLOADING, READY)))
    if (await connection.execute(mine.values(state=READY, **values))).rowcount != 1:
        raise NotFound("The upload took too long and was given up.")


async def lock_input(connection: AsyncConnection, file_id: str, tenant: str, now_ms: int) -> File | None:
    """The file, which nobody deletes before this transaction ends; None where it is not there."""
    wanted = select(FILES).where(FILES.c.id == file_id, FILES.c.tenant == tenant, _there(now_ms)).with_for_update()
    row = (await connection.execute(wanted)).mappings().one_or_none()
    return None if row is None else _file(row)


async def _sweep(connection: AsyncConnection, file_id: str) -> int:
    some = select(FILE_CHUNKS.c.number).where(FILE_CHUNKS.c.file_id == file_id).limit(SWEPT_AT_ONCE)
    gone = delete(FILE_CHUNKS).where(FILE_CHUNKS.c.file_id == file_id, FILE_CHUNKS.c.number.in_(some))
    number = (await connection.execute(gone)).rowcount
    if number < SWEPT_AT_ONCE:
        number += (await connection.execute(delete(FILES).where(FILES.c.id == file_id))).rowcount
    return number


def _there(now_ms: int) -> ColumnElement[bool]:
    return (FILES.c.state == READY) & or_(FILES.c.expires_ms.is_(None), FILES.c.expires_ms > now_ms)


def _file(row: RowMapping) -> File:
    return File(**{name: row[name] for name in File.__slots__})
