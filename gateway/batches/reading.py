"""The lines of a stored file, a few at a time, from any of them on."""

from __future__ import annotations

from collections import deque

from common.ledger.files import FileStore
from gateway.batches.lines import RawLine, Splitter
from gateway.files import pieces


class LineReader:
    """Reads on where it stopped; it holds a chunk's lines at most, and the one that is not whole yet."""

    def __init__(
        self, files: FileStore, file_id: str, *, first_byte: int = 0, first_line: int = 1, most_bytes: int | None = None
    ) -> None:
        self._pieces = pieces(files, file_id, first_byte=first_byte)
        self._splitter = Splitter(first_byte=first_byte, first_line=first_line, most_bytes=most_bytes)
        self._ready: deque[RawLine] = deque()
        self._ended = False

    async def next(self, most: int, most_bytes: int) -> list[RawLine]:
        """The next lines, as many as have so many bytes together, at least one; none at the end.

        Raises LineTooLong, LedgerUnavailable.
        """
        found: list[RawLine] = []
        size_bytes = 0
        while len(found) < most and await self._has_some():
            size_bytes += len(self._ready[0].data)
            if found and size_bytes > most_bytes:
                break
            found.append(self._ready.popleft())
        return found

    async def _has_some(self) -> bool:
        while not self._ready and not self._ended:
            piece = await anext(self._pieces, None)
            self._ended = piece is None
            self._ready.extend(self._splitter.end() if piece is None else self._splitter.feed(piece))
        return bool(self._ready)

    async def close(self) -> None:
        """Reads no further."""
        self._ended = True
        await self._pieces.aclose()
