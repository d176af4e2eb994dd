"""The one way to SQL: short transactions in tasks of their own, tables made ready at first use.

SQLite (a file, write-ahead log, every commit on disk) or PostgreSQL; what differs between the two stands here and in
`schema`. A transaction goes on when its caller gives up: a connection broken off in the middle is a connection lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import structlog
from sqlalchemy import event, make_url, select
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from common.config import ConfigError, Settings
from common.errors import LedgerUnavailable
from common.ledger import schema
from common.ledger.tables import IDENTITY

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[Result]]

FILE_NAME: Final = "ledger.db"
BUSY_S: Final = 1.5
CONNECT_S: Final = 1.5
LATE_S: Final = 3.0
MIGRATION_S: Final = 60.0
AGAIN_S: Final = 0.05
CONNECTIONS: Final = 4
_TRANSIENT: Final = (DBAPIError, PoolTimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
# Mistakes of ours, which are told as such.
_FAULTS: Final = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


def database_url(settings: Settings) -> URL:
    """Where the ledger is: as set, or a SQLite file in the data directory. Raises ConfigError."""
    if settings.database_url is None:
        return URL.create("sqlite+aiosqlite", database=str(settings.data_dir.resolve() / FILE_NAME))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except ArgumentError:
        raise ConfigError("HEADRACE_DATABASE_URL: not a database URL (postgresql+asyncpg://…)") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+asyncpg")
    return url


class Database:
    """A pool of connections to the ledger's database. Nothing is connected before the first transaction."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine = _engine(url)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._preparing: asyncio.Task[str] | None = None
        self._identity: str | None = None
        self._closed = False

    @classmethod
    def of(cls, settings: Settings) -> Database:
        """The database of these settings. Raises ConfigError."""
        return cls(database_url(settings))

    @property
    def shared(self) -> bool:
        """Whether every process that has this URL has the same ledger, wherever it runs: a file is one machine's."""
        return not self.is_sqlite

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def shown(self) -> str:
        """The URL as people may see it."""
        return self.url.render_as_string(hide_password=True)

    @property
    def connections_in_use(self) -> int:
        """How many connections are lent to transactions."""
        pool = self._engine.sync_engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    async def close(self) -> None:
        """Waits for transactions under way, then closes every connection; later ones fail with LedgerUnavailable."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._engine.dispose()

    async def identity(self) -> str:
        """Which ledger this is; makes its tables where that is still to be done. Raises LedgerUnavailable."""
        try:
            return self._identity or await self._apart(self._prepared())
        except _TRANSIENT as error:
            raise _unavailable(error) from error

    async def upgrade(self) -> str:
        """The revision of the tables once they are at least as new as this version. Raises LedgerUnavailable."""
        return await self._apart(self._migrate())

    async def revision(self) -> str | None:
        """The revision of the tables as they are; None where there are none. Raises LedgerUnavailable."""
        return await self._apart(self._revision())

    async def _revision(self) -> str | None:
        ends_s = asyncio.get_running_loop().time() + CONNECT_S
        try:
            async with asyncio.timeout_at(ends_s + LATE_S):
                return await self._once(lambda connection: connection.run_sync(schema.current), ends_s, write=False)
        except _TRANSIENT as error:
            raise _unavailable(error) from error

    async def run(self, work: Work[Result], *, limit_s: float, write: bool) -> Result:
        """What `work` gave, committed. It must be safe to do twice: a connection that broke is tried once more.

        Raises LedgerUnavailable; whether the work was done is then unknown.
        """
        return await self._apart(self._run(work, limit_s, write=write))

    async def _apart(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work that goes on where the caller is cancelled."""
        if self._closed:
            work.close()
            raise LedgerUnavailable("The ledger was closed.")
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; a caller that gave up will never ask

    async def _run(self, work: Work[Result], limit_s: float, *, write: bool) -> Result:
        ends_s = asyncio.get_running_loop().time() + limit_s
        try:
            async with asyncio.timeout_at(ends_s + LATE_S):
                await self._prepared()
                try:
                    return await self._once(work, ends_s, write=write)
                except DBAPIError as error:
                    if not error.connection_invalidated or asyncio.get_running_loop().time() >= ends_s:
                        raise
                    return await self._once(work, ends_s, write=write)
        except _TRANSIENT as error:
            raise _unavailable(error) from error

    async def _once(self, work: Work[Result], ends_s: float, *, write: bool) -> Result:
        connection = await self._engine.execution_options(write=write).connect()
        bound = await _bound(connection, ends_s)
        try:
            async with connection.begin():
                return await work(connection)
        finally:
            if bound is not None:
                bound.cancel()
            await connection.close()

    # --- made ready at first use --------------------------------------------------------------------------------------

    async def _prepared(self) -> str:
        """The ledger's identity, once its tables are there; whoever can't wait so long leaves it to the others."""
        if self._identity is not None:
            return self._identity
        if self._preparing is None or self._preparing.done():
            self._preparing = self._begin(self._prepare())
        return await asyncio.shield(self._preparing)

    async def _prepare(self) -> str:
        await self._migrate()
        ends_s = asyncio.get_running_loop().time() + CONNECT_S
        identity = str(await self._once(_identity, ends_s, write=False))
        self._identity = identity
        log.info("ledger.ready", database=self.shown)
        return identity

    async def _migrate(self) -> str:
        if self.is_sqlite and self.url.database:
            await asyncio.to_thread(Path(self.url.database).parent.mkdir, parents=True, exist_ok=True, mode=0o700)
        ends_s = asyncio.get_running_loop().time() + MIGRATION_S
        while True:
            try:
                found = await self._once(lambda connection: connection.run_sync(schema.current), ends_s, write=False)
                if found is not None and schema.suffices(found):
                    return found
                return await self._once(lambda connection: connection.run_sync(schema.upgrade), ends_s, write=True)
            except _TRANSIENT as error:
                # A file that others make at the same moment is locked without a limit that SQLite would keep to.
                if not (self.is_sqlite and "locked" in str(error)) or asyncio.get_running_loop().time() > ends_s:
                    raise _unavailable(error) from error
            await asyncio.sleep(AGAIN_S)


async def _bound(connection: AsyncConnection, ends_s: float) -> asyncio.TimerHandle | None:
    """Hangs up on a server that has not answered by then, which fails what waits for it.

    Not by cancelling: SQLAlchemy would take leave of the server, and wait two seconds more for its answer. SQLite has a
    limit of its own to its waits.
    """
    driver = (await connection.get_raw_connection()).driver_connection
    if not isinstance(driver, asyncpg.Connection):
        return None
    return asyncio.get_running_loop().call_at(ends_s, driver.terminate)


async def _identity(connection: AsyncConnection) -> Any:
    return (await connection.execute(select(IDENTITY.c.id))).scalar_one()


def _unavailable(error: Exception) -> LedgerUnavailable:
    """What to tell of this. Raises it again where it is a mistake of ours."""
    if isinstance(error, _FAULTS):
        raise error
    origin = getattr(error, "orig", None) or error
    return LedgerUnavailable(f"The ledger's database cannot be used at the moment ({type(origin).__name__}).")


# --- what differs between the two -------------------------------------------------------------------------------------


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=BUSY_S)
        event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
        event.listen(engine.sync_engine, "begin", _on_sqlite_begin)
        return engine
    settings = {"application_name": "headrace", "statement_timeout": "30000", "lock_timeout": "5000"}
    return create_async_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=CONNECT_S,
        pool_use_lifo=True,
        connect_args={"timeout": CONNECT_S, "server_settings": settings},
    )


def _on_sqlite_connect(connection: Any, _record: object) -> None:
    # The driver would begin transactions by its own rules; ours begin in `_on_sqlite_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # With NORMAL a power cut loses what was committed last.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    # A transaction that begins with a read can't wait for its turn to write, so it says at once what it wants.
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
