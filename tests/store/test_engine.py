"""The engine on a real store: how jobs come, end, are cancelled, given back, and never lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from common.clock import SystemClock
from common.contracts import Failure, OnInterrupt, Outcome, State
from common.errors import StoreUnavailable
from common.queue import Cap, Claim, Queue, Settlement
from common.store import Store
from common.stream import StreamStore, Tokens
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import ALL_LANES, POOL, a_job, job_id
from workers.engine import Duties, EngineOptions, GiveBack, PoolWorker
from workers.runs import Unseen


class SteeredRun(Unseen):
    """A run that ends as the test says, when the test says."""

    def __init__(self, claim: Claim, end: Settlement | GiveBack | None) -> None:
        self.claim = claim
        self.seen = self.muted = False
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self._end = end

    @property
    def may_restart(self) -> bool:
        return not self.seen

    def mute(self) -> None:
        self.muted = True

    async def perform(self) -> Settlement | GiveBack:
        self.started.set()
        if self._end is None:
            await self.go_on.wait()
        return self._end or Settlement(Outcome(State.SUCCEEDED), result=b"{}")

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        return Settlement(Outcome(status, failure=failure))


class BrokenRun(SteeredRun):
    """A run with a mistake in it."""

    async def perform(self) -> Settlement | GiveBack:
        raise ZeroDivisionError


class Rig:
    """A worker and everything around it."""

    def __init__(
        self, url: str, options: EngineOptions, *, end: Settlement | GiveBack | None, kept: int = 0, name: str = "w"
    ) -> None:
        self.store = Store.from_url(url)
        self.queue = Queue(self.store, kept_slots=kept)
        self.streams = StreamStore(self.store)
        self.runs: dict[str, SteeredRun] = {}
        self._end = end
        self.kind: type[SteeredRun] = SteeredRun
        self._names = (f"{name}{number}" for number in itertools.count(1))
        self.caps: list[Cap] = []
        self.preempted: list[str] = []
        self.worker = self.make(options)
        self.task: asyncio.Task[None] | None = None

    def make(self, options: EngineOptions) -> PoolWorker:
        return PoolWorker(
            self.store,
            self.queue,
            SystemClock(),
            Duties(
                new_id=lambda: next(self._names),
                lanes={POOL: lambda: ALL_LANES},
                begin=self.begin,
                info=dict,
                caps={POOL: lambda: self.caps},
                preempted=lambda claim: self.preempted.append(claim.job.id),
            ),
            options,
            handle_signals=False,
        )

    def begin(self, claim: Claim) -> SteeredRun:
        self.runs[claim.job.id] = self.kind(claim, self._end)
        return self.runs[claim.job.id]

    async def running(self, number: int) -> SteeredRun:
        async def claimed() -> bool:
            return job_id(number) in self.runs

        await until(claimed)
        run = self.runs[job_id(number)]
        await run.started.wait()
        return run

    async def state(self, number: int) -> State | None:
        record = await self.queue.get(job_id(number))
        return record.state if record else None

    async def ends_as(self, number: int, state: State) -> None:
        async def there() -> bool:
            # A connection that broke with the server is found out by the next call.
            with suppress(StoreUnavailable):
                return await self.state(number) is state
            return False

        await until(there)


@asynccontextmanager
async def a_worker(
    url: str, *, end: Settlement | GiveBack | None = None, kept: int = 0, name: str = "w", **options: Any
) -> AsyncGenerator[Rig]:
    few: dict[str, Any] = {"concurrency": 4, "lease_s": 1, "drain_s": 1, **options}
    rig = Rig(url, EngineOptions(**few), end=end, kept=kept, name=name)
    rig.task = asyncio.create_task(rig.worker.async_run())
    try:
        yield rig
    finally:
        for run in rig.runs.values():
            run.go_on.set()
        rig.task.cancel()
        await asyncio.gather(rig.task, return_exceptions=True)
        await rig.worker.close()
        await rig.store.close()


async def test_a_submitted_job_is_run_and_settled(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        (await rig.running(1)).go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)
        assert await rig.queue.held(POOL, rig.worker.id) == {}


async def test_a_worker_takes_no_more_than_its_slots_and_the_next_when_one_is_free(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url, concurrency=2) as rig:
        for number in range(1, 5):
            await rig.queue.submit(a_job(number))
        await rig.running(1)
        await rig.running(2)
        assert rig.worker.free == 0
        assert len(rig.runs) == 2
        rig.runs[job_id(1)].go_on.set()
        await rig.running(3)
        assert await rig.state(4) is State.QUEUED


async def test_an_order_to_cancel_reaches_a_running_job(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        await rig.queue.cancel(job_id(1))
        await rig.ends_as(1, State.CANCELLED)


async def test_a_worker_that_was_reaped_lets_go_and_works_on_under_a_new_name(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        first = await rig.running(1)
        before = rig.worker.id
        # What a reaper does to a worker whose lease lapsed.
        await rig.store.command("ZADD", f"hr:{{{POOL}}}:workers", 0, before)
        await rig.queue.release(POOL, job_id(1), before, first.claim.fence, failed=True)

        async def again() -> bool:
            return rig.runs[job_id(1)] is not first

        await until(again)
        second = await rig.running(1)
        assert rig.worker.id != before
        assert second.claim.fence > first.claim.fence
        second.go_on.set()
        await rig.ends_as(1, State.SUCCEEDED)


async def test_a_failed_attempt_comes_back_until_its_attempts_are_used_up_and_then_is_dead(
    redis_server: RedisServer,
) -> None:
    back = GiveBack(Failure("upstream_unreachable", "nobody there"))
    async with a_worker(redis_server.url, end=back) as rig:
        await rig.queue.submit(a_job(1, max_attempts=3))
        await rig.ends_as(1, State.FAILED)
        record = await rig.queue.get(job_id(1))
        assert record is not None and record.outcome is not None and record.outcome.failure is not None
        assert record.attempt == 3
        assert record.outcome.failure.code == "upstream_unreachable"
        assert redis_server.command("ZCARD", f"hr:{{{POOL}}}:dead") == 1


async def test_a_drained_job_goes_back_without_a_failure(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1))
        await rig.running(1)
        rig.worker.allow_pick_jobs = False
        rig.worker.tasks[job_id(1)].cancel()
        await rig.ends_as(1, State.QUEUED)
        record = await rig.queue.get(job_id(1))
        assert record is not None
        assert (record.attempt, record.failures) == (1, 0)


async def test_a_drained_job_whose_tokens_were_read_ends_as_interrupted(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        await rig.queue.submit(a_job(1, on_interrupt=OnInterrupt.FAIL))
        run = await rig.running(1)
        await rig.streams.append(POOL, rig.worker.id, [Tokens(job_id(1), run.claim.fence, 1, b'{"choices":[]}')])
        rig.worker.allow_pick_jobs = False
        rig.worker.tasks[job_id(1)].cancel()
        await rig.ends_as(1, State.FAILED)
        record = await rig.queue.get(job_id(1))
        assert record is not None and record.outcome is not None and record.outcome.failure is not None
        assert record.outcome.failure.code == "upstream_interrupted"


async def test_a_job_whose_claim_was_answered_into_the_void_is_put_back(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.worker.allow_pick_jobs = False
        await rig.queue.submit(a_job(1))
        lost = await rig.queue.claim(POOL, rig.worker.id, most=1, lanes=ALL_LANES)
        assert lost is not None and len(lost) == 1
        await rig.worker._return_unknown()
        assert await rig.state(1) is State.QUEUED
        assert await rig.queue.held(POOL, rig.worker.id) == {}


async def test_no_worker_ends_because_redis_did(own_server: RedisServer) -> None:
    async with a_worker(own_server.url) as rig:
        await rig.queue.submit(a_job(1))
        run = await rig.running(1)
        own_server.kill()
        run.go_on.set()
        own_server.start()
        await rig.ends_as(1, State.SUCCEEDED)
        await rig.queue.submit(a_job(2))
        (await rig.running(2)).go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)


async def test_a_run_that_breaks_is_a_failed_job_and_the_worker_goes_on(redis_server: RedisServer) -> None:
    async with a_worker(redis_server.url) as rig:
        rig.kind = BrokenRun
        await rig.queue.submit(a_job(1))
        await rig.ends_as(1, State.FAILED)
        rig.kind = SteeredRun
        await rig.queue.submit(a_job(2))
        (await rig.running(2)).go_on.set()
        await rig.ends_as(2, State.SUCCEEDED)
