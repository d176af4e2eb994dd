"""A stand-in for a model server: it answers each request with bytes that the test wrote, cut where the test wants.

Run as a program (`python -m tests.support.upstream PORT FIRST_MS EVERY_MS`) it is a fast OpenAI server for benchmarks.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson


class Hang:
    """A step of a reply: say nothing more until the client has gone."""


class Break:
    """A step of a reply: cut the connection."""


@dataclass(frozen=True)
class Drip:
    """A step of a reply: the same bytes again and again, for as long as the client listens."""

    data: bytes
    every_s: float


Step = bytes | Hang | Break | Drip
HANG = Hang()
BREAK = Break()


@dataclass
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Reply:
    """What to send: a status, and a body in steps, each written by itself."""

    steps: Sequence[Step] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    chunked: bool = True

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Status", f"content-type: {self.content_type}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.chunked:
            lines.append("transfer-encoding: chunked")
        else:
            lines.append(f"content-length: {sum(len(step) for step in self.steps if isinstance(step, bytes))}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


Answering = Callable[[Request], Reply]


class Upstream:
    """A server on a free loopback port. It counts its open connections, and tells when one has gone."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.gone = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Upstream]:
        """The server, listening; all its connections are closed on the way out."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            finally:
                tasks.discard(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.gone.clear()
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                if not await self._send(self.answer(request), reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.open -= 1
            self.gone.set()
            writer.transport.abort()

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        writer.write(reply.head())
        for step in reply.steps:
            if isinstance(step, Break):
                await writer.drain()
                return False
            if isinstance(step, Hang):
                await reader.read()  # ends when the client hangs up
                return False
            if isinstance(step, Drip):
                await _drip(step, reader, writer)
                return False
            writer.write(b"%x\r\n%s\r\n" % (len(step), step) if reply.chunked else step)
            await writer.drain()
            await asyncio.sleep(0)  # so that each step reaches the client by itself
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _drip(drip: Drip, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    gone = asyncio.ensure_future(reader.read())
    while not gone.done():
        writer.write(b"%x\r\n%s\r\n" % (len(drip.data), drip.data))
        await asyncio.wait([gone], timeout=drip.every_s)


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


@contextmanager
def in_thread(upstream: Upstream) -> Generator[Upstream]:
    """The server, listening, in a thread of its own: for tests that are no coroutines."""
    listening, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with upstream.running():
            listening.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


# --- the fast one ----------------------------------------------------------------------------------------------------

_NAMES = {"id": "chatcmpl-stand-in", "created": 1_700_000_000, "model": "stand-in"}


def _event(choices: list[Any], usage: Any = None) -> bytes:
    return b"data: " + orjson.dumps(
        {**_NAMES, "object": "chat.completion.chunk", "choices": choices, **({"usage": usage} if usage else {})}
    )


def _choice(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


_TOKEN = _event([_choice({"content": " token"}, None)])
_LAST = _event([_choice({}, "stop")])
_USAGE = _event([], {"prompt_tokens": 5, "completion_tokens": 64, "total_tokens": 69})
_WHOLE = orjson.dumps(
    {
        **_NAMES,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
)


class _Fast(asyncio.Protocol):
    """One connection: `max_tokens` tokens, the first after `first_ms`, one each `every_ms`; or one body at once."""

    open: ClassVar[int] = 0

    def __init__(self, first_ms: float, every_ms: float) -> None:
        self._first_s, self._every_s = first_ms / 1_000, every_ms / 1_000
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _Fast.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        _Fast.open -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        name = head.lower().find(b"content-length:")
        size_bytes = int(head[name + 15 :].split(b"\r\n")[0]) if name >= 0 else 0
        if len(rest) < size_bytes:
            return
        self._buffer = rest[size_bytes:]
        self._answer(head, orjson.loads(rest[:size_bytes]) if size_bytes else {})

    def _answer(self, head: bytes, body: Any) -> None:
        if not body.get("stream"):
            text = _WHOLE if b"chat/completions" in head else b'{"open":%d}' % _Fast.open
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)
            )
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._left = int(body.get("max_tokens") or 64)
        self._loop.call_later(self._first_s, self._tick)

    def _tick(self) -> None:
        if self._transport.is_closing():
            return
        if self._left:
            self._left -= 1
            self._write(_TOKEN + b"\n\n")
            self._loop.call_later(self._every_s, self._tick)
            return
        self._write(_LAST + b"\n\n" + _USAGE + b"\n\ndata: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))


async def serve_fast(port: int, *, first_ms: float = 50, every_ms: float = 10) -> None:
    """Serves for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Fast(first_ms, every_ms), "127.0.0.1", port, backlog=4096)
    sys.stdout.write(f"ready {server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve_fast(int(sys.argv[1]), first_ms=float(sys.argv[2]), every_ms=float(sys.argv[3])))
