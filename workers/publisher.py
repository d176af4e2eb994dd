"""Group commit of tokens: written at once when idle; what comes during a write goes together in the next one.

First tokens so never wait behind a timer, and a busy worker makes few, large writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from common.clock import Clock
from common.errors import HeadraceError
from common.stream import Refusal, Tokens

log = structlog.get_logger(__name__)

RETRY_STORE_S: Final = 0.1
ENTRY_BYTES: Final = 32 * 1024
"""About how much one stream entry may hold: readers take whole entries, and a slow one holds what it took."""


class Appender(Protocol):
    """Where tokens go: `common.stream.StreamStore`."""

    async def append(self, pool: str, worker: str, tokens: Sequence[Tokens]) -> dict[str, Refusal]:
        """The jobs whose tokens were not written, and why."""
        ...


class Track:
    """One attempt's events on their way out. `seq` counts those handed to a write so far."""

    __slots__ = ("_publisher", "fence", "flight", "job_id", "muted", "pending", "pool", "seq")

    def __init__(self, publisher: Publisher, pool: str, job_id: str, fence: int) -> None:
        self._publisher = publisher
        self.pool = pool
        self.job_id = job_id
        self.fence = fence
        self.seq = 0
        self.pending: list[bytes] = []
        self.flight: asyncio.Future[None] | None = None
        self.muted = False

    def hold(self, event: bytes) -> None:
        """Keeps an event for the settlement: nobody follows this job token by token."""
        self.pending.append(event)

    def publish(self, event: bytes) -> None:
        """Sends an event as soon as the writer is free."""
        self.pending.append(event)
        if len(self.pending) == 1 and self.flight is None:
            self._publisher.offer(self)

    @property
    def anything_sent(self) -> bool:
        """Whether a reader may have seen an event of this attempt."""
        return self.seq > 0

    def mute(self) -> None:
        """No more of its events are written by themselves; those kept may still go with a settlement."""
        self.muted = True
        self._publisher.withdraw(self)

    async def landed(self) -> None:
        """Returns once no write of its events is under way."""
        if self.flight is not None:
            await asyncio.shield(self.flight)

    async def finish(self) -> tuple[bytes, int]:
        """The events not written yet and the last one's number, for the settlement; what was under way has landed."""
        # What is too much for a settlement, the writer takes along as soon as it lands.
        while self.flight is not None and sum(map(len, self.pending)) > ENTRY_BYTES:
            await asyncio.shield(self.flight)
        events, self.pending = self.pending, []
        self._publisher.withdraw(self)
        if self.flight is not None:
            await asyncio.shield(self.flight)
        self.seq += len(events)
        return b"\n".join(events), self.seq


class Publisher:
    """One writer for each pool that has something to write."""

    def __init__(
        self,
        appender: Appender,
        clock: Clock,
        *,
        worker_id: Callable[[], str],
        refused: Callable[[str, Refusal], None],
    ) -> None:
        self._appender = appender
        self._clock = clock
        self._worker_id = worker_id
        self._refused = refused
        self._waiting: dict[str, dict[str, Track]] = {}
        self._writers: dict[str, asyncio.Task[None]] = {}

    def track(self, pool: str, job_id: str, fence: int) -> Track:
        """A new attempt's track."""
        return Track(self, pool, job_id, fence)

    def offer(self, track: Track) -> None:
        """Takes note that a track has events."""
        if track.muted:
            return
        self._waiting.setdefault(track.pool, {})[track.job_id] = track
        if track.pool not in self._writers:
            self._writers[track.pool] = asyncio.create_task(self._write(track.pool), name="publisher")

    def withdraw(self, track: Track) -> None:
        """Forgets a track: its last events go with the settlement."""
        self._waiting.get(track.pool, {}).pop(track.job_id, None)

    async def close(self) -> None:
        """Stops the writers; whoever has events left settles with them."""
        for writer in list(self._writers.values()):
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer

    async def _write(self, pool: str) -> None:
        try:
            while tracks := self._waiting.pop(pool, None):
                await self._send(pool, list(tracks.values()))
        finally:
            del self._writers[pool]

    async def _send(self, pool: str, tracks: list[Track]) -> None:
        tracks = [track for track in tracks if track.pending]
        if not tracks:
            return
        flight: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tokens = [item for track in tracks for item in _take(track, flight)]
        try:
            refusals = await self._append(pool, tokens)
        finally:
            for track in tracks:
                track.flight = None
            flight.set_result(None)
        for track in tracks:
            if track.pending and not track.muted:
                self._waiting.setdefault(pool, {})[track.job_id] = track
        for job_id, why in refusals.items():
            self._refused(job_id, why)

    async def _append(self, pool: str, tokens: list[Tokens]) -> dict[str, Refusal]:
        while True:
            try:
                return await self._appender.append(pool, self._worker_id(), tokens)
            except HeadraceError as error:
                log.warning("publisher.store_trouble", error=error.failure.message)
                await self._clock.sleep(RETRY_STORE_S)


def _take(track: Track, flight: asyncio.Future[None]) -> list[Tokens]:
    """What the track has, as few entries of a bounded size."""
    events, track.pending = track.pending, []
    track.flight = flight
    taken: list[Tokens] = []
    first, size_bytes = 0, 0
    for index, event in enumerate(events):
        if size_bytes and size_bytes + len(event) > ENTRY_BYTES:
            taken.append(Tokens(track.job_id, track.fence, track.seq + index, b"\n".join(events[first:index])))
            first, size_bytes = index, 0
        size_bytes += len(event)
    track.seq += len(events)
    taken.append(Tokens(track.job_id, track.fence, track.seq, b"\n".join(events[first:])))
    return taken
