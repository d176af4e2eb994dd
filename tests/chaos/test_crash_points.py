"""A worker or a gateway is killed before or after its nth trip to the store, for every n that matters to a job."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.chaos.checker import problems
from tests.chaos.scenarios import Scene
from tests.support.proxy import Fault, Proxy, Strike
from tests.support.reader import numbered, until
from tests.support.runner import drawn_seed
from tests.support.tree import copied

MOST_TRIPS = 12
SOME = 5


def points() -> list[tuple[int, bool]]:
    """(nth trip, whether it still arrives): all of them, or some drawn by lot."""
    every = [(nth, arrives) for nth in range(1, MOST_TRIPS + 1) for arrives in (False, True)]
    return every if os.environ.get("HEADRACE_TEST_ALL") else random.Random(drawn_seed()).sample(every, SOME)


async def strike(scene: Scene, proxy: Proxy, name: str, point: tuple[int, bool]) -> None:
    """Has a member killed at this point, and waits for it; work must be under way."""
    nth, arrives = point
    member = scene.stage.fleet.members[name]
    proxy.fault = fault = Strike(nth, lambda: member.signal(signal.SIGKILL), arrives=arrives)
    await until(fault.struck.is_set, f"{name} made no {nth} trips")


async def begin_again(scene: Scene, proxy: Proxy, name: str) -> None:
    """Starts a member that was killed."""
    proxy.fault = Fault()
    scene.stage.fleet.members[name].wait(10)
    await asyncio.to_thread(scene.stage.fleet.start_again, name)


@pytest.mark.timeout(300)
async def test_a_worker_killed_at_any_trip_to_the_store_loses_and_doubles_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, copied(tmp_path), workers=0)
    async with Proxy(scene.stage.redis.port) as proxy:
        scene.stage.fleet.add("worker-0", "workers", redis_url=proxy.url)

        async def killings(scene: Scene) -> None:
            for point in points():
                scene.begin(scene.stream(6, restart=bool(point[0] % 2)))
                scene.begin(scene.poll(3))
                await strike(scene, proxy, "worker-0", point)
                await begin_again(scene, proxy, "worker-0")
                await scene.at_rest()

        history = await scene.play(killings)
    attempts = [kept.attempt for kept in history.kept.values()]
    sys.stdout.write(f"{len(attempts)} jobs, {sum(attempts)} attempts\n")
    assert problems(history) == []
    assert sum(attempts) > len(attempts)


@pytest.mark.timeout(300)
async def test_a_gateway_killed_at_any_trip_to_the_store_loses_and_doubles_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, copied(tmp_path), gateways=2, workers=1)
    async with Proxy(scene.stage.redis.port) as proxy:
        scene.stage.fleet.members["gateway-0"].environ["HEADRACE_REDIS_URL"] = proxy.url

        async def killings(scene: Scene) -> None:
            for point in points():
                for _ in range(3):
                    scene.begin(_try(scene))
                await strike(scene, proxy, "gateway-0", point)
                await begin_again(scene, proxy, "gateway-0")
                await scene.at_rest()

        history = await scene.play(killings)
    sys.stdout.write(f"{len(history.asked)} jobs accepted, {len(history.kept)} in the store\n")
    assert problems(history) == []


async def _try(scene: Scene) -> None:
    """Asks the first gateway once for a job; where its answer is lost, the job may be there or not."""
    op = scene.recorder.invoke("poll", tokens=3)
    try:
        job = await scene.callers[0].submit(numbered(3, token_ms=5))
    except httpx.TransportError:
        scene.recorder.note("unknown", op=op)
        return
    scene.recorder.note("accepted", op=op, job=job)
    await scene.poll_job(job)
