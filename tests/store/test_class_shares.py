"""Shares of classes: about a tenth of the slots for one that has waited long, however long its jobs take."""

from __future__ import annotations

from collections import Counter

import pytest

from common import keys
from common.contracts import Priority
from common.queue import Claim
from tests.store.sharing import fill, spent
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, job_id, number_of, rig


@pytest.mark.either_server
async def test_before_anything_has_ended_a_class_has_its_share_by_the_estimates(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, 0, 400, priority=Priority.BATCH, cost_tokens=100)
        r.later(60_000)
        await fill(r, 1_000, 1_900, cost_tokens=10)
        taken = [number_of(claim.job.id) for _ in range(1_000) for claim in await r.claim(1)]
        batch = sum(number < 1_000 for number in taken) * 100
        chat = sum(number >= 1_000 for number in taken) * 10
        assert 0.05 <= batch / (batch + chat) <= 0.13


@pytest.mark.either_server
async def test_a_lower_classes_share_is_trued_up_with_what_it_really_took(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        # Estimated at a thousand, ended with ten: by the estimate alone it would get a hundredth of its share.
        await fill(r, 0, 400, priority=Priority.BATCH, cost_tokens=1_000)
        r.later(60_000)
        await fill(r, 1_000, 1_900, cost_tokens=10)
        batch = 0
        for _ in range(1_000):
            [claim] = await r.claim(1)
            batch += number_of(claim.job.id) < 1_000
            await spent(r, claim, 10)
        assert 50 <= batch <= 130


def share_of_slots(began: list[tuple[int, int, int]], until_ms: int, since_ms: int) -> float:
    """The part of the slots' time that class 2 had of (class, began, ended)."""
    held = Counter[int]()
    for cls, from_ms, to_ms in began:
        held[cls] += max(0, min(to_ms, until_ms) - max(from_ms, since_ms))
    return held[2] / sum(held.values())


@pytest.mark.either_server
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("chat", "batch"),
    [
        pytest.param((1_000, 500), (1_000, 500), id="alike"),
        pytest.param((30_000, 300), (200, 2_000), id="batch slower per token"),
        pytest.param((200, 2_000), (30_000, 300), id="batch faster per token"),
        pytest.param((50, 200), (50, 8_000), id="batch longer", marks=pytest.mark.lengthy),
    ],
)
@pytest.mark.parametrize("slots", [1, pytest.param(8, marks=pytest.mark.lengthy)])
async def test_a_class_under_a_flood_of_higher_work_has_about_a_tenth_of_the_slots(
    redis_server: RedisServer, chat: tuple[int, int], batch: tuple[int, int], slots: int
) -> None:
    """Kinds of jobs are (cost in tokens, time in a slot in ms); the queue alone, its clock moved by hand."""
    kinds = {0: chat, 2: batch}
    async with rig(redis_server) as r:
        await r.worker(lease_s=100_000)
        for priority, number in ((Priority.INTERACTIVE, 90_000), (Priority.BATCH, 90_001)):
            await fill(r, number, 1, priority=priority, cost_tokens=kinds[priority][0])
            [claim] = await r.claim(1)
            r.later(kinds[priority][1])
            await spent(r, claim, claim.job.cost_tokens)
        await fill(r, 10_000, 400, priority=Priority.BATCH, cost_tokens=batch[0], tenant="b", deadline_in_ms=10**9)
        r.later(60_000)
        running: list[tuple[int, Claim]] = []
        began: list[tuple[int, int, int]] = []
        until_ms, number, now_ms = max(60_000, 40 * batch[1] // slots * 2), 0, 0
        while now_ms < until_ms:
            for due, claim in [one for one in running if one[0] <= now_ms]:
                await spent(r, claim, claim.job.cost_tokens)
                running.remove((due, claim))
            await fill(r, number, slots, cost_tokens=chat[0])
            number += slots
            for claim in await r.claim(slots - len(running)) if len(running) < slots else []:
                took_ms = kinds[int(claim.job.priority)][1]
                running.append((now_ms + took_ms, claim))
                began.append((int(claim.job.priority), now_ms, now_ms + took_ms))
            step_ms = min(due for due, _ in running) - now_ms
            now_ms += step_ms
            r.later(step_ms)
        assert 0.05 <= share_of_slots(began, until_ms, until_ms // 4) <= 0.2


async def test_an_attempt_that_gave_way_gives_its_classs_credit_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 1_000, 5, priority=Priority.BATCH, cost_tokens=100)
        r.later(60_000)
        await fill(r, 0, 40, cost_tokens=10)
        taken = {number_of(claim.job.id): claim for claim in await r.claim(12)}
        [number] = [number for number in taken if number >= 1_000]

        def credit() -> float:
            return float(redis_server.command("HGET", keys.fair(POOL), "c:2"))

        owed_ms = credit()
        await r.queue.release(POOL, job_id(number), "w", taken[number].fence, failed=False)
        assert credit() == pytest.approx(owed_ms + 100 * 10, abs=50)


async def test_old_work_behind_a_head_that_came_only_now_is_not_forgotten(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, 1_000, 50, priority=Priority.BATCH, tenant="deep", cost_tokens=10)
        r.later(60_000)
        await fill(r, 0, 300, cost_tokens=10)
        batch = 0
        for n in range(10):
            # Each of these has a tenant of its own, and so an earlier tag than what is left of the deep one's.
            await fill(r, 2_000 + n, 1, priority=Priority.BATCH, tenant=f"fresh{n}", cost_tokens=10)
            r.later(30)
            batch += sum(number >= 1_000 for number in await r.numbers(20))
        assert 15 <= batch <= 22


@pytest.mark.parametrize("ms", [10**12, -(10**12)])
async def test_neither_credit_nor_debt_of_a_class_is_without_bound(redis_server: RedisServer, ms: int) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=1_000)
        await fill(r, 1_000, 20, priority=Priority.BATCH)
        r.later(60_000)
        redis_server.command("HSET", keys.fair(POOL), "c:2", ms)
        await fill(r, 0, 20)
        await r.claim(4)
        assert abs(float(redis_server.command("HGET", keys.fair(POOL), "c:2"))) <= 3_600_000


async def test_a_class_that_was_served_for_want_of_higher_work_must_age_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, 1_000, 3, priority=Priority.BATCH)
        r.later(60_000)
        await fill(r, 0, 30)
        assert len(await r.numbers(33)) == 33
        await fill(r, 2_000, 3, priority=Priority.BATCH)
        await fill(r, 100, 60)
        assert await r.numbers(60) == list(range(100, 160))


async def test_how_long_jobs_take_is_learnt_from_those_that_ended(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        await fill(r, 0, 2, cost_tokens=10)
        means: list[list[float]] = []
        for took_ms in (1_000, 17_000):
            [claim] = await r.claim()
            r.later(took_ms)
            await spent(r, claim, 10)
            means.append([float(word) for word in redis_server.command("HGET", keys.fair(POOL), "m:0:m").split()])
        assert means == [[pytest.approx(1_000, abs=200), 10], [pytest.approx(2_000, abs=200), 10]]
