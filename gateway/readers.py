"""One reader of one job, or one who waits for its end: what came by the inbox and what the stream says, made one.

The inbox only carries; the job's stream is the truth. A subscription that missed something (a gap, a lost inbox, a
resume, a job submitted elsewhere) reads the stream until it is level again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from common.clock import Clock
from common.contracts import Position, State
from common.errors import HeadraceError, PositionGone, StoreUnavailable, StreamLost
from common.queue import Place
from common.stream import EVENTS, OUTCOME, STARTED, Entry, StreamStore

IDLE_S: Final = 1.0
"""How long a reader hears nothing before it is compared with the store; with the watch's second, two till a loss."""
PATIENCE_S: Final = 1.0
FIRST_PAGE: Final = 8
LARGEST_PAGE: Final = 500
RETRY_STORE_S: Final = 0.2


class SlowReader(HeadraceError):
    """This reader fell too far behind; connect again with Last-Event-ID."""

    code = "slow_reader"


class Limits:
    """What a reader may hold, how often it must hear something, and how long it may take nothing of too much."""

    __slots__ = ("keepalive_s", "patience_s", "reader_bytes")

    def __init__(
        self, *, reader_bytes: int = 256 * 1024, keepalive_s: float = 10, patience_s: float = PATIENCE_S
    ) -> None:
        self.reader_bytes = reader_bytes
        self.keepalive_s = keepalive_s
        self.patience_s = patience_s


@dataclass(frozen=True, slots=True)
class Source:
    """What all readers of a process share: where they read, their clock and limits, and who is told that one left."""

    streams: StreamStore
    clock: Clock
    limits: Limits
    leave: Callable[[Subscription | Waiter], None]


class Subscription:
    """One reader of one job: entries in order, each event once, or an error; never a silent gap.

    `position` is the last event handed out, `place` where the job stands while it waits, as known a moment ago. An
    empty batch from `next` is the moment to tell of it, or for a keep-alive.
    """

    __slots__ = (
        "_again",
        "_behind",
        "_buffer",
        "_buffer_bytes",
        "_error",
        "_page",
        "_source",
        "_tail",
        "_waiter",
        "ended",
        "heard_s",
        "job_id",
        "place",
        "placed_s",
        "position",
        "spoke_s",
    )

    def __init__(self, source: Source, job_id: str, position: Position | None, *, behind: bool) -> None:
        self._source = source
        self.job_id = job_id
        self.position = position
        self.place: Place | None = None
        self._tail = position
        self._behind = behind
        self._again = False
        self._buffer: list[Entry] = []
        self._buffer_bytes = 0
        self._page = FIRST_PAGE
        self._error: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.heard_s = self.spoke_s = source.clock.monotonic_s()
        self.placed_s = 0.0
        self.ended = False

    async def next(self) -> list[Entry]:
        """The entries that came, at least one; or none, when nothing came for the keep-alive's time.

        Raises StreamLost, PositionGone, SlowReader.
        """
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._behind:
                await self._catch_up()
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
            if not self._buffer and not self._behind and self._error is None:
                return []
        entries, self._buffer, self._buffer_bytes = self._buffer, [], 0
        self.position = entries[-1].last
        self.spoke_s = self._source.clock.monotonic_s()
        return entries

    def close(self) -> None:
        """Ends the reading; the hub tells Redis when it was the job's last reader here."""
        self._source.leave(self)

    # --- the hub's side -----------------------------------------------------------------------------------------------

    def offer(self, entry: Entry) -> None:
        """An entry came by the inbox: taken where it follows, dropped where it is known, a reason to look otherwise."""
        self.heard_s = self._source.clock.monotonic_s()
        if self._behind:
            self._again = True
            return
        if self._tail is not None and entry.last <= self._tail:
            return
        if follows(entry, self._tail):
            self._take(entry)
        else:
            self._behind = True
        self._wake()

    def level(self, state: State | None, last: Position | None) -> None:
        """Compares with what the store says after a silence, and reads on, or fails, where they differ."""
        tail = self._tail
        if state is None or (tail is not None and (last is None or last < tail)):
            self.fail(StreamLost())
        elif last is not None and (tail is None or last > tail):
            self._behind = True
            self._wake()
        elif state.ended and not self.ended:
            self.fail(PositionGone("This stream is no longer kept; the job's result may still be."))
        self.heard_s = self._source.clock.monotonic_s()

    def fail(self, error: HeadraceError) -> None:
        """Ends the reading with an error, once what is buffered has been read."""
        self._error = self._error or error
        self._behind = False
        self._wake()

    def stands(self, place: Place | None) -> None:
        """Takes note of where the job stands in the queue; wakes the reader where that is news."""
        self.placed_s = self._source.clock.monotonic_s()
        if place != self.place:
            self.place = place
            self._wake()

    def tick(self, now_s: float) -> None:
        """Lets a reader that waited long write its keep-alive."""
        if self._waiter is not None and now_s - self.spoke_s >= self._source.limits.keepalive_s:
            self.spoke_s = now_s
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, entry: Entry) -> None:
        self.place = None
        self._tail = entry.last
        self._buffer_bytes += len(entry.body)
        if self._buffer_bytes > self._source.limits.reader_bytes:
            self._overflow()
            return
        self._buffer.append(entry)
        if entry.kind == OUTCOME:
            self.ended = True

    def _overflow(self) -> None:
        """More has come than a reader may hold. One that takes what it gets reads it from the stream instead."""
        self._buffer.clear()
        self._buffer_bytes = 0
        self._tail = self.position
        self._behind = True
        if self._waiter is None and self._source.clock.monotonic_s() - self.spoke_s >= self._source.limits.patience_s:
            self.fail(SlowReader())

    async def _catch_up(self) -> None:
        """Reads a page of the stream; level when it was the last and nothing came by the inbox meanwhile."""
        self._again = False
        try:
            entries = await self._source.streams.after(self.job_id, self._tail, most=self._page)
        except StoreUnavailable:
            await self._source.clock.sleep(RETRY_STORE_S)
            return
        if not self._append_page(entries):
            return
        # What comes of the store has been heard, too: an answer of `glance` that is older must not be held against it.
        self.heard_s = self._source.clock.monotonic_s()
        self._behind = len(entries) == self._page or self._again
        self._page = next_page(entries, self._source.limits.reader_bytes)
        # The reader takes this page before it asks for the next, so the limit is no matter here.
        self._buffer_bytes = 0

    def _append_page(self, entries: Iterable[Entry]) -> bool:
        for entry in entries:
            if self._tail is not None and entry.last <= self._tail:
                continue
            if not follows(entry, self._tail):
                self.fail(PositionGone("A part of this stream is no longer kept; the job's result may still be."))
                return False
            self._buffer.append(cut(entry, self._tail))
            self.place = None
            self._tail = entry.last
            self.ended = self.ended or entry.kind == OUTCOME
        return True


class Waiter:
    """Someone who only wants a job's end: the outcome, and the result where the frame brought it."""

    __slots__ = ("end", "heard_s", "job_id")

    def __init__(self, source: Source, job_id: str) -> None:
        self.job_id = job_id
        self.end: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self.heard_s = source.clock.monotonic_s()

    @property
    def ended(self) -> bool:
        return self.end.done()

    def offer(self, entry: Entry) -> None:
        """Takes note of the outcome."""
        if entry.kind == OUTCOME and not self.end.done():
            self.end.set_result(entry)

    def level(self, state: State | None, _last: Position | None) -> None:
        """After a silence: an end whose frame was lost is an end without an entry; the caller reads the record."""
        self.heard_s += IDLE_S
        if (state is None or state.ended) and not self.end.done():
            self.end.set_result(None)

    def fail(self, error: HeadraceError) -> None:
        """Ends the waiting with an error."""
        if not self.end.done():
            self.end.set_exception(error)


def next_page(entries: Sequence[Entry], most_bytes: int) -> int:
    """How many entries to read next, so that they hold no more than a reader may: judged by the size of these."""
    size_bytes = sum(len(entry.body) for entry in entries)
    return max(1, min(LARGEST_PAGE, most_bytes * len(entries) // size_bytes)) if size_bytes else FIRST_PAGE


def events_in(entry: Entry) -> int:
    """How many client events an entry carries."""
    if entry.kind == EVENTS:
        return entry.body.count(b"\n") + 1
    return 0 if entry.kind == STARTED else 1


def follows(entry: Entry, tail: Position | None) -> bool:
    """Whether an entry continues what ends at `tail` without a gap; it may begin before `tail`'s end (a resume)."""
    first = entry.last.seq - events_in(entry) + 1 if entry.kind != STARTED else 1
    if tail is None or entry.last.fence > tail.fence:
        return first <= 1
    return first <= tail.seq + 1


def cut(entry: Entry, position: Position | None) -> Entry:
    """The part of an entry of events that lies after a position inside it."""
    if position is None or entry.kind != EVENTS or entry.last.fence != position.fence:
        return entry
    first = entry.last.seq - events_in(entry) + 1
    skip = position.seq - first + 1
    return entry if skip <= 0 else replace(entry, body=b"\n".join(entry.body.split(b"\n")[skip:]))
