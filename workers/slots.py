"""A backend's slots in this worker: calls take one without a trip, and wait in line by class where none is free.

How many there are is the fleet's to say: a lease, renewed every second and at once when more is wanted, so that all
workers together never make more calls than the backend's `concurrency`, and a dead worker's share comes back.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

import structlog

from common.backends import BackendSlots
from common.clock import Clock
from common.config import Backend
from common.contracts import Priority
from common.errors import HeadraceError

log = structlog.get_logger(__name__)

RENEW_S: Final = 1.0
RETRY_STORE_S: Final = 0.2
HEADROOM_SHARE: Final = 16
"""An idle worker keeps a sixteenth of a backend's slots, so that its next call needs no trip first."""
PEAK_FADES: Final = 0.5
"""How much of the last second's peak is kept where less was in use since."""


class SlotLine:
    """One backend's slots, and who waits for them: a smaller priority goes first, then who came first."""

    def __init__(self, *, wanted: Callable[[], None] = lambda: None) -> None:
        self.granted = 0
        self.in_use = 0
        self.waiting = 0
        self.peak = 0
        self._wanted = wanted
        self._order = count()
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def free(self) -> int:
        """Slots for whoever comes now; below 0 where a line waits or a grant shrank."""
        return self.granted - self.in_use - self.waiting

    def take_now(self) -> bool:
        """Whether a slot was free, and is the caller's now."""
        if self.waiting or self.in_use >= self.granted:
            return False
        self._occupy()
        return True

    async def take(self, priority: int = Priority.INTERACTIVE) -> None:
        """Returns with a slot, which the caller gives back; a caller that is cancelled has none."""
        if self.take_now():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (priority, next(self._order), turn))
        self.waiting += 1
        self._wanted()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.waiting -= 1
            else:
                self.give()  # the slot had come in the same moment
            raise

    def give(self) -> None:
        """Gives a slot back: to the first in line, unless the grant shrank meanwhile."""
        self.in_use -= 1
        self._serve()

    def grant(self, slots: int) -> None:
        """Sets how many there are; calls under way beyond that end in their own time."""
        self.granted = slots
        self._serve()

    def _occupy(self) -> None:
        self.in_use += 1
        self.peak = max(self.peak, self.in_use)

    def _serve(self) -> None:
        while self._line and self.in_use < self.granted:
            turn = heapq.heappop(self._line)[2]
            if not turn.done():
                self.waiting -= 1
                self._occupy()
                turn.set_result(None)


class Slots:
    """The slots of all backends that this worker may call."""

    def __init__(
        self,
        store: BackendSlots,
        clock: Clock,
        backends: Sequence[Backend],
        *,
        worker_id: Callable[[], str],
        lease_s: float,
        most: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._most = most
        self._backends = {row.name: row for row in backends}
        self._short: set[str] = set()
        self._call = asyncio.Event()
        self._valid_until_s: dict[str, float] = {}
        self.lines = {row.name: SlotLine(wanted=self._asking_for(row.name)) for row in backends}
        self.spare: dict[str, int] = {}
        """Slots of each backend that nobody in the fleet had when it was last looked at."""

    def _asking_for(self, name: str) -> Callable[[], None]:
        def ask() -> None:
            self._short.add(name)
            self._call.set()

        return ask

    def obtainable(self, name: str) -> int:
        """Calls that this worker could begin at the backend: its free slots, and those that nobody has."""
        line = self.lines[name]
        return max(0, min(line.free + self.spare.get(name, 0), self._backends[name].concurrency))

    # --- the lease ----------------------------------------------------------------------------------------------------

    async def follow(self, renewed: Callable[[], None]) -> None:
        """Renews all leases each second, and a backend's at once when its line wants more; `renewed` is told."""
        due_s = 0.0
        while True:
            now_s = self._clock.monotonic_s()
            if now_s >= due_s:
                due_s = now_s + min(RENEW_S, self._lease_s / 3)
                await self._renew(list(self.lines), fade=True)
            short, self._short = list(self._short), set()
            self._call.clear()
            await self._renew(short)
            renewed()
            await self._pause(due_s - self._clock.monotonic_s())

    async def _pause(self, seconds: float) -> None:
        """Until that long has passed, or a line wants more."""
        waits = {asyncio.ensure_future(self._clock.sleep(max(0.0, seconds))), asyncio.ensure_future(self._call.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _renew(self, names: Sequence[str], *, fade: bool = False) -> None:
        if not names:
            return
        try:
            await asyncio.gather(*(self._renew_one(name, fade=fade) for name in names))
            if fade:
                await asyncio.gather(*(self._look(name) for name in names))
        except HeadraceError as error:
            log.warning("slots.store_trouble", error=error.failure.message)
            self._expire()
            self._short.update(name for name, line in self.lines.items() if line.waiting)
            await self._clock.sleep(RETRY_STORE_S)

    async def _renew_one(self, name: str, *, fade: bool) -> None:
        line, most = self.lines[name], self._backends[name].concurrency
        sent_s = self._clock.monotonic_s()
        granted = await self._store.renew(
            name,
            self._worker_id(),
            want=self._want(line, most),
            in_use=line.in_use,
            most=most,
            lease_ms=int(self._lease_s * 1000),
        )
        self._valid_until_s[name] = sent_s + self._lease_s
        line.grant(granted)
        if fade:
            line.peak = max(line.in_use, int(line.peak * PEAK_FADES))

    def _want(self, line: SlotLine, most: int) -> int:
        busy = max(line.in_use + line.waiting, line.peak)
        return min(most, self._most, busy + most // HEADROOM_SHARE)

    async def _look(self, name: str) -> None:
        rows: Mapping[str, tuple[int, int]] = await self._store.read(name)
        taken = sum(max(granted, in_use) for granted, in_use in rows.values())
        self.spare[name] = max(0, self._backends[name].concurrency - taken)

    def _expire(self) -> None:
        """A grant that could not be renewed ends with its lease: others may have its slots by then."""
        now_s = self._clock.monotonic_s()
        for name, line in self.lines.items():
            if self._valid_until_s.get(name, 0.0) <= now_s:
                line.grant(0)

    async def close(self) -> None:
        """Gives all back; where the store is away, the leases lapse by themselves."""
        try:
            await asyncio.gather(*(self._store.give_up(name, self._worker_id()) for name in self.lines))
        except HeadraceError as error:
            log.warning("slots.store_trouble", error=error.failure.message)
