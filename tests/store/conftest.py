"""Fixtures of the tests of batches: the works over an empty store and an empty ledger."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.batch_desk import Open, Works, works
from tests.support.blank_ledger import blank_ledger
from tests.support.postgres import PostgresServer
from tests.support.redis_server import RedisServer, binaries


@pytest.fixture(scope="session")
def _batch_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of one kind: what differs between the kinds is beneath all that is tested here."""
    server = RedisServer(binaries()["valkey"], tmp_path_factory.mktemp("batches"))
    server.start()
    yield server
    server.stop()


def _opener(server: RedisServer, url: str) -> Open:
    """Opens the works over this store, now empty, and this ledger."""
    server.empty()

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncGenerator[Works]:
        async with works(server, url, **settings) as found:
            yield found

    return opened


@pytest.fixture
def desk(_batch_server: RedisServer, tmp_path: Path) -> Open:
    """Opens the works over SQLite."""
    return _opener(_batch_server, blank_ledger(tmp_path))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lengthy)])
def either(request: pytest.FixtureRequest, _batch_server: RedisServer, tmp_path: Path) -> Open:
    """Opens the works over a database of each kind, where it is the database that decides."""
    if request.param == "sqlite":
        return _opener(_batch_server, blank_ledger(tmp_path))
    server: PostgresServer = request.getfixturevalue("postgres")
    return _opener(_batch_server, server.fresh())
