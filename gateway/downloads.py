"""A stored file as an answer: sent as it is read, a piece at a time, and never torn without the client's knowing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar, Final
from urllib.parse import quote

import structlog

from common.errors import HeadraceError
from common.ledger.files import File, FileStore
from gateway.files import pieces
from gateway.hub import Hub
from gateway.sending import BrokenOff, Sending

log = structlog.get_logger(__name__)

# A client is cut that does not take one of these in time, and what the server has buffered: small pieces and much time,
# so that one who works on the lines as they come is not taken for one that is gone.
PIECE_BYTES: Final = 64 * 1024
SEND_TIMEOUT_S: Final = 300


class Download(Sending):
    """A file's bytes, with the headers of a file."""

    # It can't be gone on with elsewhere, so a part of it is worth nothing.
    drops_unsent: ClassVar[bool] = True

    def __init__(self, hub: Hub, files: FileStore, file: File, *, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        body = _bytes(files, file)
        super().__init__(hub, body, {}, media_type="application/octet-stream", send_timeout_s=send_timeout_s)
        # In place of those of an event stream.
        self.init_headers(
            {
                "content-length": str(file.size_bytes),
                "content-disposition": f"attachment; filename*=utf-8''{quote(file.filename)}",
            }
        )


async def _bytes(files: FileStore, file: File) -> AsyncGenerator[bytes, None]:
    """The file's bytes, in pieces. Raises BrokenOff where they are not there any more, or can't be read now."""
    left_bytes = file.size_bytes
    try:
        async with aclosing(pieces(files, file.id)) as chunks:
            async for chunk in chunks:
                left_bytes -= len(chunk)
                for first in range(0, len(chunk), PIECE_BYTES):
                    yield chunk[first : first + PIECE_BYTES]
    except HeadraceError as error:
        log.warning("file.broke_off", file=file.id, code=error.failure.code)
        raise BrokenOff() from error
    if left_bytes:
        # It was deleted, or its time was over, while a slow client was at it.
        log.warning("file.broke_off", file=file.id, left_bytes=left_bytes)
        raise BrokenOff()
