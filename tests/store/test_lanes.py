"""Lanes: what a worker may claim, given how the backends of each model stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from common.breaker import Verdict
from common.clock import SystemClock
from common.config import Settings
from common.health import Health
from common.metrics import WorkerMetrics
from common.store import Store
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from workers.fleet import Fleet
from workers.lanes import Lanes


def _settings() -> Settings:
    backends = [
        {"name": "a", "kind": "echo", "concurrency": 4},
        {"name": "b", "kind": "echo", "concurrency": 2},
        {"name": "c", "kind": "echo", "concurrency": 8},
    ]
    models = {"one": "a", "same": "a", "pair": "ab", "far": "c"}
    rows = {name: {"targets": [{"backend": b, "model": "m"} for b in served]} for name, served in models.items()}
    limits = {"worker_concurrency": 100, "breaker_cooloff_s": 0.5}
    values: dict[str, Any] = {"backends": backends, "models": rows, **limits}
    return Settings(**values)


@asynccontextmanager
async def lanes(server: RedisServer) -> AsyncGenerator[tuple[Lanes, Fleet]]:
    store = Store.from_url(server.url)
    fleet = Fleet(_settings(), store, SystemClock(), worker_id=lambda: "w", metrics=WorkerMetrics())
    following = asyncio.create_task(fleet.follow())

    async def known() -> bool:
        return fleet.slots.spare.keys() == fleet.backends.keys()

    try:
        await until(known)
        yield Lanes(_settings(), "default", fleet), fleet
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()


def room(served: Lanes, lane: str) -> int:
    """The most jobs that a claim may take from this lane and those that share its backends."""
    (cap,) = [cap for cap in served.caps() if lane in cap.lanes]
    return cap.most


async def test_as_many_jobs_are_taken_as_a_models_backends_have_room_for(redis_server: RedisServer) -> None:
    async with lanes(redis_server) as (served, fleet):
        assert [room(served, f"{priority}:one") for priority in range(3)] == [4, 4, 4]
        assert (room(served, "0:pair"), room(served, "0:far")) == (6, 8)
        fleet.slots.lines["a"].grant(4)
        fleet.slots.spare["a"] = 0
        for _ in range(3):
            assert fleet.slots.lines["a"].take_now()
        assert (room(served, "0:one"), room(served, "0:pair")) == (1, 3)


async def test_models_that_share_their_backends_share_a_cap(redis_server: RedisServer) -> None:
    async with lanes(redis_server) as (served, _):
        by_lane = {lane: cap for cap in served.caps() for lane in cap.lanes}
        assert by_lane["0:one"] == by_lane["2:same"] != by_lane["0:pair"]
        assert (by_lane["0:one"].most, by_lane["1:pair"].most, by_lane["1:far"].most) == (4, 6, 8)
        assert len(by_lane) == 12


async def test_a_model_without_a_usable_backend_keeps_its_interactive_lane_for_one_job_at_a_time(
    redis_server: RedisServer,
) -> None:
    async with lanes(redis_server) as (served, fleet):
        fleet.health = {"c": Health(healthy=False, checked_ms=0, latency_ms=0, failures=9)}
        assert room(served, "0:far") == 1
        assert "0:far" in served() and not {"1:far", "2:far"} & set(served())


async def test_until_its_probe_has_answered_a_backend_has_room_for_one_job(redis_server: RedisServer) -> None:
    async with lanes(redis_server) as (served, fleet):
        for _ in range(3):
            fleet.breakers.failed("c", probe=False)
        await fleet.breakers.told()
        assert room(served, "0:far") == 1 and "2:far" not in served()

        async def due() -> bool:
            return fleet.wait_ms("c") == 0

        await until(due)
        assert room(served, "2:far") == 1 and "2:far" in served()
        assert await fleet.breakers.ask("c") is Verdict.PROBE
        fleet.breakers.succeeded("c", probe=True)
        await fleet.breakers.told()
        assert room(served, "2:far") == 8
