"""A file on its way to a client: whole, or hung up on where it is gone, can't be read, is cut, or nobody takes it."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import LedgerUnavailable
from common.ledger.files import CHUNK_BYTES, File
from gateway.downloads import PIECE_BYTES, Download
from tests.support.connection import Connection, idle_hub

DATA = bytes(range(250)) * (5 * CHUNK_BYTES // 500)
FILE = File("file-a", "t", "é 1.jsonl", "batch", len(DATA), 1_000)


class Chunks:
    """A store of this one file, of which the chunks from `lost` on are gone, or from `away` on can't be read."""

    def __init__(self, *, lost: int = 99, away: int = 99) -> None:
        self._lost = lost
        self._away = away

    async def put(self, file_id: str, number: int, data: bytes, *, now_ms: int) -> None:
        """Not asked for here."""
        raise AssertionError(file_id)

    async def chunk(self, file_id: str, number: int) -> bytes | None:
        """The chunk, while it is there."""
        if number >= self._away:
            raise LedgerUnavailable()
        if number >= self._lost:
            return None
        return DATA[number * CHUNK_BYTES :][:CHUNK_BYTES] or None


async def sent(download: Download, connection: Connection) -> None:
    """The download is over."""
    await download(connection.scope, connection.receive, connection.send)


async def test_a_file_goes_out_whole_under_its_own_headers_in_pieces_that_a_slow_client_takes_in_time() -> None:
    connection = Connection()
    await sent(Download(idle_hub(), Chunks(), FILE), connection)
    assert b"".join(connection.bodies) == DATA
    assert max(len(body) for body in connection.bodies) == PIECE_BYTES
    assert (connection.more, connection.hung_up) == (False, [])
    assert connection.headers == {
        "content-length": str(len(DATA)),
        "content-type": "application/octet-stream",
        "content-disposition": "attachment; filename*=utf-8''%C3%A9%201.jsonl",
    }


async def test_only_the_headers_go_out_where_only_they_are_asked_for() -> None:
    connection = Connection()
    connection.scope["method"] = "HEAD"
    await sent(Download(idle_hub(), Chunks(), FILE), connection)
    assert (connection.bodies, connection.headers["content-length"]) == ([b""], str(len(DATA)))


@pytest.mark.parametrize(
    ("chunks", "sent_bytes"), [(Chunks(lost=1), CHUNK_BYTES), (Chunks(away=1), CHUNK_BYTES), (Chunks(lost=0), 0)]
)
async def test_a_file_whose_rest_is_not_there_is_hung_up_on_and_no_fault_of_ours(
    chunks: Chunks, sent_bytes: int
) -> None:
    connection = Connection()
    await sent(Download(idle_hub(), chunks, FILE), connection)
    assert len(b"".join(connection.bodies)) == sent_bytes
    assert (connection.more, connection.hung_up) == (True, [True])


async def test_a_client_that_takes_nothing_of_a_file_is_hung_up() -> None:
    connection = Connection(stuck=True)
    await sent(Download(idle_hub(), Chunks(), FILE, send_timeout_s=0.02), connection)
    assert (connection.bodies, connection.hung_up) == ([], [True])


async def test_a_file_under_way_is_cut_with_the_streams_and_what_is_unsent_is_not_waited_for() -> None:
    connection, hub = Connection(stuck=True), idle_hub()
    sending = asyncio.create_task(sent(Download(hub, Chunks(), FILE), connection))
    await connection.began.wait()
    hub.cut()
    await sending
    assert (connection.more, connection.hung_up) == (True, [True])
