"""API keys that rest: each by itself for its time, seen by the whole fleet, and usable again without anyone's doing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from common import keys
from common.backends import REASON_MOST_CHARACTERS, KeyStates
from common.store import Store
from tests.support.redis_server import RedisServer

# Far enough apart that the real seconds of a run decide nothing.
REST_MS: Final = 1_000_000
MARGIN_MS: Final = 100_000
B: Final = "openai"


class Rig:
    """Two processes that share the keys' states, and one time for both."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        self.one, self.other = (KeyStates(store) for store in stores)

    def later(self, by_ms: int) -> None:
        for store in self.stores:
            store.clock_offset_ms += by_ms

    async def block(self, digest: str, for_ms: int = REST_MS, why: str = "429") -> None:
        await self.one.block(B, digest, for_ms=for_ms, why=why)


@asynccontextmanager
async def rig(server: RedisServer) -> AsyncGenerator[Rig]:
    stores = [Store.from_url(server.url) for _ in range(2)]
    try:
        yield Rig(stores)
    finally:
        for store in stores:
            await store.close()


async def test_a_key_that_rests_is_seen_to_by_everyone(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.other.read(B) == {}
        await r.block("d1")
        seen = await r.other.read(B)
        assert list(seen) == ["d1"]
        assert REST_MS - MARGIN_MS < seen["d1"].left_ms <= REST_MS
        assert seen["d1"].why == "429"
        assert await r.other.read("another") == {}


async def test_each_key_is_usable_again_when_its_own_time_is_up(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.block("short")
        await r.block("long", 3 * REST_MS)
        r.later(REST_MS - MARGIN_MS)
        assert set(await r.other.read(B)) == {"short", "long"}
        r.later(2 * MARGIN_MS)
        assert set(await r.other.read(B)) == {"long"}
        r.later(2 * REST_MS)
        assert await r.other.read(B) == {}


async def test_a_shorter_rest_does_not_end_a_longer_one(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.block("d", 5 * REST_MS, "401")
        await r.block("d", REST_MS)
        kept = (await r.one.read(B))["d"]
        assert (kept.left_ms > 4 * REST_MS, kept.why) == (True, "401")
        await r.block("d", 9 * REST_MS)
        assert (await r.one.read(B))["d"].left_ms > 8 * REST_MS


async def test_no_time_is_no_rest(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.block("d", 0)
        await r.block("d", -5)
        assert await r.one.read(B) == {}
        assert redis_server.command("KEYS", "*") == []


async def test_the_lapsed_are_dropped_and_the_key_goes_with_the_longest_rest(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.block("long", 2 * REST_MS)
        for number in range(5):
            await r.block(f"d{number}")
        assert REST_MS < redis_server.command("PTTL", keys.backend_keys(B)) <= 2 * REST_MS
        r.later(REST_MS + MARGIN_MS)
        await r.block("new")
        assert sorted(redis_server.command("HKEYS", keys.backend_keys(B))) == [b"long", b"new"]


async def test_the_reason_is_kept_short_and_may_hold_anything(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.block("d", why="99 quota used up\nfor today " + "x" * 1_000)
        seen = (await r.one.read(B))["d"]
        assert (seen.left_ms <= REST_MS, seen.why[:14]) == (True, "99 quota used ")
        kept = redis_server.command("HGET", keys.backend_keys(B), "d")
        assert kept.partition(b" ")[2].startswith(b"99 quota used up\n")
        assert len(kept.partition(b" ")[2]) == REASON_MOST_CHARACTERS


async def test_a_key_is_put_to_rest_in_a_full_redis_too(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        await r.block("d")
        assert set(await r.other.read(B)) == {"d"}
