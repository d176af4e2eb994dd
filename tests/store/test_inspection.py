"""What a real server tells of itself, and which of our keys would stay for ever."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from common import keys
from common.errors import StoreUnavailable
from common.inspection import StoreFacts, inspect
from common.store import Store
from deploy.local.doctor import judge_store
from tests.support.redis_server import RedisServer


@asynccontextmanager
async def store_at(url: str) -> AsyncGenerator[Store]:
    store = Store.from_url(url)
    try:
        yield store
    finally:
        await store.close()


async def facts_of(server: RedisServer) -> StoreFacts:
    async with store_at(server.url) as store:
        return await inspect(store)


async def test_a_server_set_up_as_it_should_be_is_found_sound(redis_server: RedisServer, server_kind: str) -> None:
    facts = await facts_of(redis_server)
    assert facts.server == server_kind
    assert facts.version >= (7,)
    assert (facts.aof_enabled, facts.aof_healthy, facts.eviction) == (True, True, "noeviction")
    assert abs(facts.clock_skew_s) < 1
    assert [finding for finding in judge_store(facts) if finding.level != "ok"] == []


async def test_a_server_that_may_forget_is_found_out(own_server: RedisServer) -> None:
    async with store_at(own_server.url) as store:
        await store.command("CONFIG", "SET", "appendonly", "no")
        await store.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    findings = judge_store(await facts_of(own_server))
    assert [finding.subject for finding in findings if finding.level == "failure"] == ["redis AOF", "redis eviction"]


async def test_only_keys_that_should_expire_and_will_not_are_counted(redis_server: RedisServer) -> None:
    async with store_at(redis_server.url) as store:
        await store.command("SET", keys.job("default", "one"), "x")
        await store.command("SET", keys.job("default", "two"), "x", "EX", 100)
        await store.command("SADD", keys.lanes("default"), "0:echo")
        await store.command("SET", "somebody-elses", "x")
    facts = await facts_of(redis_server)
    assert facts.without_ttl == {"job": 1}
    assert facts.sampled_keys == 3


async def test_a_server_that_is_away_is_an_error_with_a_name() -> None:
    async with store_at("redis://127.0.0.1:1/0") as store:
        with pytest.raises(StoreUnavailable):
            await inspect(store)
