"""Takes batches that nobody works on and goes on with them, each a while at a time; and sweeps what nobody needs."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import structlog

from common.errors import Fenced, HeadraceError, LaterError
from common.ledger.batches import Batch
from gateway.batches.desk import Desk, Held
from gateway.batches.steps import Steps

log = structlog.get_logger(__name__)

MOST_AT_ONCE: Final = 8
LOOK_S: Final = 1.0
LONGEST_LOOK_S: Final = 15.0
# From look to look at a batch of which nothing has ended, the second longer than the first.
REST_S: Final = 0.1
LONGEST_REST_S: Final = 1.0
# After so long a batch is anybody's again, so that more of them than may be worked on at once all go on; one of which
# nothing ends is so sooner, where another has waited so long since it was left, or is new.
SLICE_S: Final = 30.0
WAITED_MS: Final = 10_000
SWEEP_S: Final = 60.0
STALE_UPLOAD_MS: Final = 15 * 60_000
LINES_LIFE_MS: Final = 60_000
MOST_SWEEPS: Final = 50
MOST_LINES_SWEPT: Final = 1_000


class Runner:
    """This process's part of the work on batches. Any number of processes may have one."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._owner = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._works: set[asyncio.Task[None]] = set()
        self._gives_way = False
        self._some = asyncio.Event()
        self._swept_s = desk.clock.monotonic_s()

    def start(self) -> None:
        """Begins to look for batches. Safe to repeat."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="batches")
            self._task.add_done_callback(self._stopped)

    def wake(self) -> None:
        """There may be something to do."""
        self.start()
        self._some.set()

    async def close(self) -> None:
        """Stops, and leaves its batches to others."""
        tasks = [task for task in (self._task, *self._works) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        rest_s = LOOK_S
        while True:
            self._some.clear()
            try:
                await self._take_some()
                await self._sweep()
                rest_s = LOOK_S
            except LaterError as error:
                # It is said where it stops something; to look around is not that.
                log.debug("batches.not_looked_at", code=error.code)
                rest_s = min(2 * rest_s, LONGEST_LOOK_S)
            try:
                async with asyncio.timeout(rest_s):
                    await self._some.wait()
            except TimeoutError:
                pass

    async def _take_some(self) -> None:
        while len(self._works) < MOST_AT_ONCE:
            now_ms = await self._desk.queue.now_ms()
            batch = await self._desk.batches.take(self._owner, now_ms=now_ms, lease_ms=self._desk.lease_ms)
            if batch is None:
                return
            task = asyncio.create_task(self._work(batch), name=batch.id)
            self._works.add(task)
            task.add_done_callback(self._worked)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours. Whoever makes the next batch here begins anew; other gateways go on.
            log.error("batches.stopped", exc_info=error)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        self._gives_way = False
        self._some.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours. Its lease runs out, and then it is tried again.
            log.error("batch.step_failed", batch=task.get_name(), exc_info=error)

    async def _work(self, batch: Batch) -> None:
        held = Held(self._desk, batch)
        # Batches change hands all the time; who began with one is worth a line.
        told = log.info if batch.fence == 1 else log.debug
        told("batch.taken", batch=batch.id, status=batch.status, fence=batch.fence)
        try:
            await self._go_on(held)
        except Fenced:
            log.warning("batch.lost", batch=batch.id)
            return
        except LaterError as error:
            # Whoever takes it when the lease is over finds whatever was in the way gone, or tries again.
            log.warning("batch.waits", batch=batch.id, code=error.code)
            return
        except asyncio.CancelledError:
            await self._release(held)
            raise
        await self._release(held)

    async def _release(self, held: Held) -> None:
        try:
            await held.release()
        except HeadraceError as error:
            log.debug("batch.not_released", batch=held.batch.id, code=error.failure.code)

    async def _go_on(self, held: Held) -> None:
        steps = Steps(self._desk, held)
        ends_s = self._desk.clock.monotonic_s() + SLICE_S
        rest_s = REST_S
        try:
            while held.batch.ended_ms is None and self._desk.clock.monotonic_s() < ends_s:
                if await steps.step():
                    rest_s = REST_S
                elif rest_s >= LONGEST_REST_S and await self._should_give_way():
                    break
                else:
                    await self._desk.clock.sleep(rest_s)
                    rest_s = min(2 * rest_s, LONGEST_REST_S)
                    await held.look()
                await held.renew()
        finally:
            await steps.close()
        if held.batch.ended_ms is not None:
            _tell(held.batch)

    async def _should_give_way(self) -> bool:
        """Whether all places here are taken, and a batch has waited for one. One asks at a time, and one gives way."""
        if len(self._works) < MOST_AT_ONCE or self._gives_way:
            return False
        self._gives_way = True
        wanted = False
        try:
            wanted = await self._desk.batches.some_free(now_ms=await self._desk.queue.now_ms() - WAITED_MS)
        finally:
            self._gives_way = wanted
        return wanted

    # --- what need not be kept any longer -----------------------------------------------------------------------------

    async def _sweep(self) -> None:
        if self._desk.clock.monotonic_s() - self._swept_s < SWEEP_S:
            return
        self._swept_s = self._desk.clock.monotonic_s()
        await self.sweep()

    async def sweep(self) -> int:
        """How many rows were deleted that nobody needs: bytes of files that are gone, lines of batches that ended."""
        now_ms, total = await self._desk.queue.now_ms(), 0
        for _ in range(MOST_SWEEPS):
            gone = await self._desk.files.sweep(now_ms=now_ms, stale_ms=STALE_UPLOAD_MS)
            gone += await self._desk.batches.sweep(ended_before_ms=now_ms - LINES_LIFE_MS, most=MOST_LINES_SWEPT)
            total += gone
            if not gone:
                break
        return total


def _tell(batch: Batch) -> None:
    counts = {name: getattr(batch, name) for name in ("total", "completed", "failed")}
    log.info("batch.ended", batch=batch.id, status=batch.status, **counts)
