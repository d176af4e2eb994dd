"""The store's connection: order, one trip for many calls, scripts forgotten, servers killed and frozen."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest

from common.errors import HeadraceError, InternalError, StoreFull, StoreUnavailable
from common.store import MOST_CALLS_A_TRIP, REPLY_TIMEOUT_S, Store
from tests.support.clock import stopwatch
from tests.support.proxy import Blackhole, CutAtByte, DropReply, Ending, EndNow, Proxy
from tests.support.redis_server import RedisServer
from tests.support.runner import WAIT_LIMIT_S, drawn_seed, until
from tests.support.seeds import a_job, job_id, rig

PROMISED_LIMIT_S: Final = 2.0
# What is promised beyond the limit for a reply: to find out, to give up, to connect again.
SLACK_S: Final = PROMISED_LIMIT_S - REPLY_TIMEOUT_S
# The real limit, and one that can be waited for.
limited = pytest.mark.parametrize("limit_s", [0.3, pytest.param(REPLY_TIMEOUT_S, marks=pytest.mark.lengthy)])


@asynccontextmanager
async def store_at(url: str, limit_s: float = REPLY_TIMEOUT_S) -> AsyncGenerator[Store]:
    """A store that is closed at the end."""
    store = Store.from_url(url, reply_timeout_s=limit_s)
    try:
        yield store
    finally:
        await store.close()


async def unavailable(call: Awaitable[Any]) -> float:
    """How long the call took to fail as unavailable."""
    async with stopwatch() as served_s:
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(WAIT_LIMIT_S):
                await call
        return served_s()


async def answered(store: Store, *words: str) -> Any:
    """The first answer: a short limit may be over before a crowded machine has a thawed server running again."""
    async with asyncio.timeout(WAIT_LIMIT_S):
        while True:
            with suppress(StoreUnavailable):
                return await store.command(*words)


# --- trips ------------------------------------------------------------------------------------------------------------


async def test_calls_happen_in_the_order_they_were_made(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        calls = [store.command("RPUSH", "list", number) for number in range(3 * MOST_CALLS_A_TRIP)]
        assert await asyncio.gather(*calls) == list(range(1, 3 * MOST_CALLS_A_TRIP + 1))
        assert redis_server.command("LRANGE", "list", 0, -1) == [b"%d" % n for n in range(3 * MOST_CALLS_A_TRIP)]


async def test_calls_made_while_a_trip_is_under_way_go_together_as_the_next(redis_server: RedisServer) -> None:
    async with Proxy(redis_server.port) as proxy, store_at(proxy.url) as store:
        await store.command("PING")
        requests = 0

        class Counting(Blackhole):
            async def to_server(self, data: bytes, *, begins: bool) -> bytes:
                nonlocal requests
                requests += begins
                return data

            async def to_client(self, data: bytes) -> bytes:
                return data

        proxy.fault = Counting()
        first = store.command("INCR", "n")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        others = [store.command("INCR", "n") for _ in range(100)]
        assert await first == 1
        assert await asyncio.gather(*others) == list(range(2, 102))
        assert requests == 2


async def test_a_call_is_under_way_whether_or_not_it_is_awaited(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        store.command("SET", "a", 1)
        assert await store.command("GET", "a") == b"1"


async def test_an_error_of_one_call_is_no_error_of_its_neighbours(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        good, bad, also_good = (
            store.command("SET", "text", "x"),
            store.command("INCR", "text"),
            store.command("GET", "text"),
        )
        assert await good == b"OK"
        with pytest.raises(InternalError, match="refused INCR"):
            await bad
        assert await also_good == b"x"


@pytest.mark.parametrize("odd", [None, ..., True, ["x"], "\ud800"], ids=repr)
async def test_words_that_cannot_be_sent_fail_their_own_caller_and_nobody_else(
    redis_server: RedisServer, odd: Any
) -> None:
    async with store_at(redis_server.url) as store:
        before = store.command("SET", "a", 1)
        with pytest.raises((TypeError, UnicodeEncodeError)):
            store.command("SET", "b", odd)
        assert await before == b"OK"
        assert await store.command("GET", "a") == b"1"


async def test_values_of_every_kind_come_back_as_the_bytes_they_are(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        for value in (b"", b"\r\n$5\r\n", bytes(range(256)), b"x" * 5_000_000):
            await store.command("SET", "v", value)
            assert await store.command("GET", "v") == value
        assert await store.command("SET", "v", "é") == b"OK"
        assert await store.command("GET", "v") == "é".encode()
        assert await store.command("GET", "none") is None


async def test_a_full_server_is_told_from_a_broken_one(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        await store.command("PING")
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull):
            await store.command("SET", "a", "b")


# --- scripts ----------------------------------------------------------------------------------------------------------


async def test_scripts_that_the_server_forgot_are_loaded_again_under_way(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        for number in range(5):
            redis_server.command("SCRIPT", "FLUSH")
            await r.submit(a_job(number))
            redis_server.command("SCRIPT", "FLUSH")
            assert await r.numbers() == [number]


async def test_scripts_forgotten_under_way_still_run_in_order_and_once(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        redis_server.command("SCRIPT", "FLUSH")
        # Any one script comes back with all the others: else the next trip's settle would overtake its append.
        await r.queue.beat("default", "w", lease_s=15, info={})
        appended = asyncio.create_task(r.append(claim, 1, b"{}"))
        settled = asyncio.create_task(r.settle(claim))
        assert (await appended, await settled) == (None, 0)
        assert [kind for kind, _ in r.view().streams[1]] == ["s", "c", "o"]


async def test_a_restarted_server_gets_all_scripts_before_the_first_call(own_server: RedisServer) -> None:
    async with rig(own_server) as r:
        claim = await r.running(a_job(1))
        own_server.kill()
        await unavailable(r.append(claim, 1, b"{}"))
        own_server.start()
        appended = asyncio.create_task(r.append(claim, 1, b"{}"))
        settled = asyncio.create_task(r.settle(claim))
        assert (await appended, await settled) == (None, 0)
        assert [kind for kind, _ in r.view().streams[1]] == ["s", "c", "o"]
        assert b"errorstat_NOSCRIPT" not in own_server.command("INFO", "errorstats")


# --- servers that die and freeze --------------------------------------------------------------------------------------


async def test_a_server_killed_under_way_is_unavailable_in_time_and_serves_again_after_its_return(
    own_server: RedisServer,
) -> None:
    async with rig(own_server) as r:
        await r.submit(a_job(1))
        calls = [
            asyncio.ensure_future(r.store.command("BLPOP", "never", 0)),
            *(r.store.command("PING") for _ in range(9)),
        ]
        await until(lambda: has_blocked_client(own_server))
        own_server.kill()
        for call in calls:
            assert await unavailable(call) < PROMISED_LIMIT_S
        assert await unavailable(r.queue.submit(a_job(2))) < PROMISED_LIMIT_S
        own_server.start()
        # The accepted job is still there.
        assert await r.queue.get(job_id(1)) is not None
        assert [answer.code for answer in await r.submit(a_job(2), a_job(1))] == [0, 1]


async def has_blocked_client(server: RedisServer) -> bool:
    return b"blocked_clients:1" in server.command("INFO", "clients")


@pytest.mark.either_server
@limited
async def test_at_a_frozen_server_every_call_fails_in_time_also_those_made_meanwhile(
    own_server: RedisServer, limit_s: float
) -> None:
    async with rig(own_server, reply_timeout_s=limit_s) as r:
        await r.submit(a_job(1))
        own_server.freeze()
        tries: list[asyncio.Task[float]] = []
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5 * limit_s:
            tries.append(asyncio.create_task(unavailable(r.store.command("PING"))))
            await asyncio.sleep(0.05)
        assert max(await asyncio.gather(*tries)) < limit_s + SLACK_S
        own_server.thaw()
        assert await answered(r.store, "PING") == b"PONG"
        assert await r.queue.get(job_id(1)) is not None


async def test_a_server_that_was_never_there_is_unavailable_at_once(own_server: RedisServer) -> None:
    own_server.kill()
    async with store_at(own_server.url) as store:
        assert await unavailable(store.command("PING")) < PROMISED_LIMIT_S
        with pytest.raises(StoreUnavailable):
            async with store.blocking():
                pytest.fail("there is nothing to wait on")


async def test_a_refusal_while_connecting_is_an_error_and_not_the_end_of_the_store(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url.removesuffix("/0") + "/999") as store:
        for _ in range(2):
            with pytest.raises(HeadraceError):
                await asyncio.wait_for(store.command("PING"), WAIT_LIMIT_S)


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("count", [1, 3, 6])
async def test_a_reply_cut_at_any_byte_fails_its_callers_and_the_next_call_is_answered(
    redis_server: RedisServer, ending: Ending, count: int
) -> None:
    async with Proxy(redis_server.port) as proxy, store_at(proxy.url) as store:
        await store.command("PING")
        proxy.fault = CutAtByte(count, ending)
        calls = [store.command("ECHO", "one"), store.command("ECHO", "two")]
        for call in calls:
            assert await unavailable(call) < PROMISED_LIMIT_S
        proxy.fault = EndNow(Ending.RESET)
        assert await unavailable(store.command("ECHO", "three")) < PROMISED_LIMIT_S
        assert await store.command("ECHO", "four") == b"four"


@pytest.mark.either_server
@limited
async def test_a_pulled_cable_fails_in_time_and_a_write_is_never_sent_twice(
    redis_server: RedisServer, limit_s: float
) -> None:
    async with Proxy(redis_server.port) as proxy, store_at(proxy.url, limit_s) as store:
        await store.command("PING")
        hole = proxy.fault = Blackhole()
        assert await unavailable(store.command("INCR", "n")) < limit_s + SLACK_S
        assert hole.struck.is_set()
        dropped = proxy.fault = DropReply(3)
        # The handshake and the scripts go first, then the call.
        await unavailable(store.command("INCR", "n"))
        assert dropped.struck.is_set()
        assert int(redis_server.command("GET", "n") or 0) <= 1


# --- callers that go --------------------------------------------------------------------------------------------------


async def test_replies_never_reach_another_caller_however_many_are_cancelled(redis_server: RedisServer) -> None:
    chance = random.Random(drawn_seed())
    async with store_at(redis_server.url) as store:

        async def canary(name: str) -> None:
            assert await store.command("ECHO", name) == name.encode()
            assert await store.command("SET", f"k:{name}", name) == b"OK"
            assert await store.command("GET", f"k:{name}") == name.encode()

        for start in range(0, 2_000, 100):
            tasks = [asyncio.create_task(canary(f"{start + offset}")) for offset in range(100)]
            for task in tasks:
                if chance.random() < 0.4:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
            assert any(result is None for result in results)


async def test_replies_never_reach_another_caller_while_connections_break(redis_server: RedisServer) -> None:
    chance = random.Random(drawn_seed())
    answered = 0
    async with Proxy(redis_server.port) as proxy, store_at(proxy.url) as store:

        async def canary(name: str) -> bool:
            try:
                assert await store.command("ECHO", name) == name.encode()
            except StoreUnavailable:
                return False
            return True

        for start in range(0, 3_000, 50):
            if chance.random() < 0.3:
                proxy.fault = CutAtByte(chance.randrange(1, 400), chance.choice([Ending.CLOSE, Ending.RESET]))
            tasks = [asyncio.create_task(canary(f"canary-{start + offset}")) for offset in range(50)]
            for task in tasks:
                if chance.random() < 0.1:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            answered += sum(result is True for result in results)
            assert all(isinstance(r, (bool, asyncio.CancelledError)) for r in results)
    assert answered > 1_000


async def test_a_caller_that_gave_up_does_not_stop_its_call(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        call = store.command("SET", "a", "done")
        call.cancel()
        assert await store.command("GET", "a") == b"done"


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_a_closed_store_fails_what_waits_and_what_comes_and_may_be_closed_again(own_server: RedisServer) -> None:
    store = Store.from_url(own_server.url)
    await store.command("PING")
    own_server.freeze()
    waiting = [store.command("PING") for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    for call in waiting:
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.command("PING")
    await store.close()


async def test_a_store_that_was_never_used_can_be_closed() -> None:
    await Store.from_url("redis://127.0.0.1:1/0").close()


async def test_a_closed_store_leaves_no_connection_behind(redis_server: RedisServer) -> None:
    store = Store.from_url(redis_server.url)
    await asyncio.gather(*(store.command("PING") for _ in range(50)))
    async with store.blocking() as reader:
        await reader.command("PING", wait_s=0)
    await store.close()

    async def alone() -> bool:
        return b"connected_clients:1\r" in redis_server.command("INFO", "clients")

    await until(alone)


# --- blocking reads ---------------------------------------------------------------------------------------------------


async def test_a_blocking_read_waits_for_news_and_holds_up_nobody(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store, store.blocking() as reader:
        waiting = asyncio.create_task(reader.command("BLPOP", "bell", 5, wait_s=5))
        await until(lambda: has_blocked_client(redis_server))
        assert await store.command("RPUSH", "bell", "x") == 1
        assert await waiting == [b"bell", b"x"]


async def test_a_blocking_read_without_news_ends_by_the_servers_limit(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store, store.blocking() as reader:
        assert await reader.command("BLPOP", "bell", 0.01, wait_s=0.01) is None
        assert await reader.command("PING", wait_s=0) == b"PONG"


async def test_a_blocking_read_that_was_cancelled_does_not_answer_the_next_one(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store, store.blocking() as reader:
        waiting = asyncio.create_task(reader.command("BLPOP", "bell", 5, wait_s=5))
        await until(lambda: has_blocked_client(redis_server))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: nobody_blocked(redis_server))
        await store.command("RPUSH", "bell", "kept")
        assert await reader.command("ECHO", "mine", wait_s=1) == b"mine"
        assert await reader.command("BLPOP", "bell", 1, wait_s=1) == [b"bell", b"kept"]


async def nobody_blocked(server: RedisServer) -> bool:
    return b"blocked_clients:0" in server.command("INFO", "clients")


async def test_a_blocking_read_at_a_killed_server_is_unavailable_at_once(own_server: RedisServer) -> None:
    async with store_at(own_server.url) as store, store.blocking() as reader:
        waiting = asyncio.create_task(unavailable(reader.command("BLPOP", "bell", 5, wait_s=5)))
        await until(lambda: has_blocked_client(own_server))
        own_server.kill()
        assert await waiting < PROMISED_LIMIT_S
        assert await unavailable(reader.command("PING", wait_s=0)) < PROMISED_LIMIT_S
        own_server.start()
        assert await reader.command("PING", wait_s=0) == b"PONG"


@pytest.mark.either_server
@limited
async def test_a_blocking_read_at_a_frozen_server_fails_in_time(own_server: RedisServer, limit_s: float) -> None:
    async with store_at(own_server.url, limit_s) as store, store.blocking() as reader:
        await reader.command("PING", wait_s=0)
        own_server.freeze()
        assert await unavailable(reader.command("BLPOP", "bell", 0.1, wait_s=0.1)) < limit_s + SLACK_S
        own_server.thaw()
        assert await reader.command("ECHO", "after", wait_s=1) == b"after"


async def test_an_error_answer_to_a_blocking_read_is_ours(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store, store.blocking() as reader:
        await store.command("SET", "text", "x")
        with pytest.raises(InternalError, match="refused BLPOP"):
            await reader.command("BLPOP", "text", 1, wait_s=1)
        assert await reader.command("PING", wait_s=0) == b"PONG"


async def test_closing_ends_a_blocking_read(redis_server: RedisServer) -> None:
    store = Store.from_url(redis_server.url)
    async with store.blocking() as reader:
        waiting = asyncio.create_task(unavailable(reader.command("BLPOP", "bell", 5, wait_s=5)))
        await until(lambda: has_blocked_client(redis_server))
        await store.close()
        assert await waiting < PROMISED_LIMIT_S
