"""What is to be done next with a batch, by its status, its time and its lines; each step is safe to repeat."""

from __future__ import annotations

from common.ledger.batches import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FINALIZING, IN_PROGRESS, VALIDATING
from gateway.batches import records
from gateway.batches.assembling import Assembly
from gateway.batches.desk import Desk, Held
from gateway.batches.progress import Progress
from gateway.batches.validating import validate


class Steps:
    """One owner's steps with one batch. They may raise Fenced and what says to try again later; then others go on."""

    def __init__(self, desk: Desk, held: Held) -> None:
        self._desk = desk
        self._held = held
        self._progress = Progress(desk, held)

    async def close(self) -> None:
        """Nothing more is read."""
        await self._progress.close()

    async def step(self) -> bool:
        """Whether there may be more to do at once."""
        status = self._held.batch.status
        if status == FINALIZING:
            await Assembly(self._desk, self._held).end(COMPLETED, None)
        elif status == CANCELLING:
            return await self._stop(CANCELLED)
        elif await self._desk.queue.now_ms() >= self._held.batch.expires_ms:
            return await self._stop(EXPIRED)
        elif status == VALIDATING:
            await validate(self._desk, self._held)
        elif status == IN_PROGRESS:
            return await self._go_on()
        return True

    async def _go_on(self) -> bool:
        if await self._progress.go_on():
            return True
        if not await self._progress.all_ended():
            return False
        now_ms = await self._desk.queue.now_ms()
        await self._held.write({"status": FINALIZING, "finalizing_ms": now_ms}, unless_cancelled=True)
        return True

    async def _stop(self, status: str) -> bool:
        why = records.CANCELLED if status == CANCELLED else records.EXPIRED
        if not await self._progress.stop(why):
            return False
        await Assembly(self._desk, self._held).end(status, why)
        return True
