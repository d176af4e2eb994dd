"""A backend's slots in this worker: calls take one without a trip, and wait in line by class where none is free.

How many there are is the fleet's to say: a lease, renewed every second and at once when more is wanted, so that all
workers together never make more calls than the backend's `concurrency`, and a dead worker's share comes back.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

import structlog

from common.backends import BackendSlots
from common.clock import Clock
from common.contracts import Priority
from common.errors import HeadraceError
from common.servers import Backend

log = structlog.get_logger(__name__)

RENEW_S: Final = 1.0
CONTENDED_S: Final = 0.25
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
        self._due_s = dict.fromkeys(self._backends, 0.0)
        self._valid_until_s = dict.fromkeys(self._backends, 0.0)
        self._contended: set[str] = set()
        self._short = asyncio.Event()
        self.lines = {row.name: SlotLine(wanted=self._asking_for(row.name)) for row in backends}
        self.spare: dict[str, int] = {}
        """Slots of each backend that nobody in the fleet had when it was last looked at."""

    def _asking_for(self, name: str) -> Callable[[], None]:
        def ask() -> None:
            # Where the fleet wants more than there is, asking sooner than in turn would not help.
            if name not in self._contended:
                self._due_s[name] = 0.0
                self._short.set()

        return ask

    def obtainable(self, name: str) -> int:
        """Calls that this worker could begin at the backend: its free slots, and those that nobody has."""
        line = self.lines[name]
        return max(0, min(line.free + self.spare.get(name, 0), self._backends[name].concurrency))

    # --- the lease ----------------------------------------------------------------------------------------------------

    async def follow(self, renewed: Callable[[], None]) -> None:
        """Renews every lease each second, and at once when its line wants more; `renewed` is told.

        Where the fleet wants more than there is, it renews more often, so that what one can spare another has soon.
        """
        while True:
            self._short.clear()
            await self._renew([name for name, due_s in self._due_s.items() if due_s <= self._clock.monotonic_s()])
            renewed()
            await self._pause(min(self._due_s.values(), default=math.inf) - self._clock.monotonic_s())

    async def _pause(self, seconds: float) -> None:
        """Until that long has passed, or a line wants more."""
        sleep = self._clock.sleep(min(max(0.0, seconds), RENEW_S))
        waits = {asyncio.ensure_future(sleep), asyncio.ensure_future(self._short.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _renew(self, names: Sequence[str]) -> None:
        try:
            await asyncio.gather(*map(self._renew_one, names))
        except HeadraceError as error:
            log.warning("slots.store_trouble", error=error.failure.message)
            self._expire()
            await self._clock.sleep(RETRY_STORE_S)

    async def _renew_one(self, name: str) -> None:
        line, most, sent_s = self.lines[name], self._backends[name].concurrency, self._clock.monotonic_s()
        in_turn, want = self._due_s[name] > 0, self._want(name)
        lease_ms = int(self._lease_s * 1000)
        granted, rows = await asyncio.gather(
            self._store.renew(name, self._worker_id(), want=want, in_use=line.in_use, most=most, lease_ms=lease_ms),
            self._store.read(name),
        )
        self.spare[name] = max(0, most - sum(max(granted, in_use) for granted, in_use in rows.values()))
        self._valid_until_s[name] = sent_s + self._lease_s
        self._note_contention(name, short=granted < want)
        self._due_s[name] = sent_s + self._period_s(name)
        line.grant(granted)
        if in_turn:
            line.peak = max(line.in_use, int(line.peak * PEAK_FADES))

    def _note_contention(self, name: str, *, short: bool) -> None:
        if short or self.spare[name] == 0:
            self._contended.add(name)
        else:
            self._contended.discard(name)

    def _period_s(self, name: str) -> float:
        return min(CONTENDED_S if name in self._contended else RENEW_S, self._lease_s / 3)

    def _want(self, name: str) -> int:
        line, most = self.lines[name], self._backends[name].concurrency
        busy = max(line.in_use + line.waiting, line.peak)
        return min(most, self._most, busy + most // HEADROOM_SHARE)

    def _expire(self) -> None:
        """A grant that could not be renewed ends with its lease: others may have its slots by then."""
        now_s = self._clock.monotonic_s()
        for name, line in self.lines.items():
            if self._valid_until_s[name] <= now_s:
                line.grant(0)

    async def close(self) -> None:
        """Gives all back; where the store is away, the leases lapse by themselves."""
        try:
            await asyncio.gather(*(self._store.give_up(name, self._worker_id()) for name in self.lines))
        except HeadraceError as error:
            log.warning("slots.store_trouble", error=error.failure.message)
