"""The engine under unlucky timing: answers and orders that are lost, attempts that overlap, a store that stays away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.contracts import OnInterrupt, State
from common.queue import Claim, Settlement
from common.stream import Tokens
from tests.store.test_engine import Rig, SteeredRun, a_worker
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import ALL_LANES, POOL, a_job, job_id
from workers.engine import GiveBack

pytestmark = pytest.mark.either_server


async def lost_claim(rig: Rig) -> Claim:
    """A job that the store counts as this worker's, though the worker never heard of it."""
    claims = await rig.queue.claim(POOL, rig.worker.id, most=1, lanes=ALL_LANES)
    assert claims is not None and len(claims) == 1
    return claims[0]


async def test_a_claim_carried_out_after_its_worker_gave_up_waiting_is_put_back_by_a_later_beat(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        # What it looks into when it begins is done; from here on only its beats make it look.
        await until(lambda: _is(bool(rig.worker._helpers) and not rig.worker._doubtful))
        await rig.queue.submit(a_job(1))
        # A server that was frozen carries out, when it thaws, what was sent to it before.
        await lost_claim(rig)
        await rig.ends_as(1, State.QUEUED)
        record = await rig.queue.get(job_id(1))
        assert record is not None
        assert (record.attempt, record.failures) == (1, 1)


@pytest.mark.parametrize(
    ("options", "cancelled", "state"),
    [
        ({"max_attempts": 1}, False, State.FAILED),
        ({}, True, State.CANCELLED),
        ({"on_interrupt": OnInterrupt.FAIL}, False, State.FAILED),
    ],
)
async def test_a_lost_claims_job_that_may_not_run_again_ends(
    redis_server: RedisServer, options: dict[str, Any], cancelled: bool, state: State
) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        await rig.queue.submit(a_job(1, **options))
        claim = await lost_claim(rig)
        if cancelled:
            await rig.store.command("HSET", f"hr:{{{POOL}}}:job:{job_id(1)}", "cancel", 1)
        if "on_interrupt" in options:
            await rig.streams.append(POOL, rig.worker.id, [Tokens(job_id(1), claim.fence, 1, b"{}")])
        await rig.ends_as(1, state)
        assert await rig.queue.held(POOL, rig.worker.id) == {}


async def test_jobs_that_are_worked_at_are_never_put_back(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        run = await rig.running(1)
        await rig.worker._return_unknown()
        assert await rig.queue.held(POOL, rig.worker.id) == {job_id(1): run.claim.fence}


async def test_an_order_whose_delivery_was_lost_is_obeyed_when_the_worker_listens_again(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        # As if the order had been handed to a connection that was breaking.
        await rig.store.command("HSET", f"hr:{{{POOL}}}:job:{job_id(1)}", "cancel", 1)
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await rig.ends_as(1, State.CANCELLED)


async def test_a_job_that_cannot_be_read_becomes_a_dead_letter_and_its_worker_goes_on(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        specs = (b"no JSON", b"{}", b'{"a_field":"of a later version","priority":1}', b'"\\xff"')
        for number, spec in enumerate(specs, 2):
            await rig.queue.submit(a_job(number))
            await rig.store.command("HSET", f"hr:{{{POOL}}}:job:{job_id(number)}", "spec", spec)
        await rig.queue.submit(a_job(1))
        rig.worker.allow_pick_jobs = True
        (await rig.running(1)).go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)
        states = [redis_server.command("HGET", f"hr:{{{POOL}}}:job:{job_id(n)}", "state") for n in (2, 3, 4, 5)]
        assert states == [b"failed"] * 4
        assert redis_server.command("ZCARD", f"hr:{{{POOL}}}:dead") == 4
        assert await rig.queue.held(POOL, rig.worker.id) == {}


class ReluctantRun(SteeredRun):
    """A run that takes its time to let go when it is cancelled."""

    def __init__(self, claim: Claim, end: Settlement | GiveBack | None) -> None:
        super().__init__(claim, end)
        self.cancelled, self.let_go = asyncio.Event(), asyncio.Event()

    async def perform(self) -> Settlement | GiveBack:
        try:
            return await super().perform()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.let_go.wait()
            raise


async def test_a_worker_that_was_given_up_lets_go_of_its_jobs_though_nobody_has_them_yet(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.kind = ReluctantRun
        await rig.queue.submit(a_job(1))
        first = await rig.running(1)
        assert isinstance(first, ReluctantRun)
        await rig.store.command("ZADD", f"hr:{{{POOL}}}:workers", 0, rig.worker.id)
        await first.cancelled.wait()
        first.let_go.set()


async def test_a_job_that_comes_back_while_its_first_attempt_still_lets_go_is_run_once_that_is_gone(
    redis_server: RedisServer,
) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.kind = ReluctantRun
        await rig.queue.submit(a_job(1))
        first = await rig.running(1)
        assert isinstance(first, ReluctantRun)
        before = rig.worker.id
        await rig.store.command("ZADD", f"hr:{{{POOL}}}:workers", 0, before)
        await rig.queue.release(POOL, job_id(1), before, first.claim.fence, failed=True)
        await first.cancelled.wait()

        async def claimed_again() -> bool:
            return rig.worker.id != before and bool(await rig.queue.held(POOL, rig.worker.id))

        await until(claimed_again)
        rig.kind = SteeredRun
        first.let_go.set()
        await until(lambda: _is(rig.runs[job_id(1)] is not first))
        second = await rig.running(1)
        # What was noted against the first attempt is not held against the second.
        second.go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)
        assert await rig.queue.held(POOL, rig.worker.id) == {}


@pytest.mark.lengthy
async def test_a_worker_that_closes_while_the_store_is_away_does_not_wait_for_it(own_server: RedisServer) -> None:
    async with a_worker(own_server.url) as rig:
        await rig.queue.submit(a_job(1))
        run = await rig.running(1)
        own_server.kill()
        run.go_on.set()
        await until(lambda: _is(bool(rig.worker._settling)))
        assert rig.task is not None
        rig.task.cancel()
        await asyncio.gather(rig.task, return_exceptions=True)
        await rig.worker.close()
        assert rig.worker.tasks == {}


async def _is(state: bool) -> bool:
    return state
