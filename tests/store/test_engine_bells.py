"""No wake-up is lost between workers that keep slots for interactive work, those that don't, and those that are full.

The workers here wait for bells for a minute: what a ring should have brought, and didn't, comes too late for the tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import pytest

from common import keys
from common.contracts import Failure, Priority, State
from common.queue import KEPT_AFTER_MS
from tests.store.test_engine import Rig, SteeredRun, a_worker
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, a_job, job_id
from workers.engine import GiveBack

BATCH: dict[str, Any] = {"priority": Priority.BATCH}
# Of eight slots two are kept.
KEEPING: dict[str, Any] = {"concurrency": 8, "kept": 2, "lease_s": 90, "bell_wait_s": 60}
IMPATIENT: dict[str, Any] = {**KEEPING, "bell_wait_s": 0.05}
KEEPING_NONE: dict[str, Any] = {**KEEPING, "kept": 0}
DEAF: Final = frozenset({POOL})
WAITS_OF_A_WORKER: Final = 2  # for bells, for orders


async def waiting(server: RedisServer, waits: int) -> None:
    """So many connections wait for something."""

    async def there() -> bool:
        return f"blocked_clients:{waits}\r" in server.command("INFO", "clients").decode()

    await until(there)


async def run(rig: Rig, numbers: Iterable[int], **changes: Any) -> list[SteeredRun]:
    """The runs of new jobs with these numbers, all of them begun."""
    numbers = list(numbers)
    for number in numbers:
        await rig.queue.submit(a_job(number, **changes))
    return [await rig.running(number) for number in numbers]


def interactive_came_elsewhere(server: RedisServer) -> None:
    """What a claim of another worker notes that was given interactive work."""
    server.command("HSET", keys.fair(POOL), "u", int(time.time() * 1000))


def rings(server: RedisServer) -> tuple[int, int]:
    """Rings for interactive work, and for other."""
    return server.command("LLEN", keys.urgent_bell(POOL)), server.command("LLEN", keys.bell(POOL))


async def test_kept_slots_are_there_for_interactive_work_at_once_and_not_for_other(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, **KEEPING) as rig:
        await run(rig, [1])
        for number in range(10, 20):
            await rig.queue.submit(a_job(number, **BATCH))
        await run(rig, [2])
        await rig.running(14)
        assert rig.worker.free == 1
        assert (await rig.state(14), await rig.state(15)) == (State.RUNNING, State.QUEUED)


async def test_a_ring_for_other_work_stays_for_others_where_slots_are_kept(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, **KEEPING) as rig:
        await run(rig, range(1, 7))
        await rig.queue.submit(a_job(10, **BATCH))
        await until(lambda: _is(rig.worker._hearing.unheard == DEAF))
        async with a_worker(redis_server.url, **KEEPING, name="other") as other:
            await other.running(10)
        assert job_id(10) not in rig.runs


async def test_a_worker_that_heard_what_it_must_hold_back_has_another_called(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, **KEEPING) as rig:
        await run(rig, range(1, 7), **BATCH)
        await waiting(redis_server, WAITS_OF_A_WORKER)
        async with a_worker(redis_server.url, **KEEPING, name="other") as other:
            await waiting(redis_server, 2 * WAITS_OF_A_WORKER)
            interactive_came_elsewhere(redis_server)
            await rig.queue.submit(a_job(10, **BATCH))  # the one that has waited longest hears it
            await other.running(10)
            assert job_id(10) not in rig.runs


async def test_what_a_full_pool_held_back_hangs_at_the_bell_and_wakes_nobody_in_vain(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url, **KEEPING) as rig:
        await run(rig, range(1, 7))
        await rig.queue.submit(a_job(10, **BATCH))
        await until(lambda: _is(rig.worker._hearing.unheard == DEAF))
        for number in (7, 8):
            await run(rig, [number])
        assert rings(redis_server) == (0, 1)
        assert await rig.state(10) is State.QUEUED


@pytest.mark.parametrize("how", ["settled", "given back"])
async def test_what_was_held_back_begins_as_soon_as_a_slot_more_is_free(redis_server: RedisServer, how: str) -> None:
    end = None if how == "settled" else GiveBack(Failure("upstream_unavailable", "later"), delay_ms=60_000)
    async with a_worker(redis_server.url, **KEEPING) as rig:
        first, *_ = await run(rig, range(1, 7))
        for number in (10, 11):
            await rig.queue.submit(a_job(number, **BATCH))
        redis_server.command("DEL", keys.bell(POOL))
        first._end = end
        first.go_on.set()
        await rig.running(10)
        assert job_id(11) not in rig.runs


@pytest.mark.parametrize("options", [KEEPING_NONE, KEEPING], ids=["none kept", "some kept"])
async def test_a_full_worker_that_is_woken_for_nothing_still_looks_when_a_slot_is_free(
    redis_server: RedisServer, options: dict[str, Any]
) -> None:
    async with a_worker(redis_server.url, **options) as rig:
        runs = await run(rig, range(1, 9))
        await rig.queue.submit(a_job(10, **BATCH))
        rig.worker.wake()
        await until(lambda: _is(not rig.worker._hearing.wanted.is_set()))
        redis_server.command("DEL", keys.bell(POOL))
        for one in runs[:3]:
            one.go_on.set()
        await rig.running(10)


async def test_a_worker_whose_slots_are_kept_no_longer_hears_other_work_again(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, **KEEPING) as rig:
        first, *_ = await run(rig, range(1, 7))
        await rig.queue.ring(POOL, urgent=False)  # for nothing
        await until(lambda: _is(rig.worker._hearing.unheard == DEAF))
        first.go_on.set()
        await until(lambda: _is(not rig.worker._hearing.kept))
        await rig.queue.submit(a_job(10, **BATCH))
        await rig.running(10)


async def test_kept_slots_are_free_for_all_once_the_half_minute_is_over(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, **IMPATIENT) as rig:
        await run(rig, range(1, 7))
        await rig.queue.submit(a_job(10, **BATCH))
        await until(lambda: _is(rig.worker._hearing.unheard == DEAF))
        assert await rig.state(10) is State.QUEUED
        redis_server.command("HINCRBY", keys.fair(POOL), "u", -KEPT_AFTER_MS)
        await rig.running(10)
        # And what comes now is heard, not only found.
        await until(lambda: _is(not rig.worker._hearing.kept))
        await run(rig, [11], **BATCH)


@pytest.mark.parametrize(
    ("bell", "element", "left"),
    [
        (keys.urgent_bell(POOL), 1, (1, 0)),
        (keys.bell(POOL), 1, (0, 1)),
        (keys.worker_bell(POOL, "w1"), 0, (1, 0)),
        (keys.worker_bell(POOL, "w1"), 2, (0, 1)),
    ],
    ids=["urgent", "other", "own, urgent", "own, other"],
)
async def test_a_full_worker_passes_a_ring_on_to_the_bell_of_its_work(
    redis_server: RedisServer, bell: str, element: int, left: tuple[int, int]
) -> None:
    async with a_worker(redis_server.url, concurrency=1, lease_s=90, bell_wait_s=60) as rig:
        await waiting(redis_server, WAITS_OF_A_WORKER)
        rig.worker.allow_pick_jobs = False  # as if its slot had gone while it waits
        redis_server.command("RPUSH", bell, element)
        await waiting(redis_server, WAITS_OF_A_WORKER - 1)
        await until(lambda: _is(rings(redis_server) == left))


async def _is(state: bool) -> bool:
    return state
