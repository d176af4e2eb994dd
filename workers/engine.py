"""arq's Worker with our claim, lease and settle: everything that Headrace knows of arq's insides is in this file.

arq keeps what it is good at: the job's task, time-outs, hooks, abort bookkeeping, cron, signals. Replaced are how jobs
come (`_poll_iteration`: one script, woken by a doorbell) and how they end (`finish_job`: settle or release).
`tests/unit/test_arq_insides.py` fails where a newer arq changes what this relies on.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func

from common import keys
from common.clock import Clock
from common.contracts import Failure, JsonObject, Outcome, State
from common.errors import HeadraceError, LaterError
from common.queue import Claim, Queue, Released, Settled, Settlement
from common.store import BlockingReader, Store

log = structlog.get_logger(__name__)

BELL_WAIT_S: Final = 1.0
RETRY_STORE_S: Final = 0.2
LAST_STEPS_S: Final = 3.0
FUNCTION: Final = "inference"
Answer = TypeVar("Answer", Settled, Released)


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The job is to run again after a delay; `failure` is its end if it may not. `counts`: as a failed attempt.

    `backend`: where it failed, if anywhere.
    """

    failure: Failure
    delay_ms: int = 0
    counts: bool = True
    backend: str = ""


class Run(Protocol):
    """One attempt at one job."""

    claim: Claim

    async def perform(self) -> Settlement | GiveBack:
        """Works the job to its end, or says that it should run again."""
        ...

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """How the job ends when it was stopped from outside: with what was produced so far."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits and times of one worker process."""

    concurrency: int = 64
    lease_s: float = 15
    drain_s: float = 20


@dataclass(frozen=True, slots=True)
class Duties:
    """What a worker is asked to do, and who it is.

    `new_id` makes a worker id that nobody had before. `lanes` tells for each pool which of its lanes can be served now.
    `begin` makes a claimed job's run. `info` is shown by `/workers`.
    """

    new_id: Callable[[], str]
    lanes: Mapping[str, Callable[[], Sequence[str]]]
    begin: Callable[[Claim], Run]
    info: Callable[[], JsonObject]


_claimed: contextvars.ContextVar[Claim | None] = contextvars.ContextVar("claimed", default=None)


class _Prologue:
    """Answers the pipeline that arq's `run_job` opens with, from what the claim already told: a round trip saved.

    The commands are queued there (GET job, INCR tries, EXPIRE, ZREM abort) and their replies expected in that order.
    """

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    async def __aenter__(self) -> _Prologue:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def get(self, *_: object) -> None: ...
    def incr(self, *_: object) -> None: ...
    def expire(self, *_: object) -> None: ...
    def zrem(self, *_: object) -> None: ...

    async def execute(self) -> list[Any]:
        _claimed.set(None)
        return [self._claim, self._claim.attempt, True, 0]


class _EngineRedis(ArqRedis):
    """arq's client; only the first pipeline of a claimed job is ours."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        claim = _claimed.get()
        return super().pipeline(transaction, shard_hint) if claim is None else _Prologue(claim)


def _describe(claim: Claim) -> JsonObject:
    """The claim in the words of arq's stored jobs: try, function, arguments, enqueue time. No text of the job."""
    return {"t": None, "f": FUNCTION, "a": (), "k": {}, "et": claim.created_ms}


class PoolWorker(Worker):
    """Claims jobs of its pools, runs them, ends them; holds one lease in each pool."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        clock: Clock,
        duties: Duties,
        options: EngineOptions,
        *,
        handle_signals: bool = True,
    ) -> None:
        super().__init__(
            [func(self._inference, name=FUNCTION, keep_result=0, max_tries=1_000_000)],
            redis_pool=_EngineRedis(store.pool),
            poll_delay=0,
            max_jobs=options.concurrency,
            job_timeout=None,  # pyright: ignore[reportArgumentType]  # the run keeps the job's own deadline
            keep_result=0,
            allow_abort_jobs=True,
            job_completion_wait=max(1, int(options.drain_s)),
            handle_signals=handle_signals,
            job_deserializer=_describe,  # pyright: ignore[reportArgumentType]  # what it gets is the claim itself
            log_results=False,
        )
        self._store = store
        self._queue = queue
        self._clock = clock
        self._duties = duties
        self._lanes = duties.lanes
        self.id = duties.new_id()
        self._options = options
        self._runs: dict[str, Run] = {}
        self._ends: dict[str, Settlement | GiveBack] = {}
        self._settling: set[str] = set()
        self._fenced: set[str] = set()
        self._ordered: set[str] = set()
        self._broken: dict[str, Failure] = {}
        self._next: dict[str, Claim] = {}
        self._wanted = asyncio.Event()
        self._freed = asyncio.Event()
        self._more_waits = False
        self._doubtful = False
        self._deaf = False
        self._draining = False
        self._helpers: list[asyncio.Task[None]] = []
        self._last_cron_s = 0.0

    # --- life -------------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Registers (waiting for Redis as long as it takes), then arq's own loop."""
        await self._register()
        self._helpers = [
            asyncio.create_task(self._keep(self._beat), name="beat"),
            asyncio.create_task(self._keep(self._listen_bells), name="bells"),
            asyncio.create_task(self._keep(self._listen_control), name="control"),
        ]
        self._wanted.set()
        log.info("worker.ready", worker=self.id, pools=list(self._lanes), concurrency=self._options.concurrency)
        while True:
            await self._poll_iteration()

    async def close(self) -> None:
        """Lets the last jobs end, signs off, closes arq's connections.

        What can't be settled because the store is away is left to the reaper: a worker told to stop does stop.
        """
        if self.tasks:
            _, stuck = await asyncio.wait(list(self.tasks.values()), timeout=LAST_STEPS_S)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        for pool in self._lanes:
            with suppress(HeadraceError):
                await self._queue.leave(pool, self.id)
        self._pool = None

    def handle_sig_wait_for_completion(self, signum: signal.Signals) -> None:
        """The first signal drains: nothing new is taken and what runs may end; the second puts it back at once."""
        if self._draining:
            self.handle_sig(signum)
            return
        self._draining = True
        log.info("worker.draining", worker=self.id, running=len(self._runs))
        super().handle_sig_wait_for_completion(signum)

    @property
    def running(self) -> int:
        """Jobs that occupy a slot."""
        return len(self._runs) - len(self._settling)

    @property
    def free(self) -> int:
        """Slots that could take a job now."""
        return self._options.concurrency - self.running if self.allow_pick_jobs else 0

    async def _keep(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Runs a loop again after each trouble with the store: no worker ends because Redis did."""
        while True:
            try:
                await loop()
            except HeadraceError as error:
                log.warning("worker.store_trouble", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        while True:
            try:
                for pool in self._lanes:
                    await self._queue.beat(
                        pool, self.id, lease_s=self._options.lease_s, info=self._show(), register=True
                    )
                return
            except LaterError as error:
                log.warning("worker.waiting_for_store", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._options.lease_s / 3)
            for pool in self._lanes:
                alive = await self._queue.beat(pool, self.id, lease_s=self._options.lease_s, info=self._show())
                if not alive:
                    await self._start_anew()
                    break
            # A bell or a claim's answer may have been lost, and an empty lane's jobs may have become servable.
            self._doubtful = True
            self._wanted.set()

    async def _start_anew(self) -> None:
        """This worker was given up: its jobs are others' now. It lets go of them and registers under a new name."""
        log.error("worker.fenced", worker=self.id, jobs=len(self._runs))
        for job_id in list(self._runs):
            self.abandon(job_id)
        self.id = self._duties.new_id()
        await self._register()

    def _show(self) -> JsonObject:
        return {**self._duties.info(), "running": len(self._runs), "concurrency": self._options.concurrency}

    # --- how jobs come ------------------------------------------------------------------------------------------------

    async def _poll_iteration(self) -> None:
        await self._wanted.wait()
        self._wanted.clear()
        try:
            if self._doubtful:
                await self._return_unknown()
            for pool, lanes in self._lanes.items():
                await self._claim(pool, lanes())
        except HeadraceError as error:
            log.warning("worker.store_trouble", error=error.failure.message)
            await self._clock.sleep(RETRY_STORE_S)
            self._doubtful = True
            self._wanted.set()
        if self._clock.monotonic_s() - self._last_cron_s >= BELL_WAIT_S:
            self._last_cron_s = self._clock.monotonic_s()
            await self.heart_beat()

    async def record_health(self) -> None:
        """Does nothing: the lease shows how a worker does, and arq's own call ended this loop when Redis went away."""

    async def _claim(self, pool: str, lanes: Sequence[str]) -> None:
        while self.free > 0 and lanes:
            most = self.free
            claims = await self._queue.claim(pool, self.id, most=most, lanes=lanes)
            if claims is None:
                return  # no lease: the next beat finds out and starts anew
            for claim in claims:
                self._start(claim)
            self._more_waits = len(claims) == most
            if not self._more_waits:
                return

    def wake(self) -> None:
        """Has the worker look for work: what kept it from taking some may be over."""
        self._wanted.set()

    def _start(self, claim: Claim) -> None:
        job_id = claim.job.id
        if job_id in self._runs:
            # It came back to us while an earlier attempt here, which is others' by now, is still letting go of it.
            self._next[job_id] = claim
            self.abandon(job_id)
            return
        self._runs[job_id] = self._duties.begin(claim)
        self.job_counter += 1
        context = contextvars.copy_context()
        context.run(_claimed.set, claim)
        task = self.loop.create_task(self.run_job(job_id, claim.created_ms), context=context)
        self.tasks[job_id] = task
        task.add_done_callback(lambda done: self._ended(job_id, done))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        self.job_counter -= 1
        if self.tasks.get(job_id) is task:
            del self.tasks[job_id]
        self._runs.pop(job_id, None)
        self._ends.pop(job_id, None)
        self._settling.discard(job_id)
        self._fenced.discard(job_id)
        self._ordered.discard(job_id)
        self._broken.pop(job_id, None)
        self.aborting_tasks.discard(job_id)
        self._freed.set()
        if (claim := self._next.pop(job_id, None)) is not None and self.allow_pick_jobs:
            self._start(claim)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker.job_task_failed", job_id=job_id, exc_info=error)

    async def _return_unknown(self) -> None:
        """Puts back jobs that Redis counts as ours but that nobody here works at: the claim's answer was lost.

        A claim that nobody waits for any more may be carried out much later, so this is looked into again and again.
        """
        self._doubtful = False
        for pool in self._lanes:
            held = await self._queue.held(pool, self.id)
            for job_id, fence in held.items():
                if not self._works_at(job_id, fence):
                    await self._put_back(pool, job_id, fence)
            await self._obey_unheard(pool, held)

    def _works_at(self, job_id: str, fence: int) -> bool:
        run, claim = self._runs.get(job_id), self._next.get(job_id)
        return (run is not None and run.claim.fence == fence) or (claim is not None and claim.fence == fence)

    async def _put_back(self, pool: str, job_id: str, fence: int) -> None:
        log.warning("worker.job_unknown", job_id=job_id)
        code = await self._queue.release(pool, job_id, self.id, fence, failed=True)
        ending = _ending(code, Failure("attempts_exhausted", "Every attempt at the job was lost before it began."))
        if ending is not None:
            end = Settlement(Outcome(ending[0], failure=ending[1]), dead=code is Released.ATTEMPTS_USED_UP)
            await self._queue.settle(pool, job_id, self.id, fence, end)

    async def _obey_unheard(self, pool: str, job_ids: Iterable[str]) -> None:
        """Carries out orders that may have been sent while nobody listened."""
        if self._deaf:
            for job_id in await self._queue.cancelling(pool, job_ids):
                if job_id in self._runs and job_id not in self._ordered:
                    self._stop(job_id)
            self._deaf = False

    async def _listen_bells(self) -> None:
        bells = {keys.bell(pool): pool for pool in self._lanes}
        async with self._store.blocking() as reader:
            while True:
                if self.free <= 0:
                    self._freed.clear()
                    await self._freed.wait()
                    continue
                rung = await reader.command("BLPOP", *bells, BELL_WAIT_S, wait_s=BELL_WAIT_S)
                if rung is not None and self.free <= 0:
                    # The slots went to others meanwhile: the call is for a worker that has one.
                    await self._queue.ring(bells[rung[0].decode()])
                    continue
                self._wanted.set()

    # --- orders -------------------------------------------------------------------------------------------------------

    async def _listen_control(self) -> None:
        async with self._store.blocking() as reader:
            # An order that went to a connection that had broken is lost.
            self._deaf = self._doubtful = True
            self._wanted.set()
            while True:
                await self._obey(reader)

    async def _obey(self, reader: BlockingReader) -> None:
        lists = [keys.control(pool, self.id) for pool in self._lanes]
        order = await reader.command("BLPOP", *lists, BELL_WAIT_S, wait_s=BELL_WAIT_S)
        if order is None:
            return
        verb, job_id, fence = order[1].decode().split(" ")
        run = self._runs.get(job_id)
        if verb == "cancel" and run is not None and run.claim.fence == int(fence):
            self._stop(job_id)

    def _stop(self, job_id: str) -> None:
        """Cancels a job's task in the way that makes arq count it as aborted, not as to be run again."""
        self._ordered.add(job_id)
        self.aborting_tasks.add(job_id)
        task = self.job_tasks.get(job_id)
        if task is not None:
            task.cancel()

    def abandon(self, job_id: str) -> None:
        """Lets go of a job that another worker owns by now: it is neither settled nor released."""
        if job_id in self._runs:
            self._fenced.add(job_id)
            self._stop(job_id)

    def fail(self, job_id: str, code: str) -> None:
        """Ends a job of ours whose stream is gone: nobody could ever read what it still says."""
        if job_id in self._runs:
            self._broken[job_id] = Failure(code, "The job's stream was lost.")
            self._stop(job_id)

    # --- how jobs run and end -----------------------------------------------------------------------------------------

    async def _inference(self, ctx: dict[Any, Any]) -> None:
        job_id: str = ctx["job_id"]
        if job_id in self._ordered:  # the order came before the task was there to be cancelled
            raise asyncio.CancelledError
        self._ends[job_id] = await self._runs[job_id].perform()

    async def finish_job(  # pyright: ignore[reportIncompatibleMethodOverride]  # arq's bookkeeping is of no use here
        self, job_id: str, finish: bool, *_: object
    ) -> None:
        """Settles or releases instead of arq's bookkeeping. `finish` is False only where a drain cancelled the task."""
        run = self._runs[job_id]
        if job_id in self._fenced:
            return
        end = self._ends.get(job_id)
        if end is None and finish:
            end = await self._explain(run)
        elif end is None:
            failure = Failure("upstream_interrupted", "The worker was stopped in mid-answer; ask again.")
            await self._give_back(run, GiveBack(failure), failed=False)
            return
        if isinstance(end, GiveBack):
            await self._give_back(run, end, failed=end.counts)
        else:
            await self._settle(run, end)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """arq gave up before our code ran; the job must not be lost."""
        await self.finish_job(job_id, True)

    async def _explain(self, run: Run) -> Settlement:
        """The end of a run that left none: it was cancelled by order, or it broke (arq has logged how)."""
        if (failure := self._broken.pop(run.claim.job.id, None)) is not None:
            return await run.break_off(State.FAILED, failure)
        if run.claim.job.id in self._ordered:
            return await run.break_off(State.CANCELLED, Failure("cancelled", "The job was cancelled."))
        return await run.break_off(State.FAILED, Failure("internal_error", "Something went wrong on our side."))

    async def _give_back(self, run: Run, back: GiveBack, *, failed: bool) -> None:
        claim = run.claim
        pool, job_id = claim.job.pool, claim.job.id
        code = await self._persist(
            lambda: self._queue.release(
                pool, job_id, self.id, claim.fence, failed=failed, delay_ms=back.delay_ms
            )
        )
        end = await _end_instead(run, code, back.failure)
        if end is not None:
            await self._settle(run, end)

    async def _settle(self, run: Run, end: Settlement) -> None:
        claim = run.claim
        self._settling.add(claim.job.id)
        self._freed.set()
        if self._more_waits:
            self._wanted.set()  # the claim for the freed slot goes in the same trip as the settle
        code = await self._persist(lambda: self._queue.settle(claim.job.pool, claim.job.id, self.id, claim.fence, end))
        if not code.done:
            log.warning("worker.settle_refused", job_id=claim.job.id, code=code.name)

    async def _persist(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        """The step's answer, tried until the store takes it: the scripts refuse it once the job is another's."""
        while True:
            try:
                return await step()
            except LaterError as error:
                log.warning("worker.store_unavailable", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)


async def _end_instead(run: Run, code: Released, failure: Failure) -> Settlement | None:
    """The end of a job that may not run again, or None where it will (or is no longer ours)."""
    ending = _ending(code, failure)
    if ending is None:
        return None
    end = await run.break_off(*ending)
    return dataclasses.replace(end, dead=True) if code is Released.ATTEMPTS_USED_UP else end


def _ending(code: Released, failure: Failure) -> tuple[State, Failure] | None:
    """How a job ends that was not put back, and why; None where it was, or is no longer ours."""
    match code:
        case Released.PUT_BACK | Released.REFUSED:
            return None
        case Released.INTERRUPTED:
            text = "The answer broke off after its first tokens; ask again."
            return State.FAILED, Failure("upstream_interrupted", text)
        case Released.ATTEMPTS_USED_UP:
            return State.FAILED, failure
        case Released.CANCELLED:
            return State.CANCELLED, Failure("cancelled", "The job was cancelled.")
        case Released.EXPIRED:
            return State.EXPIRED, Failure("deadline_exceeded", "The job's deadline passed.")
