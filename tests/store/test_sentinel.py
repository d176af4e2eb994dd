"""Stores at a failover group: they find the master, leave a server that is none any more, come back by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from common.errors import HeadraceError, StoreUnavailable
from common.store import Store
from tests.support.clock import stopwatch
from tests.support.redis_server import RedisServer
from tests.support.runner import WAIT_LIMIT_S
from tests.support.sentinel import FailoverGroup
from tests.support.stage import say

pytestmark = [pytest.mark.timeout(60), pytest.mark.lengthy]

PROMISED_LIMIT_S: Final = 2.0


@pytest.fixture(scope="module")
def _group_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailoverGroup]:
    group = FailoverGroup(tmp_path_factory.mktemp("group"))
    try:
        yield group.start()
    finally:
        group.stop()


@pytest.fixture
def group(_group_of_all: FailoverGroup) -> FailoverGroup:
    """The group with everything at work."""
    _group_of_all.mend()
    return _group_of_all


@asynccontextmanager
async def store_at(url: str) -> AsyncGenerator[Store]:
    """A store that is closed at the end."""
    store = Store.from_url(url)
    try:
        yield store
    finally:
        await store.close()


async def tries_until_done(store: Store, *words: str, limit_s: float = 20) -> int:
    """How often a call failed until it was carried out. Raises AssertionError where one took too long to fail."""
    failed = 0
    async with asyncio.timeout(limit_s):
        while True:
            async with stopwatch() as served_s:
                try:
                    await store.command(*words)
                    return failed
                except StoreUnavailable:
                    failed += 1
                    assert served_s() < PROMISED_LIMIT_S
            await asyncio.sleep(0.02)


async def test_a_store_speaks_to_the_master(group: FailoverGroup) -> None:
    async with store_at(group.url) as store:
        await store.command("SET", "whose", "master")
        assert group.master.command("GET", "whose") == b"master"
        async with store.blocking() as reader:
            assert (await reader.command("ROLE", wait_s=0))[0] == b"master"


@pytest.mark.parametrize("trouble", ["killed", "frozen", "demoted"])
async def test_after_a_failover_calls_and_blocking_reads_reach_the_new_master(
    group: FailoverGroup, trouble: str
) -> None:
    harm = {"killed": group.kill_master, "frozen": group.freeze_master, "demoted": group.demote_master}[trouble]
    async with store_at(group.url) as store, store.blocking() as reader:
        await store.command("SET", "before", trouble)
        waiting = asyncio.create_task(reader.command("BLPOP", "bell", 8, wait_s=8))
        harmed_s = time.monotonic()
        before = await asyncio.to_thread(harm)
        elected = asyncio.create_task(asyncio.to_thread(group.wait_for_successor, before.port))
        failed = await tries_until_done(store, "SET", "after", trouble)
        await elected
        # A master that is being replaced takes writes until the last moment.
        while group.master.command("GET", "after") != trouble.encode():
            failed += await tries_until_done(store, "SET", "after", trouble)
        say(f"master {trouble}: a successor was elected and calls go through ({failed} failed) by", harmed_s)
        if trouble != "frozen":
            with pytest.raises(StoreUnavailable):
                await waiting
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with store.blocking() as other:
            await tries_until_done(store, "RPUSH", "bell", trouble)
            assert await other.command("BLPOP", "bell", 1, wait_s=1) == [b"bell", trouble.encode()]


async def test_a_blocking_reader_leaves_a_server_once_the_calls_have_gone_to_another(group: FailoverGroup) -> None:
    async with store_at(group.url) as store, store.blocking() as reader:
        assert await reader.command("PING", wait_s=0) == b"PONG"
        await store.command("PING")
        # The connection to the old master stays whole, as with one that was only cut off from the sentinels.
        before = group.freeze_master()
        await asyncio.to_thread(group.wait_for_successor, before.port)
        await tries_until_done(store, "SET", "a", "1")
        with pytest.raises(StoreUnavailable, match="moved"):
            await reader.command("PING", wait_s=0)
        assert (await reader.command("ROLE", wait_s=0))[0] == b"master"
        before.thaw()


async def test_sentinels_that_hang_or_are_gone_hold_nobody_up(group: FailoverGroup) -> None:
    async with store_at(group.url) as known:
        await known.command("SET", "a", "1")
        group.freeze_sentinel(0)
        async with store_at(group.url) as store:
            assert await tries_until_done(store, "GET", "a") == 0
        group.freeze_sentinel(1)
        group.freeze_sentinel(2)
        # Whoever knew the master finds it where it was; whoever did not is told so in time.
        async with known.blocking() as reader:
            assert await reader.command("GET", "a", wait_s=0) == b"1"
        async with store_at(group.url) as store:
            async with stopwatch() as served_s:
                with pytest.raises(StoreUnavailable):
                    await store.command("GET", "a")
                assert served_s() < PROMISED_LIMIT_S
            for number in range(3):
                group.thaw_sentinel(number)
            await tries_until_done(store, "GET", "a")


async def test_a_server_that_is_no_master_is_not_spoken_to_even_where_no_sentinel_answers(
    group: FailoverGroup,
) -> None:
    master, replica = group.master, group.replicas[0]
    async with store_at(group.url) as store:
        await store.command("SET", "a", "1")
        for number in range(3):
            group.freeze_sentinel(number)
        master.command("REPLICAOF", "127.0.0.1", replica.port)
        try:
            with pytest.raises(StoreUnavailable):
                async with store.blocking():
                    pytest.fail("it is a replica")
        finally:
            master.command("REPLICAOF", "NO", "ONE")


async def test_a_server_that_became_a_replica_is_unavailable_and_not_an_error_of_ours(
    own_server: RedisServer, redis_server: RedisServer
) -> None:
    async with store_at(own_server.url) as store, store.blocking() as reader:
        await store.command("SET", "a", "1")
        waiting = asyncio.create_task(reader.command("BLPOP", "bell", 8, wait_s=8))
        await until_blocked(own_server)
        own_server.command("REPLICAOF", "127.0.0.1", redis_server.port)
        try:
            with pytest.raises(StoreUnavailable):
                await waiting
            with pytest.raises(StoreUnavailable):
                await store.command("SET", "a", "2")
        finally:
            own_server.command("REPLICAOF", "NO", "ONE")
        await tries_until_done(store, "SET", "a", "3")


async def until_blocked(server: RedisServer) -> None:
    async with asyncio.timeout(WAIT_LIMIT_S):
        while b"blocked_clients:1" not in server.command("INFO", "clients"):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def test_a_url_whose_service_nobody_knows_is_unavailable(group: FailoverGroup) -> None:
    async with store_at(group.url.replace("/headrace/", "/another/")) as store:
        with pytest.raises(HeadraceError) as caught:
            await store.command("PING")
        assert isinstance(caught.value, StoreUnavailable)
