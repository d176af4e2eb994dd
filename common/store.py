"""The one way to Redis: scripts by name, everything of one moment in one pipeline, no wait without a limit.

Calls gather while a pipeline is on its way and go together as the next one, so that a busy process makes few, large
writes and an idle one writes at once. All calls of one Store therefore happen in the order they were made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha1
from importlib import resources
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.asyncio.retry import Retry
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError as RedisTimeoutError,
)

from common.errors import HeadraceError, InternalError, StoreFull, StoreUnavailable

Argument = str | bytes | int | float

REPLY_TIMEOUT_S: Final = 1.5
CONNECT_TIMEOUT_S: Final = 1.0
MOST_CALLS_A_TRIP: Final = 512

_UNAVAILABLE: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    MasterDownError,
    ClusterDownError,
    ReadOnlyError,
    OSError,
    TimeoutError,
)


class Script:
    """A Lua file and the digest that the server knows it by."""

    __slots__ = ("digest", "name", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (resources.files("common") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def load_scripts() -> dict[str, Script]:
    """Every script of `common/lua`, by its file's name."""
    names = (item.name.removesuffix(".lua") for item in (resources.files("common") / "lua").iterdir())
    return {name: Script(name) for name in sorted(names)}


class _Trip:
    """One command under way: its words, and where its reply goes."""

    __slots__ = ("reply", "script", "words")

    def __init__(self, words: tuple[Argument, ...], script: Script | None, reply: asyncio.Future[Any]) -> None:
        self.words = words
        self.script = script
        self.reply = reply


class Store:
    """One process's connection to Redis, and the scripts."""

    def __init__(self, pool: ConnectionPool, *, clock_offset_ms: int = 0) -> None:
        self.pool = pool
        self.client: Redis = Redis(connection_pool=pool)
        self.scripts = load_scripts()
        self.clock_offset_ms = clock_offset_ms
        self._waiting: list[_Trip] = []
        self._connection: Connection | None = None
        self._wake: asyncio.Event = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, clock_offset_ms: int = 0) -> Store:
        """A store at this `redis://`, `rediss://` or `unix://` URL; nothing is connected yet.

        Retrying is switched off: a write whose reply was lost must not be sent twice behind our back.
        """
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=16,
            timeout=CONNECT_TIMEOUT_S,
            # The limit is set around each trip, once, and not around each of its replies (it costs 10 µs a reply).
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_keepalive=not url.startswith("unix://") or None,
            retry=Retry(NoBackoff(), 0),
        )
        return cls(pool, clock_offset_ms=clock_offset_ms)

    async def close(self) -> None:
        """Ends the pump and every connection; calls still waiting fail with StoreUnavailable."""
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump
        self._fail(self._waiting, StoreUnavailable("The store was closed."))
        self._waiting = []
        await self._drop_connection()
        await self.client.aclose()
        await self.pool.disconnect()

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, script: str, prefix: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """A script's reply. Raises StoreUnavailable, StoreFull or InternalError; never waits above the time limit.

        The pool's prefix and the clock offset become ARGV 1 and 2 of every script.
        """
        entry = self.scripts[script]
        words = ("EVALSHA", entry.digest, len(keys), *keys, prefix, self.clock_offset_ms, *args)
        return await self._send(words, entry)

    async def command(self, *words: Argument) -> Any:
        """A plain command's raw reply, with the same errors and limits as `call`."""
        return await self._send(words, None)

    def _send(self, words: tuple[Argument, ...], script: Script | None) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Trip(words, script, reply))
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="store pump")
        self._wake.set()
        return reply

    # --- the pump: one pipeline at a time -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            # One turn of the loop, so that what happens at the same moment goes in the same trip.
            await asyncio.sleep(0)
            self._wake.clear()
            while self._waiting:
                trips, self._waiting = self._waiting[:MOST_CALLS_A_TRIP], self._waiting[MOST_CALLS_A_TRIP:]
                await self._exchange(trips)

    async def _exchange(self, trips: list[_Trip]) -> None:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                replies = await self._pipeline([trip.words for trip in trips])
                forgotten = [trip for trip, reply in zip(trips, replies, strict=True) if _is_noscript(reply)]
                if forgotten:
                    replies = await self._again_with_source(trips, replies)
        except _UNAVAILABLE as error:
            await self._drop_connection()
            # Whatever gathered meanwhile would only wait as long again.
            trips += self._waiting
            self._waiting = []
            self._fail(trips, StoreUnavailable(f"The queue's store cannot be reached ({type(error).__name__})."))
            return
        except asyncio.CancelledError:
            await self._drop_connection()
            self._fail(trips, StoreUnavailable("The store was closed."))
            raise
        for trip, reply in zip(trips, replies, strict=True):
            _answer(trip, reply)

    async def _pipeline(self, commands: list[tuple[Argument, ...]]) -> list[Any]:
        connection = self._connection
        if connection is None:
            connection = await self.pool.get_connection()
            self._connection = connection
        if len(commands) == 1:
            await connection.send_packed_command(connection.pack_command(*commands[0]))
        else:
            await connection.send_packed_command(connection.pack_commands(commands))
        return [await _read(connection) for _ in commands]

    async def _again_with_source(self, trips: list[_Trip], replies: list[Any]) -> list[Any]:
        """The replies once more, the server having forgotten scripts (it restarted, or someone flushed them)."""
        again: dict[int, tuple[Argument, ...]] = {}
        for index, (trip, reply) in enumerate(zip(trips, replies, strict=True)):
            if trip.script is not None and _is_noscript(reply):
                again[index] = ("EVAL", trip.script.source, *trip.words[2:])
        for index, reply in zip(again, await self._pipeline(list(again.values())), strict=True):
            replies[index] = reply
        return replies

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, asyncio.TimeoutError):
                await connection.disconnect(nowait=True)
            await self.pool.release(connection)

    def _fail(self, trips: list[_Trip], error: HeadraceError) -> None:
        for trip in trips:
            if not trip.reply.done():
                trip.reply.set_exception(error)
                # A caller that was cancelled will never ask; its silence is no news.
                trip.reply.exception()

    # --- blocking reads -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def blocking(self) -> AsyncIterator[BlockingReader]:
        """A connection of its own for commands that wait on the server; closed at the end, never handed back waiting."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                connection = await self.pool.get_connection()
        except _UNAVAILABLE as error:
            raise StoreUnavailable(f"The queue's store cannot be reached ({type(error).__name__}).") from error
        try:
            yield BlockingReader(connection)
        finally:
            with suppress(RedisError, OSError, asyncio.TimeoutError):
                await connection.disconnect(nowait=True)
            await self.pool.release(connection)


class BlockingReader:
    """A connection that one reader waits on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def command(self, *words: Argument, wait_s: float) -> Any:
        """The raw reply of a command that waits up to `wait_s` on the server. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(wait_s + REPLY_TIMEOUT_S):
                await self._connection.send_packed_command(self._connection.pack_command(*words))
                return await self._connection.read_response(disable_decoding=True)
        except _UNAVAILABLE as error:
            raise StoreUnavailable(f"The queue's store cannot be reached ({type(error).__name__}).") from error


async def _read(connection: Connection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except _UNAVAILABLE:
        raise
    except RedisError as error:
        return error


def _is_noscript(reply: object) -> bool:
    return isinstance(reply, NoScriptError)


def _answer(trip: _Trip, reply: Any) -> None:
    if trip.reply.done():
        return
    if not isinstance(reply, RedisError):
        trip.reply.set_result(reply)
        return
    trip.reply.set_exception(_translate(reply, trip))


def _translate(error: RedisError, trip: _Trip) -> HeadraceError:
    if isinstance(error, OutOfMemoryError) or str(error).startswith("OOM"):
        return StoreFull()
    if isinstance(error, _UNAVAILABLE):
        return StoreUnavailable()
    name = trip.script.name if trip.script else str(trip.words[0])
    return InternalError(f"The store refused {name}: {str(error)[:200]}")
