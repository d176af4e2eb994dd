"""arq's Worker with our claim, lease and settle: everything that Headrace knows of arq's insides is in this file.

arq keeps what it is good at: the job's task, time-outs, hooks, abort bookkeeping, cron, signals. Replaced are how jobs
come (`_poll_iteration`: one script, woken by a doorbell) and how they end (`finish_job`: settle or release).
`tests/unit/test_arq_insides.py` fails where a newer arq changes what this relies on.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func

from common import keys
from common.clock import Clock
from common.contracts import Failure, JsonObject, State
from common.errors import HeadraceError
from common.queue import Cap, Claim, PutBack, Queue, Settlement
from common.store import Store
from workers.endings import CANCELLED, LATE, RETRY_STORE_S, Endings
from workers.hearing import ROUND_S, Hearing
from workers.lease import Lease
from workers.orders import Order, Verb
from workers.preemption import moved, overdraft, who_gives_way, yielding
from workers.runs import Attempt, Duties, EngineOptions, GiveBack, Run, Stop

__all__ = ["Duties", "EngineOptions", "GiveBack", "PoolWorker", "Run"]

log = structlog.get_logger(__name__)

LAST_STEPS_S: Final = 3.0
FUNCTION: Final = "inference"
DRAINED: Final = Failure("upstream_interrupted", "The worker was stopped in mid-answer; ask again.")
GAVE_WAY: Final = Failure("upstream_interrupted", "The answer gave way to more urgent work; ask again.")
BROKE: Final = Failure("internal_error", "Something went wrong on our side.")
STREAM_LOST: Final = Failure("stream_lost", "The job's stream was lost.")
# How a job ends whose attempt was stopped, where it did not end by itself.
_STOPPED: Final = {
    Stop.CANCELLED: (State.CANCELLED, CANCELLED),
    Stop.EXPIRED: (State.EXPIRED, LATE),
    Stop.STREAM_LOST: (State.FAILED, STREAM_LOST),
    None: (State.FAILED, BROKE),
}


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
        self._options = options
        self._lease = Lease(
            queue,
            clock,
            duties,
            lease_s=options.lease_s,
            show=self._show,
            takes=lambda: 0 if self._draining else options.concurrency,
        )
        self._hearing = Hearing(
            store,
            queue,
            duties.lanes,
            worker_id=lambda: self.id,
            free=lambda: self.free,
            bell_wait_s=options.bell_wait_s,
        )
        self._endings = Endings(queue, clock, worker_id=lambda: self.id)
        self._started_at_s = clock.now_ms() // 1000
        self._attempts: dict[str, Attempt] = {}
        self._settling: set[str] = set()
        self._next: dict[str, Claim] = {}
        self._more_waits = False
        self._doubtful = False
        self._draining = False
        self._helpers: list[asyncio.Task[None]] = []
        self._last_cron_s = 0.0

    # --- life -------------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Registers (waiting for Redis as long as it takes), then arq's own loop."""
        await self._lease.register()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "beat": lambda: self._lease.keep(self._fenced, self._doubt),
            "bells": self._hearing.listen,
            "control": lambda: self._hearing.obey(self._doubt, self._carry_out),
        }
        if self._options.preemptible:
            loops["urgent"] = self._watch_urgent
        self._helpers += [asyncio.create_task(self._keep(loop), name=name) for name, loop in loops.items()]
        self._hearing.wanted.set()
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
                await self._leave(pool)
        self._pool = None

    async def _leave(self, pool: str) -> None:
        if await self._queue.leave(pool, self.id):
            return
        # A claim's answer came too late to be heard: nobody need wait for the lease to lapse.
        for job_id, fence in (await self._queue.held(pool, self.id)).items():
            if not self._works_at(job_id, fence):
                await self._endings.return_lost(pool, job_id, fence, failed=False)
        await self._queue.leave(pool, self.id)

    def handle_sig_wait_for_completion(self, signum: signal.Signals) -> None:
        """The first signal drains: nothing new is taken and what runs may end; the second puts it back at once."""
        if self._draining:
            self.handle_sig(signum)
        else:
            self.drain(signum)

    def drain(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Takes nothing new from now on, lets what runs end for a while, puts back the rest, leaves. Safe to repeat."""
        if self._draining:
            return
        self._draining = True
        log.info("worker.draining", worker=self.id, running=len(self._attempts))
        super().handle_sig_wait_for_completion(signum)
        self._helpers.append(self.loop.create_task(self._tell_drain(), name="drain"))

    async def _tell_drain(self) -> None:
        with suppress(HeadraceError):  # the next beat tells it
            await self._lease.renew()

    @property
    def id(self) -> str:
        """The worker's name now: another one after it was given up."""
        return self._lease.id

    @property
    def running(self) -> int:
        """Jobs that occupy a slot."""
        return len(self._attempts) - len(self._settling)

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

    # --- the lease ----------------------------------------------------------------------------------------------------

    def _fenced(self) -> None:
        """This worker was given up: its jobs are others' now. It lets go of them."""
        log.error("worker.fenced", worker=self.id, jobs=len(self._attempts))
        for job_id in list(self._attempts):
            self.abandon(job_id)

    def _doubt(self) -> None:
        """A bell or a claim's answer may have been lost, and an empty lane's jobs may have become servable."""
        self._doubtful = True
        self._hearing.wanted.set()

    def _show(self) -> JsonObject:
        return {
            **self._duties.info(),
            "running": len(self._attempts),
            "concurrency": self._options.concurrency,
            "started_at": self._started_at_s,
        }

    # --- how jobs come ------------------------------------------------------------------------------------------------

    async def _poll_iteration(self) -> None:
        await self._hearing.wanted.wait()
        self._hearing.wanted.clear()
        try:
            if self._doubtful:
                await self._return_unknown()
            # One that is full doesn't ask, and so hears nothing new of what waits.
            self._more_waits = self._more_waits and self.free <= 0
            for pool in self._lanes:
                await self._claim(pool)
        except HeadraceError as error:
            log.warning("worker.store_trouble", error=error.failure.message)
            await self._clock.sleep(RETRY_STORE_S)
            self._doubtful = True
            self._hearing.wanted.set()
        finally:
            self._hearing.looked.set()
        if self._clock.monotonic_s() - self._last_cron_s >= ROUND_S:
            self._last_cron_s = self._clock.monotonic_s()
            await self.heart_beat()

    def wake(self) -> None:
        """Has the worker look for work: what kept it from some, a backend without room, may be over."""
        self._hearing.wanted.set()

    async def record_health(self) -> None:
        """Does nothing: the lease shows how a worker does, and arq's own call ended this loop when Redis went away."""

    async def _claim(self, pool: str) -> None:
        lanes, caps = self._lanes[pool](), self._caps(pool)
        while self.free > 0 and lanes:
            most = self.free
            claims = await self._queue.claim(pool, self.id, most=most, lanes=lanes, caps=caps)
            if claims is None:
                return  # no lease: the next beat finds out and starts anew
            for claim in claims:
                caps = moved(caps, self._start(claim), -1)
            await self._hearing.note_kept(pool, kept=claims.kept)
            if len(claims) < most:
                # Behind a cap that is reached more may wait: as soon as a slot is free it is worth asking again.
                self._more_waits |= any(cap.most <= 0 for cap in caps)
                return
            self._more_waits = True

    def _caps(self, pool: str) -> list[Cap]:
        caps = self._duties.caps.get(pool)
        return list(caps()) if caps else []

    def _start(self, claim: Claim) -> str:
        """The lane of a claimed job, whose task is under way now."""
        job_id = claim.job.id
        lane = keys.lane_name(claim.job.priority, claim.job.model)
        if job_id in self._attempts:
            # It came back to us while an earlier attempt here, which is others' by now, is still letting go of it.
            self._next[job_id] = claim
            self.abandon(job_id)
            return lane
        self._attempts[job_id] = Attempt(self._duties.begin(claim), self._clock.monotonic_s())
        self.job_counter += 1
        context = contextvars.copy_context()
        context.run(_claimed.set, claim)
        task = self.loop.create_task(self.run_job(job_id, claim.created_ms), context=context)
        self.tasks[job_id] = task
        task.add_done_callback(lambda done: self._ended(job_id, done))
        return lane

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        self.job_counter -= 1
        if self.tasks.get(job_id) is task:
            del self.tasks[job_id]
        self._attempts.pop(job_id, None)
        if job_id not in self._settling:
            self._look_again()  # its slot is free only now
        self._settling.discard(job_id)
        self.aborting_tasks.discard(job_id)
        self._hearing.freed.set()
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
                    await self._endings.return_lost(pool, job_id, fence, failed=True)
            await self._obey_unheard(pool, list(held))

    def _works_at(self, job_id: str, fence: int) -> bool:
        attempt, claim = self._attempts.get(job_id), self._next.get(job_id)
        return (attempt is not None and attempt.claim.fence == fence) or (claim is not None and claim.fence == fence)

    async def _obey_unheard(self, pool: str, job_ids: list[str]) -> None:
        """Carries out orders that nobody here heard.

        One that went to a connection that had broken is lost, and the server may notice the break long after we do: so
        this is looked into at each beat, and not only when we connect again.
        """
        for job_id in await self._queue.cancelling(pool, job_ids):
            self._stop(job_id, Stop.CANCELLED)
        if await self._queue.told_to_drain(pool, self.id):
            self.drain()

    def _look_again(self) -> None:
        """A slot is free: claims for it where the last claim left something, or may have."""
        if self._more_waits or self._hearing.kept:
            self._hearing.wanted.set()

    # --- urgent work pushes other work out ----------------------------------------------------------------------------

    async def _watch_urgent(self) -> None:
        while True:
            await self._clock.sleep(self._options.preempt_after_ms / 1000)
            for pool in self._lanes:
                await self._relieve(pool)

    async def _relieve(self, pool: str) -> None:
        """Claims urgent jobs that have waited too long for a full worker, and stops a run for each that needs it."""
        if not self.allow_pick_jobs:
            return
        able, caps = self._yielding(), self._caps(pool)
        draft = overdraft(self.free, self._lanes[pool](), caps, able, pool)
        if draft is None:
            return
        claims = await self._queue.claim(
            pool,
            self.id,
            most=draft.most,
            lanes=draft.lanes,
            caps=draft.caps,
            least_age_ms=self._options.preempt_after_ms,
        )
        free, caps = self.free, self._caps(pool)
        for claim in claims or ():
            lane = keys.lane_name(claim.job.priority, claim.job.model)
            evicted = who_gives_way(lane, free=free, caps=caps, able=self._yielding(), pool=pool)
            if evicted is None:
                free -= 1
            else:
                self._evict(evicted)
                caps = moved(caps, evicted.lane, +1) if evicted.claim.job.pool == pool else caps
            caps = moved(caps, self._start(claim), -1)

    def _yielding(self) -> list[Attempt]:
        return yielding(self._attempts.values(), self._options.preemptible)

    def _evict(self, attempt: Attempt) -> None:
        # Muted in the same turn in which nobody had seen it, so that nobody will.
        attempt.run.mute()
        self._stop(attempt.claim.job.id, Stop.PREEMPTED)

    # --- orders -------------------------------------------------------------------------------------------------------

    def _carry_out(self, order: Order) -> None:
        if order.verb is Verb.DRAIN:
            self.drain()
        else:
            self._stop_by(order)

    def _stop_by(self, order: Order) -> None:
        attempt = self._attempts.get(order.job_id)
        if attempt is not None and attempt.claim.fence == order.fence:
            self._stop(order.job_id, Stop.CANCELLED if order.verb is Verb.CANCEL else Stop.EXPIRED)

    def _stop(self, job_id: str, why: Stop) -> None:
        """Cancels a job's task in the way that makes arq count it as aborted, not as to be run again."""
        attempt = self._attempts.get(job_id)
        if attempt is None or (attempt.stop is not None and why is not Stop.FENCED):
            return
        attempt.stop = why
        self.aborting_tasks.add(job_id)
        task = self.job_tasks.get(job_id)
        if task is not None:
            task.cancel()

    def abandon(self, job_id: str) -> None:
        """Lets go of a job that another worker owns by now: it is neither settled nor released."""
        self._stop(job_id, Stop.FENCED)

    def fail(self, job_id: str) -> None:
        """Ends a job of ours whose stream is gone: nobody could ever read what it still says."""
        self._stop(job_id, Stop.STREAM_LOST)

    # --- how jobs run and end -----------------------------------------------------------------------------------------

    async def _inference(self, ctx: dict[Any, Any]) -> None:
        attempt = self._attempts[ctx["job_id"]]
        if attempt.stop is not None:  # the order came before the task was there to be cancelled
            raise asyncio.CancelledError
        attempt.end = await attempt.run.perform()

    async def finish_job(  # pyright: ignore[reportIncompatibleMethodOverride]  # arq's bookkeeping is of no use here
        self, job_id: str, finish: bool, *_: object
    ) -> None:
        """Settles or releases instead of arq's bookkeeping. `finish` is False only where a drain cancelled the task."""
        attempt = self._attempts[job_id]
        if attempt.stop is Stop.FENCED:
            return
        end = attempt.end
        if end is None and attempt.stop is Stop.PREEMPTED:
            await self._give_way(attempt)
        elif end is None and not finish:
            await self._put_back(attempt, PutBack(failed=False), DRAINED)
        elif isinstance(end, GiveBack):
            error = self._endings.error(attempt, end.failure, end.backend) if end.counts else None
            await self._put_back(attempt, PutBack(end.counts, end.delay_ms, error), end.failure)
        else:
            # One that left no end was cancelled by order, or it broke (arq has logged how).
            await self._settle(attempt, end or await attempt.run.break_off(*_STOPPED[attempt.stop]))

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """arq gave up before our code ran; the job must not be lost."""
        await self.finish_job(job_id, True)

    async def _give_way(self, attempt: Attempt) -> None:
        log.info("worker.preempted", job_id=attempt.claim.job.id)
        self._duties.preempted(attempt.claim)
        await self._put_back(attempt, PutBack(failed=False, preempted=True), GAVE_WAY)

    async def _put_back(self, attempt: Attempt, back: PutBack, failure: Failure) -> None:
        end = await self._endings.put_back(attempt, back, failure)
        if end is not None:
            await self._settle(attempt, end)

    async def _settle(self, attempt: Attempt, end: Settlement) -> None:
        self._settling.add(attempt.claim.job.id)
        self._hearing.freed.set()
        self._look_again()  # the claim for the freed slot goes in the same trip as the settle
        await self._endings.settle(attempt, end)
