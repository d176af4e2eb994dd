"""What the work on batches uses; and a batch held by its lease, which every write of it proves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.clock import Clock
from common.contracts import State
from common.errors import Fenced
from common.ledger.batch_lines import Line, LineEnd, LinesLedger
from common.ledger.batches import Batch, BatchesLedger
from common.ledger.files import File, FilesLedger
from common.outbox import Outbox
from common.queue import Queue
from gateway.admission import Admission
from gateway.journal import Journal


@dataclass(frozen=True, slots=True)
class Desk:
    """The parts that the work on batches needs. `lease_s`: how long a gateway that falls silent keeps its batches.

    `most_line_bytes`: how long a line may be, as the body of a request of its own.
    """

    batches: BatchesLedger
    lines: LinesLedger
    files: FilesLedger
    queue: Queue
    outbox: Outbox
    journal: Journal
    admission: Admission
    clock: Clock
    lease_s: float
    most_line_bytes: int

    @property
    def lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    async def states(self, lines: list[Line]) -> dict[str, State | None]:
        """How the jobs of these lines stand in the store; None for one that it does not know."""
        pools: dict[str, list[str]] = {}
        for line in lines:
            pools.setdefault(line.job_id.split("_")[1], []).append(line.job_id)
        found: dict[str, State | None] = {}
        for pool, job_ids in pools.items():
            found |= await self.outbox.states(pool, job_ids)
        return found


class Held:
    """A batch that this process works on. Every method may raise Fenced: then it is another's by now."""

    def __init__(self, desk: Desk, batch: Batch) -> None:
        self._desk = desk
        self._renewed_s = desk.clock.monotonic_s()
        self.batch = batch

    async def renew(self) -> None:
        """The lease lasts, where a third of it has passed. To be called between any two steps that take time."""
        now_s = self._desk.clock.monotonic_s()
        if now_s - self._renewed_s >= self._desk.lease_s / 3:
            now_ms = await self._desk.queue.now_ms()
            self.batch = await self._desk.batches.renew(self.batch, now_ms=now_ms, lease_ms=self._desk.lease_ms)
            self._renewed_s = now_s

    async def look(self) -> None:
        """The batch as it stands: whether it was cancelled meanwhile."""
        found = await self._desk.batches.get(self.batch.id, self.batch.tenant)
        if found is None or found.fence != self.batch.fence:
            raise Fenced("This batch has another owner by now.")
        self.batch = found

    async def write(
        self, values: dict[str, Any], *, unless_cancelled: bool = False, files: list[File] | None = None
    ) -> None:
        """The batch has these values; `unless_cancelled`: where it is not being cancelled."""
        self.batch = await self._desk.batches.write(
            self.batch, values, unless_cancelled=unless_cancelled, files=files or []
        )

    async def begin(self, lines: list[Line], values: dict[str, Any]) -> None:
        """These lines are begun."""
        self.batch = await self._desk.lines.begin(self.batch, lines, values)

    async def end(self, ends: list[LineEnd], values: dict[str, Any]) -> None:
        """These lines have ended."""
        self.batch = await self._desk.lines.end(self.batch, ends, values)

    async def release(self) -> None:
        """Anybody may take the batch at once."""
        await self._desk.batches.release(self.batch, now_ms=await self._desk.queue.now_ms())
