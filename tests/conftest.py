"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.store import Store
from tests.support.redis_server import RedisServer, binaries


@pytest.fixture(scope="session", params=sorted(binaries(), reverse=True))
def server_kind(request: pytest.FixtureRequest) -> str:
    """Valkey, and Debian's Redis where it is installed."""
    return request.param


@pytest.fixture(scope="session")
def redis_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for a whole session; each test finds it empty."""
    server = RedisServer(binaries()[server_kind], tmp_path_factory.mktemp(server_kind))
    server.start()
    yield server
    server.stop()
