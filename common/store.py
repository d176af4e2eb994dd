"""The one way to Redis: scripts by name, everything of one moment in one pipeline, no wait without a limit.

Calls gather while a pipeline is on its way and go together as the next one, so that a busy process makes few, large
writes and an idle one writes at once. All calls of one Store therefore happen in the order they were made. A server
has either all of the scripts or none: were one forgotten alone, its calls would be overtaken by those after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, Final, cast

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType]
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from common.errors import HeadraceError, InternalError, StoreFull, StoreUnavailable, StoreUntouched
from common.sentinel import MasterConnection, finder_of, pool_options, sentinels_of

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


# The stub gives it a tuple of one word.
_pack: Final = cast("Callable[[tuple[Argument, ...]], bytes]", pack_command)


class Script:
    """A Lua file and the digest that the server knows it by."""

    __slots__ = ("digest", "name", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (resources.files("common") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@cache
def load_scripts() -> Mapping[str, Script]:
    """Every script of `common/lua`, by its file's name; read once."""
    names = (item.name.removesuffix(".lua") for item in (resources.files("common") / "lua").iterdir())
    return {name: Script(name) for name in sorted(names)}


class _Trip:
    """One command under way: its name for messages, its bytes, whether they may have gone, where its reply goes."""

    __slots__ = ("name", "packed", "reply", "sent")

    def __init__(self, name: str, packed: bytes, reply: asyncio.Future[Any]) -> None:
        self.name = name
        self.packed = packed
        self.reply = reply
        self.sent = False


class Store:
    """One process's connection to Redis, and the scripts."""

    def __init__(
        self, pool: ConnectionPool, *, clock_offset_ms: int = 0, reply_timeout_s: float = REPLY_TIMEOUT_S
    ) -> None:
        self.pool = pool
        self.client: Redis = Redis(connection_pool=pool)
        self.scripts = load_scripts()
        self.clock_offset_ms = clock_offset_ms
        self._reply_timeout_s = reply_timeout_s
        self._waiting: list[_Trip] = []
        self._connection: AbstractConnection | None = None
        self._wake: asyncio.Event = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._finder = finder_of(pool)
        self._closed = False
        self._load = [_pack(("SCRIPT", "LOAD", script.source)) for script in self.scripts.values()]

    @classmethod
    def from_url(cls, url: str, *, clock_offset_ms: int = 0, reply_timeout_s: float = REPLY_TIMEOUT_S) -> Store:
        """A store at this URL (`common.sentinel` knows those of a failover group); nothing is connected yet.

        Retrying is switched off: a write whose reply was lost must not be sent twice behind our back.
        """
        return cls(_pool(url), clock_offset_ms=clock_offset_ms, reply_timeout_s=reply_timeout_s)

    async def close(self) -> None:
        """Ends the pump and every connection; calls still waiting, and later ones, fail with StoreUnavailable."""
        self._closed = True
        for task in (self._pump, self._watch):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._give_up([], StoreUnavailable("The store was closed."))
        await self.client.aclose()
        await self.pool.disconnect()

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, script: str, prefix: str, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Any]:
        """A script's reply. Raises StoreUnavailable, StoreFull or InternalError; never waits above the time limit.

        The pool's prefix and the clock offset become ARGV 1 and 2 of every script. It is under way at once, awaited
        or not.
        """
        words = ("EVALSHA", self.scripts[script].digest, len(keys), *keys, prefix, self.clock_offset_ms, *args)
        return self._send(script, words)

    def command(self, *words: Argument) -> asyncio.Future[Any]:
        """A plain command's raw reply, with the same errors and limits as `call`."""
        return self._send(str(words[0]), words)

    def _send(self, name: str, words: tuple[Argument, ...]) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreUnavailable("The store was closed.")
        # Packed here, so that words that can't be sent fail their own caller and nobody else.
        trip = _Trip(name, _pack(words), asyncio.get_running_loop().create_future())
        self._waiting.append(trip)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name="store pump")
            if self._watch is None and self._finder is not None:
                self._watch = asyncio.create_task(self._finder.watch(), name="store sentinels")
        self._wake.set()
        return trip.reply

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
            async with asyncio.timeout(self._reply_timeout_s):
                replies = await self._replies(trips)
        except RedisError as error:
            await self._give_up(trips, _translate(error, "the connection"))
        except _UNAVAILABLE as error:
            await self._give_up(trips, _unreachable(error))
        except BaseException:
            await self._give_up(trips, StoreUnavailable("The store was closed."))
            raise
        else:
            for trip, reply in zip(trips, replies, strict=True):
                _answer(trip, reply)

    async def _give_up(self, trips: list[_Trip], error: HeadraceError) -> None:
        """Fails these calls, and whatever gathered meanwhile, which would only wait as long again."""
        await self._drop_connection()
        trips = trips + self._waiting
        self._waiting = []
        for trip in trips:
            _refuse(trip, _untouched(error) if not trip.sent else error)

    async def _replies(self, trips: list[_Trip]) -> list[Any]:
        if isinstance(self._connection, MasterConnection) and self._connection.moved:
            await self._drop_connection()
        if self._connection is None:
            self._connection = await self.pool.get_connection()  # pyright: ignore[reportUnknownMemberType]
            await self._pipeline(self._connection, self._load)
        for trip in trips:
            trip.sent = True
        replies = await self._pipeline(self._connection, [trip.packed for trip in trips])
        forgotten = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if forgotten:
            # Someone flushed them under way; those that were refused did nothing.
            await self._pipeline(self._connection, self._load)
            again = await self._pipeline(self._connection, [trips[i].packed for i in forgotten])
            for i, reply in zip(forgotten, again, strict=True):
                replies[i] = reply
        return replies

    async def _pipeline(self, connection: AbstractConnection, packed: list[bytes]) -> list[Any]:
        await connection.send_packed_command(packed)
        return [await _read(connection) for _ in packed]

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _hang_up(connection)
            await self.pool.release(connection)

    # --- blocking reads -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[BlockingReader]:
        """A connection of its own for commands that wait on the server; closed at the end."""
        try:
            async with asyncio.timeout(self._reply_timeout_s):
                connection = await self.pool.get_connection()  # pyright: ignore[reportUnknownMemberType]
        except RedisError as error:
            raise _translate(error, "the connection") from error
        except _UNAVAILABLE as error:
            raise _unreachable(error) from error
        try:
            yield BlockingReader(connection, self._reply_timeout_s)
        finally:
            await _hang_up(connection)
            await self.pool.release(connection)


class BlockingReader:
    """A connection that one reader waits on."""

    def __init__(self, connection: AbstractConnection, reply_timeout_s: float) -> None:
        self._connection = connection
        self._reply_timeout_s = reply_timeout_s

    async def command(self, *words: Argument, wait_s: float) -> Any:
        """The raw reply of a command that waits up to `wait_s` on the server. Raises StoreUnavailable or InternalError.

        After an error or a cancelled wait it starts afresh: a late reply never answers a later command.
        """
        packed = _pack(words)
        if isinstance(self._connection, MasterConnection) and self._connection.moved:
            # A master that was demoted still answers reads, with what it has of its successor.
            await _hang_up(self._connection)
            raise StoreUnavailable("The queue's store has moved to another server.")
        try:
            async with asyncio.timeout(wait_s + self._reply_timeout_s):
                await self._connection.send_packed_command([packed])
                return await _read_raw(self._connection)
        except RedisError as error:
            await _hang_up(self._connection)
            raise _translate(error, str(words[0])) from error
        except _UNAVAILABLE as error:
            await _hang_up(self._connection)
            raise _unreachable(error) from error
        except BaseException:
            await _hang_up(self._connection)
            raise


def _pool(url: str) -> ConnectionPool:
    options: dict[str, Any] = {
        "max_connections": 16,
        "timeout": CONNECT_TIMEOUT_S,
        # The limit is set around each trip, once, and not around each of its replies (it costs 10 µs a reply).
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if not url.startswith("unix://"):
        # A Unix socket's connection doesn't even know the word.
        options["socket_keepalive"] = True
    sentinels = sentinels_of(url)
    if sentinels is not None:
        return BlockingConnectionPool(**options, **pool_options(sentinels))
    return BlockingConnectionPool.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]


async def _hang_up(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError, TimeoutError):
        await connection.disconnect(nowait=True)


async def _read_raw(connection: AbstractConnection) -> Any:
    return await connection.read_response(disable_decoding=True)  # pyright: ignore[reportUnknownVariableType]


async def _read(connection: AbstractConnection) -> Any:
    try:
        return await _read_raw(connection)
    except _UNAVAILABLE:
        raise
    except RedisError as error:
        return error


def _answer(trip: _Trip, reply: Any) -> None:
    if trip.reply.done():
        return
    if isinstance(reply, RedisError):
        _refuse(trip, _translate(reply, trip.name))
    else:
        trip.reply.set_result(reply)


def _refuse(trip: _Trip, error: HeadraceError) -> None:
    if not trip.reply.done():
        trip.reply.set_exception(error)
        # A caller that gave up will never ask; its silence is no news.
        trip.reply.exception()


def _untouched(error: HeadraceError) -> HeadraceError:
    return StoreUntouched(error.failure.message) if isinstance(error, StoreUnavailable) else error


def _translate(error: RedisError, name: str) -> HeadraceError:
    if isinstance(error, _UNAVAILABLE) or str(error).startswith("UNBLOCKED"):
        return _unreachable(error)
    if str(error).startswith(("MISCONF", "NOREPLICAS")):
        return _untouched(_unreachable(error))
    if isinstance(error, OutOfMemoryError) or str(error).startswith("OOM"):
        return StoreFull()
    return InternalError(f"The store refused {name}: {str(error)[:200]}")


def _unreachable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"The queue's store cannot be reached ({type(error).__name__}).")
