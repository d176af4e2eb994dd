"""Fixtures that more than one folder of tests needs, and coroutine tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.support.postgres import PostgresServer
from tests.support.postgres import binaries as postgres_binaries
from tests.support.redis_server import EVERY_WRITE_KEPT, RedisServer, binaries
from tests.support.runner import run

MARKERS = (
    "slow: takes minutes; ./just chaos runs it, ./just test does not",
    "lengthy: takes the best part of a second that nothing can shorten; ./just test runs it, ./just quick does not",
    "either_server: one kind of server is enough to show it: Valkey",
    "on_redis: the same on another kind (set by itself); ./just redis runs it, ./just test does not",
)

# On a crowded machine the first examples of a property take seconds; no test of ours asserts a time.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


def pytest_configure(config: pytest.Config) -> None:
    """Names the markers by which the recipes choose."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what need not meet the second kind of server each time."""
    for item in items:
        if item.get_closest_marker("either_server") and _server_kind_of(item) not in (None, "valkey"):
            item.add_marker("on_redis")


def _server_kind_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("server_kind") if callspec else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is a coroutine function; leaves the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    words = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    run(_within(_limit_s(pyfuncitem), pyfuncitem.obj(**words)))
    return True


def _limit_s(item: pytest.Function) -> float:
    """The test's time limit. pytest-timeout's own alarm is swallowed by uvloop, so that it never ends a coroutine."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getini("timeout"))


async def _within(limit_s: float, test: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(limit_s * 0.95):
        await test


@pytest.fixture(scope="session", params=sorted(binaries(), reverse=True))
def server_kind(request: pytest.FixtureRequest) -> str:
    """Valkey, and Debian's Redis where it is installed."""
    return request.param


@pytest.fixture(scope="session")
def _shared_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[server_kind], tmp_path_factory.mktemp(server_kind))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_shared_server: RedisServer) -> RedisServer:
    """A server for a whole session; each test finds it empty."""
    _shared_server.empty()
    return _shared_server


@pytest.fixture
def own_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the test's own, which it may kill and freeze."""
    server = RedisServer(
        binaries()[server_kind], tmp_path_factory.mktemp(f"own-{server_kind}"), options=EVERY_WRITE_KEPT
    )
    server.start()
    yield server
    server.kill()  # nobody asks for its data any more, and an orderly end takes a tenth of a second


@pytest.fixture(scope="session")
def _shared_cluster(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[server_kind], tmp_path_factory.mktemp(f"cluster-{server_kind}"), cluster=True)
    server.start()
    server.own_all_slots()
    yield server
    server.stop()


@pytest.fixture
def cluster_server(_shared_cluster: RedisServer) -> RedisServer:
    """A server with cluster mode on that owns every slot; each test finds it empty."""
    _shared_cluster.empty()
    return _shared_cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for a whole session; whoever stops it starts it again."""
    if not postgres_binaries():
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """Leaves no test the logging that another one configured."""
    yield
    structlog.reset_defaults()
