"""How full the store is, as a gateway sees it: refusing in time, taking again, and holding on to what it knows."""

from __future__ import annotations

import pytest

from common.errors import StoreFull, StoreUnavailable
from common.inspection import parse_info
from gateway.pressure import RETRY_AFTER_S, Pressure, used_share
from tests.support.clock import ManualClock
from tests.support.redis_server import RedisServer
from tests.support.seeds import rig

pytestmark = pytest.mark.either_server

SHARE = 0.8


def fill(server: RedisServer, share: float) -> None:
    """Sets the server's limit so that it uses this share of it now, buffers of connections being a trifle."""
    server.command("CONFIG", "SET", "maxmemory", 0)
    if not server.command("EXISTS", "ballast"):
        # Made by the server itself: what it would read of a long value stays in its buffers for a while.
        server.command("SETRANGE", "ballast", 15_999_999, "x")
    said = parse_info(server.command("INFO", "memory"))
    used_bytes = int(said["used_memory"]) - int(said["mem_not_counted_for_evict"])
    server.command("CONFIG", "SET", "maxmemory", int(used_bytes / share))


async def test_new_work_is_refused_above_the_share_and_taken_again_a_little_below_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pressure = Pressure(r.store, ManualClock(), most_share=SHARE)
        answers: list[bool] = []
        for share in (0.5, 0.75, 0.85, 0.78, 0.70, 0.78):
            fill(redis_server, share)
            await pressure.look()
            answers.append(pressure.full)
            assert abs(pressure.share - share) < 0.02
        # 0.78 is too full for what was refused before, and not for what was taken.
        assert answers == [False, False, True, True, False, False]


async def test_the_refusal_says_when_to_come_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pressure = Pressure(r.store, ManualClock(), most_share=SHARE)
        pressure.check()
        fill(redis_server, 0.9)
        await pressure.look()
        with pytest.raises(StoreFull) as caught:
            pressure.check()
        assert caught.value.failure.retry_after_s == RETRY_AFTER_S


async def test_a_server_without_a_limit_is_never_full(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        pressure = Pressure(r.store, ManualClock(), most_share=SHARE)
        await pressure.look()
        assert (pressure.share, pressure.full) == (0.0, False)


async def test_what_was_known_last_holds_while_the_store_is_away(own_server: RedisServer) -> None:
    async with rig(own_server) as r:
        pressure = Pressure(r.store, ManualClock(), most_share=SHARE)
        fill(own_server, 0.9)
        await pressure.look()
        own_server.kill()
        with pytest.raises(StoreUnavailable):
            await pressure.look()
        assert pressure.full
        own_server.start()
        await pressure.look()
        assert not pressure.full


async def test_watching_goes_on_over_the_stores_absence(own_server: RedisServer) -> None:
    clock = ManualClock()
    async with rig(own_server) as r:
        pressure = Pressure(r.store, clock, most_share=SHARE)
        own_server.kill()
        pressure.start()
        await clock.until_sleeping()
        own_server.start()
        fill(own_server, 0.9)
        clock.advance(1.0)
        await clock.until_sleeping()
        assert pressure.full
        await pressure.close()


def test_buffers_of_replicas_and_the_append_only_file_do_not_count() -> None:
    info = b"# Memory\r\nused_memory:900\r\nmem_not_counted_for_evict:300\r\nmaxmemory:1000\r\n"
    assert used_share(info) == 0.6
    assert used_share(b"used_memory:900\r\nmaxmemory:0\r\n") == 0.0
