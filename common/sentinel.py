"""Redis behind Sentinel: its URL, and connections that ask the sentinels for the master each time one is made.

Every new connection asks anew and then makes sure of the server's role, so whoever lost his connection finds the new
master by connecting again. There is nothing else to keep in step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

Address = tuple[str, int]

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
PLAIN_SCHEMES: Final = ("redis", "rediss", "unix")
FORM: Final = "redis+sentinel://[user:password@]host:port,host:port/<service>/<db>"
SENTINEL_PORT: Final = 26379
# A sentinel that hangs costs every new connection so long, and only where no majority answers without it.
ASK_LIMIT_S: Final = 0.5
WATCH_S: Final = 1.0
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Where the sentinels are, and what to tell them and the master; `tls` holds redis-py's options, None for none."""

    addresses: tuple[Address, ...]
    service: str
    db: int = 0
    login: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    sentinel_login: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    tls: dict[str, Any] | None = None


# --- the URL ----------------------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Nothing, where a store could be opened at this URL. Raises ValueError that says why not, without any password."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in (*PLAIN_SCHEMES, *SCHEMES):
        known = ", ".join(f"{name}://" for name in (*PLAIN_SCHEMES, *SCHEMES))
        raise ValueError(f"the URL must begin with one of {known}")
    if scheme in SCHEMES:
        sentinels_of(url)


def sentinels_of(url: str) -> Sentinels | None:
    """What a sentinel URL says; None for a URL of another kind. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        return None
    place, _, query = rest.partition("?")
    netloc, _, path = place.partition("/")
    login, _, hosts = netloc.rpartition("@")
    service, _, db = path.partition("/")
    if not service:
        raise ValueError(f"the name of the sentinels' service is missing; the form is {FORM}")
    options = _options(query, tls=scheme == "rediss+sentinel")
    return Sentinels(
        addresses=tuple(_address(host) for host in hosts.split(",")),
        service=unquote(service),
        db=_number(db or "0", "the database", 0, 2**31),
        login=_login(*login.partition(":")[::2]),
        sentinel_login=_login(options.pop("sentinel_username", ""), options.pop("sentinel_password", "")),
        tls=_tls(options) if scheme == "rediss+sentinel" else None,
    )


def _options(query: str, *, tls: bool) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (*_SENTINEL_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    for name in options:
        if name not in known:
            raise ValueError(f"the option {name!r} is not known; there are {', '.join(known)}")
    return options


def _tls(options: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(options)
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = found["ssl_check_hostname"].lower() in ("1", "true", "yes")
    return found


def _login(username: str, password: str) -> dict[str, str]:
    pairs = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in pairs.items() if value}


def _address(text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(SENTINEL_PORT)
    if not host:
        raise ValueError(f"a sentinel's host is missing; the form is {FORM}")
    return host.strip("[]"), _number(port, f"the port of {host}", 1, 65_536)


def _number(text: str, what: str, least: int, below: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) < below:
        raise ValueError(f"{what} is not a number of the range ({text[:20]!r})")
    return int(text)


# --- who is the master ------------------------------------------------------------------------------------------------


class Finder:
    """Asks the sentinels. `last` is the address that was the master's when they were last asked."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self.last: Address | None = None

    async def master(self) -> Address:
        """The master's address, as those say who know of the latest failover. Raises redis's ConnectionError.

        Where no sentinel answers it is the last one known: the connection itself finds out whether it is still master.
        """
        tasks = [asyncio.create_task(self._ask(address)) for address in self._sentinels.addresses]
        try:
            answers = await _majority(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if answers:
            self.last = max(answers)[1]
        if self.last is None:
            raise RedisConnectionError("no sentinel names a master")
        return self.last

    async def watch(self) -> None:
        """Keeps `last` fresh, without end: a master that is replaced by order takes writes until somebody stops it."""
        while True:
            await asyncio.sleep(WATCH_S)
            with suppress(RedisConnectionError):
                await self.master()

    async def _ask(self, address: Address) -> tuple[int, Address] | None:
        """(epoch of the last failover, the master's address) by this sentinel; None where it can't say."""
        connection = self._connection(address)
        with suppress(RedisError, OSError, TimeoutError, ValueError, IndexError):
            try:
                await connection.connect()
                service = self._sentinels.service
                # Asked apart: while it fails over itself, its record bears the old address with the new epoch.
                found: list[bytes] | None = await _reply(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
                record: list[bytes] = await _reply(connection, "SENTINEL", "MASTER", service)
                if found is not None:
                    epoch = int(record[record.index(b"config-epoch") + 1])
                    return epoch, (found[0].decode(), int(found[1]))
            finally:
                await connection.disconnect(nowait=True)
        return None

    def _connection(self, address: Address) -> Connection:
        kind = Connection if self._sentinels.tls is None else SSLConnection
        return kind(
            host=address[0],
            port=address[1],
            socket_connect_timeout=ASK_LIMIT_S,
            socket_timeout=ASK_LIMIT_S,
            retry=Retry(NoBackoff(), 0),
            lib_name=None,
            lib_version=None,
            **self._sentinels.sentinel_login,
            **(self._sentinels.tls or {}),
        )


async def _reply(connection: Connection, *words: str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()  # pyright: ignore[reportUnknownVariableType]


async def _majority(tasks: Sequence[asyncio.Task[tuple[int, Address] | None]]) -> list[tuple[int, Address]]:
    """The answers of more than half, or those that came in time."""
    answers: list[tuple[int, Address]] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(ASK_LIMIT_S):
            for coming in asyncio.as_completed(tasks):
                if (answer := await coming) is not None:
                    answers.append(answer)
                if 2 * len(answers) > len(tasks):
                    break
    return answers


# --- connections to it ------------------------------------------------------------------------------------------------


class MasterConnection(Connection):
    """A connection to whichever server is the master when it is made."""

    def __init__(self, *, finder: Finder, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._finder = finder

    @property
    def moved(self) -> bool:
        """Whether, as far as is known, another server is the master now."""
        return self.is_connected and self._finder.last != (self.host, self.port)

    async def _connect(self) -> None:
        self.host, self.port = await self._finder.master()
        await super()._connect()

    async def on_connect(self) -> None:
        """Shakes hands. Raises redis's ConnectionError where the server is no master (any more, or yet)."""
        await super().on_connect()
        role: list[Any] = await _reply(self, "ROLE")
        if role[0] not in (b"master", "master"):
            raise RedisConnectionError(f"{self.host}:{self.port} is no master")


class MasterTLSConnection(MasterConnection, SSLConnection):
    """The same over TLS."""


def pool_options(sentinels: Sentinels) -> dict[str, Any]:
    """What a connection pool must be made with, so that its connections go to the master."""
    return {
        "connection_class": MasterConnection if sentinels.tls is None else MasterTLSConnection,
        "finder": Finder(sentinels),
        "db": sentinels.db,
        **sentinels.login,
        **(sentinels.tls or {}),
    }


def finder_of(pool: ConnectionPool) -> Finder | None:
    """What the pool's connections ask for their master; None where they go to one server, whatever it is."""
    found = cast("object", pool.connection_kwargs.get("finder"))  # pyright: ignore[reportUnknownMemberType]
    return found if isinstance(found, Finder) else None
