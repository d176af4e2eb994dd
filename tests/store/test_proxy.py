"""The fault proxy does what its faults say, so that the tests which lean on it mean something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import Blackhole, CutAtByte, DeafClient, Delay, DropReply, Ending, EndNow, Proxy
from tests.support.runner import until

LIMIT_S = 5


@asynccontextmanager
async def echo_server(heard: list[bytes]) -> AsyncGenerator[int]:
    """The port of a server that answers every line with the line, and notes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield reader, writer
    finally:
        writer.close()


async def test_without_a_fault_everything_passes_both_ways_in_order() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        for number in range(50):
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
        writer.write(b"x" * 60_000 + b"\n")
        assert len(await reader.readuntil(b"\n")) == 60_001
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_dropped_reply_was_carried_out_and_its_connection_is_gone() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        proxy.fault = DropReply(2)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        writer.write(b"two\n")
        assert await reader.read() == b""
        assert heard == [b"one\n", b"two\n"]
        assert proxy.fault.struck.is_set()
        async with client(proxy) as (again, writer_again):
            writer_again.write(b"three\n")
            assert await again.readline() == b"three\n"


async def test_a_cut_at_a_byte_lets_exactly_so_many_through() -> None:
    async with echo_server([]) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        proxy.fault = CutAtByte(7)
        writer.write(b"four\n")
        assert await reader.readline() == b"four\n"
        writer.write(b"five\n")
        assert await reader.read() == b"fi"


async def test_a_reset_is_an_error_and_the_request_never_arrives() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        proxy.fault = EndNow(Ending.RESET)
        writer.write(b"one\n")
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        assert heard == []


async def test_a_half_closed_connection_ends_the_answers_and_still_takes_requests() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        proxy.fault = CutAtByte(4, Ending.HALF_CLOSE)
        writer.write(b"one\n")
        assert await reader.read() == b"one\n"
        writer.write(b"two\n")

        async def both() -> bool:
            return heard == [b"one\n", b"two\n"]

        await until(both)


async def test_a_blackhole_answers_nothing_and_ends_nothing() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        hole = proxy.fault = Blackhole()
        writer.write(b"one\n")
        await hole.struck.wait()
        assert (heard, reader.at_eof()) == ([], False)


async def test_answers_to_a_deaf_client_vanish_though_its_requests_arrive() -> None:
    heard: list[bytes] = []
    async with echo_server(heard) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        deaf = proxy.fault = DeafClient()
        writer.write(b"one\n")
        await deaf.struck.wait()
        assert (heard, reader.at_eof()) == ([b"one\n"], False)


async def test_a_delay_keeps_the_order_and_loses_nothing() -> None:
    async with echo_server([]) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        proxy.fault = Delay(0.01)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        writer.write(b"two\n")
        assert await reader.readline() == b"two\n"


async def test_severing_closes_what_stands_and_takes_what_comes() -> None:
    async with echo_server([]) as port, Proxy(port) as proxy, client(proxy) as (reader, writer):
        writer.write(b"one\n")
        await reader.readline()
        proxy.sever()
        assert await reader.read() == b""
        async with client(proxy) as (again, writer_again):
            writer_again.write(b"two\n")
            assert await again.readline() == b"two\n"


async def test_a_server_that_is_not_there_closes_the_client_at_once() -> None:
    async with echo_server([]) as port:
        pass
    async with Proxy(port) as proxy, client(proxy) as (reader, _):
        assert await reader.read() == b""
