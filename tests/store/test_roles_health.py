"""Health in the store: when a backend turns, how long it is believed, who probes."""

from __future__ import annotations

from common import keys
from common.health import DETAIL_MOST_CHARACTERS, HealthStore, Load, Probe, Turned
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, rig

WELL = Probe(succeeded=True, latency_ms=1.26, detail="1 model in memory", load=Load(2, 3))
SICK = Probe(succeeded=False, latency_ms=0, detail="it cannot be connected to")
LIFE_MS = 20_000


async def _note(r: Rig, *probes: Probe) -> list[Turned]:
    health = HealthStore(r.store)
    return [await health.note(POOL, "b", probe, life_ms=LIFE_MS) for probe in probes]


async def test_what_a_probe_found_is_read_back_whole(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        before_ms = await r.queue.now_ms()
        await _note(r, WELL)
        found = (await HealthStore(r.store).read(POOL))["b"]
        assert (found.healthy, found.failures, found.latency_ms) == (True, 0, 1.3)
        assert (found.running, found.waiting, found.load) == (2, 3, 5)
        assert found.detail == "1 model in memory"
        assert before_ms <= found.checked_ms <= await r.queue.now_ms()


async def test_a_load_that_was_not_told_is_unknown(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _note(r, Probe(True, 1, load=Load(running=0)))
        found = (await HealthStore(r.store).read(POOL))["b"]
        assert (found.running, found.waiting) == (0, None)


async def test_nothing_is_known_of_a_backend_that_was_never_probed(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await HealthStore(r.store).read(POOL) == {}


async def test_two_failures_in_a_row_make_it_unhealthy_and_one_success_well_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        turns = await _note(r, WELL, SICK, WELL, SICK, SICK, SICK, WELL)
        assert [turned.healthy for turned in turns] == [True, True, True, True, False, False, True]
        assert [turned.was_healthy for turned in turns] == [True, True, True, True, True, False, False]


async def test_a_first_failure_alone_is_not_yet_believed(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _note(r, SICK)
        found = (await HealthStore(r.store).read(POOL))["b"]
        assert (found.healthy, found.failures, found.detail) == (True, 1, SICK.detail)


async def test_what_is_known_is_forgotten_when_nobody_probes_any_more(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _note(r, SICK, SICK)
        r.later(LIFE_MS - 1_000)
        assert not (await HealthStore(r.store).read(POOL))["b"].healthy
        r.later(2_000)
        assert await HealthStore(r.store).read(POOL) == {}


async def test_failures_from_long_ago_dont_add_to_one_of_today(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _note(r, SICK, SICK)
        r.later(LIFE_MS + 1_000)
        assert await _note(r, SICK) == [Turned(healthy=True, was_healthy=True)]


async def test_a_backend_probed_seldom_is_not_forgotten_with_one_probed_often(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        health = HealthStore(r.store)
        await health.note(POOL, "slow", WELL, life_ms=60_000)
        await health.note(POOL, "quick", WELL, life_ms=4_000)
        assert 50_000 < redis_server.command("PTTL", keys.health(POOL)) <= 60_000
        r.later(5_000)
        assert set(await health.read(POOL)) == {"slow"}


async def test_backends_and_pools_dont_mix(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        health = HealthStore(r.store)
        for _ in range(2):
            await health.note("one", "b", SICK, life_ms=LIFE_MS)
        await health.note("one", "c", WELL, life_ms=LIFE_MS)
        await health.note("two", "b", WELL, life_ms=LIFE_MS)
        one, two = await health.read("one"), await health.read("two")
        assert {name: row.healthy for name, row in one.items()} == {"b": False, "c": True}
        assert {name: row.healthy for name, row in two.items()} == {"b": True}


async def test_a_long_detail_is_cut(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await _note(r, Probe(False, 0, detail="ü" * 5_000))
        assert (await HealthStore(r.store).read(POOL))["b"].detail == "ü" * DETAIL_MOST_CHARACTERS


async def test_a_turn_is_given_once_until_it_lapses_and_always_does(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        health = HealthStore(r.store)
        given = [await health.take_turn(POOL, name, for_ms=60_000) for name in ("b", "b", "c", "b")]
        assert given == [True, False, True, False]
        assert 0 < redis_server.command("PTTL", keys.probe(POOL, "b")) <= 60_000
