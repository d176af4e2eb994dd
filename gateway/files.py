"""A file's bytes on their way into the store and out of it again, a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from common.errors import LedgerUnavailable
from common.ledger.files import CHUNK_BYTES, FilesLedger, FileStore, new_file_id

MOST_TRIES: Final = 3

Now = Callable[[], Awaitable[int]]
"""Tells the time in ms by the clock that all processes share."""


class FileWriter:
    """Takes pieces of any size and stores chunks of one. It holds no more than a chunk and a piece."""

    def __init__(self, files: FilesLedger, tenant: str, now: Now) -> None:
        self.id = new_file_id()
        self.created_ms = 0
        self.size_bytes = 0
        self._files = files
        self._tenant = tenant
        self._now = now
        self._number = 0
        self._held = bytearray()

    async def begin(self) -> None:
        """The file is known, though nobody sees it yet. Raises LedgerUnavailable."""
        self.created_ms = await self._now()
        await self._files.begin(self.id, self._tenant, now_ms=self.created_ms)

    async def write(self, data: bytes) -> None:
        """The piece is held or stored. Raises LedgerUnavailable, NotFound."""
        self.size_bytes += len(data)
        self._held += data
        while len(self._held) >= CHUNK_BYTES:
            await self._store(bytes(memoryview(self._held)[:CHUNK_BYTES]))
            del self._held[:CHUNK_BYTES]

    async def end(self) -> None:
        """All of it is stored. Raises LedgerUnavailable, NotFound."""
        if self._held:
            await self._store(bytes(self._held))
            self._held.clear()

    async def _store(self, chunk: bytes) -> None:
        now_ms = await self._now()
        for left in reversed(range(MOST_TRIES)):
            try:
                await self._files.put(self.id, self._number, chunk, now_ms=now_ms)
                break
            except LedgerUnavailable:
                # A large file is many transactions; that one of them had to wait too long shall not end it.
                if not left:
                    raise
        self._number += 1


async def pieces(files: FileStore, file_id: str, *, first_byte: int = 0) -> AsyncGenerator[bytes]:
    """The file's bytes from that one on, chunk by chunk. Raises LedgerUnavailable."""
    number, skipped = divmod(first_byte, CHUNK_BYTES)
    while (chunk := await files.chunk(file_id, number)) is not None:
        yield chunk[skipped:] if skipped else chunk
        number, skipped = number + 1, 0


async def span(files: FileStore, file_id: str, first_byte: int, size_bytes: int) -> bytes:
    """So many bytes from that one on, or what there is of them. Raises LedgerUnavailable."""
    found = bytearray()
    source = pieces(files, file_id, first_byte=first_byte)
    try:
        async for piece in source:
            found += piece[: size_bytes - len(found)]
            if len(found) >= size_bytes:
                break
    finally:
        await source.aclose()
    return bytes(found)
