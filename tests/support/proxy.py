"""A TCP proxy on loopback that misbehaves on demand. A fault is an object: put in `Proxy.fault`, it acts from then on.

The traffic is taken in turns: what the client sends until the server answers is one request, whatever the protocol.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 65_536


class Ending(Enum):
    """How a fault ends a connection."""

    CLOSE = "close"
    RESET = "reset"
    HALF_CLOSE = "half-close"


class Cut(Exception):
    """A fault ends the connection: `last` still goes out to the client first."""

    def __init__(self, ending: Ending = Ending.CLOSE, last: bytes = b"") -> None:
        super().__init__(ending.value)
        self.ending = ending
        self.last = last


class Fault:
    """Lets everything pass; what misbehaves derives from it. `struck` is set once it has done its harm."""

    def __init__(self) -> None:
        self.struck = asyncio.Event()

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        """What of the client's bytes goes on to the server. `begins`: they begin a request."""
        return data

    async def to_client(self, data: bytes) -> bytes:
        """What of the server's bytes goes on to the client."""
        return data


class Delay(Fault):
    """Every chunk of an answer comes later by so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def to_client(self, data: bytes) -> bytes:
        self.struck.set()
        await asyncio.sleep(self._seconds)
        return data


class CutAtByte(Fault):
    """One connection ends when so many bytes have gone to clients, counted from when the fault was put in."""

    def __init__(self, count: int, ending: Ending = Ending.CLOSE) -> None:
        super().__init__()
        self._left = count
        self._ending = ending

    async def to_client(self, data: bytes) -> bytes:
        if self.struck.is_set():
            return data
        if len(data) < self._left:
            self._left -= len(data)
            return data
        self.struck.set()
        raise Cut(self._ending, data[: self._left])


class DropReply(Fault):
    """The server gets and carries out the nth request, but its answer is lost with the connection."""

    def __init__(self, nth: int = 1, ending: Ending = Ending.CLOSE) -> None:
        super().__init__()
        self._before = nth
        self._ending = ending

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        self._before -= begins
        return data

    async def to_client(self, data: bytes) -> bytes:
        if self._before > 0 or self.struck.is_set():
            return data
        self.struck.set()
        raise Cut(self._ending)


class Blackhole(Fault):
    """Nothing comes through in either direction, and no connection ends: a cable that was pulled."""

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        self.struck.set()
        return b""

    async def to_client(self, data: bytes) -> bytes:
        return b""


class DeafClient(Fault):
    """The server's answers vanish while the client's requests arrive."""

    async def to_client(self, data: bytes) -> bytes:
        self.struck.set()
        return b""


class EndNow(Fault):
    """The next byte in either direction ends the connection, in the given way; the request does not arrive."""

    def __init__(self, ending: Ending = Ending.RESET) -> None:
        super().__init__()
        self._ending = ending

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        return await self.to_client(data)

    async def to_client(self, data: bytes) -> bytes:
        if self.struck.is_set():
            return data
        self.struck.set()
        raise Cut(self._ending)


class Strike(Fault):
    """At the nth request something is done elsewhere (a process is killed, say), before that request goes on.

    `arrives`: the request is carried out all the same, and only its answer finds nobody.
    """

    def __init__(self, nth: int, harm: Callable[[], None], *, arrives: bool) -> None:
        super().__init__()
        self._before = nth
        self._harm = harm
        self._arrives = arrives

    async def to_server(self, data: bytes, *, begins: bool) -> bytes:
        self._before -= begins
        if self._before == 0 and not self.struck.is_set():
            self.struck.set()
            self._harm()
            if not self._arrives:
                raise Cut(Ending.RESET)
        return data


class _Link:
    """One client's connection and the proxy's own to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self.client = client
        self.server = server
        self._clients_turn = True

    async def up(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK_BYTES):
            begins, self._clients_turn = self._clients_turn, False
            self.server.write(await self._proxy.fault.to_server(data, begins=begins))
            await self.server.drain()
        if self.server.can_write_eof():
            self.server.write_eof()

    async def down(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self._clients_turn = True
            self.client.write(await self._proxy.fault.to_client(data))
            await self.client.drain()

    async def end(self, cut: Cut) -> None:
        """Ends the client's side as the fault wants it, and the server's plainly."""
        if cut.last:
            self.client.write(cut.last)
            await self.client.drain()
        if cut.ending is Ending.RESET:
            linger = struct.pack("ii", 1, 0)
            self.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.client.transport.abort()
        elif cut.ending is Ending.HALF_CLOSE:
            self.client.write_eof()
            await self._proxy.closing.wait()

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """Listens on a free loopback port and passes everything on to another, as far as `fault` lets it.

    Of several ports the first at which somebody listens is taken, anew for each connection.
    """

    def __init__(self, *ports: int) -> None:
        self._server_ports = ports
        self.fault = Fault()
        self.closing = asyncio.Event()
        self.connections = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The proxy's address as a Redis URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def sever(self) -> None:
        """Closes every connection that stands now; new ones are taken."""
        for link in self._links:
            link.close()

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        if (found := await self._server()) is None:
            client.close()
            return
        server_reader, server = found
        link = _Link(self, client, server)
        self._links.add(link)
        try:
            await self._pass_on(link, client_reader, server_reader)
        finally:
            self._links.discard(link)
            link.close()

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._server_ports:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
        return None

    async def _pass_on(
        self, link: _Link, client_reader: asyncio.StreamReader, server_reader: asyncio.StreamReader
    ) -> None:
        up, down = asyncio.create_task(link.up(client_reader)), asyncio.create_task(link.down(server_reader))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            # The client may close its half and still wait for the answer; the server's end is the end.
            if up.done():
                await up
            await down
        except Cut as cut:
            await link.end(cut)
        except (ConnectionError, asyncio.IncompleteReadError):
            link.close()
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
