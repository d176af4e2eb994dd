"""The process's one reader: frames of this gateway's inboxes to whoever waits here.

The inbox only carries; the job's stream is the truth. A subscription that missed something (a gap, a lost inbox, a
resume, a job submitted elsewhere) reads the stream until it is level again.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

import anyio
import structlog

from common.clock import Clock
from common.contracts import Position, State, pool_of
from common.errors import HeadraceError, LaterError, NotFound, PositionGone, StoreUnavailable, StreamLost
from common.queue import Place, Queue
from common.store import Store
from common.stream import EVENTS, OUTCOME, STARTED, Entry, InboxReader, StreamStore

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
# With a tick's time: a stream that was lost is told of within two seconds.
IDLE_S: Final = 1.0
PATIENCE_S: Final = 1.0
FIRST_PAGE: Final = 8
LARGEST_PAGE: Final = 500
RETRY_STORE_S: Final = 0.2
MOST_GLANCES: Final = 500
# With more streams that wait each hears of its place less often; what it costs stays the same.
MOST_PLACES: Final = 500


Reader = TypeVar("Reader", "Subscription", "Waiter")


class SlowReader(HeadraceError):
    """This reader fell too far behind; connect again with Last-Event-ID."""

    code = "slow_reader"


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
        "_hub",
        "_keepalive_s",
        "_most_bytes",
        "_page",
        "_patience_s",
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

    def __init__(self, hub: Hub, job_id: str, position: Position | None, *, behind: bool, limits: Limits) -> None:
        self._hub = hub
        self.job_id = job_id
        self.position = position
        self.place: Place | None = None
        self._tail = position
        self._behind = behind
        self._again = False
        self._buffer: list[Entry] = []
        self._buffer_bytes = 0
        self._most_bytes = limits.reader_bytes
        self._page = FIRST_PAGE
        self._keepalive_s = limits.keepalive_s
        self._patience_s = limits.patience_s
        self._error: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.heard_s = self.spoke_s = hub.clock.monotonic_s()
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
            self._waiter = self._hub.loop.create_future()
            await self._waiter
            self._waiter = None
            if not self._buffer and not self._behind and self._error is None:
                return []
        entries, self._buffer, self._buffer_bytes = self._buffer, [], 0
        self.position = entries[-1].last
        self.spoke_s = self._hub.clock.monotonic_s()
        return entries

    def close(self) -> None:
        """Ends the reading; the hub tells Redis when it was the job's last reader here."""
        self._hub.leave(self)

    # --- the hub's side -----------------------------------------------------------------------------------------------

    def offer(self, entry: Entry) -> None:
        """An entry came by the inbox: taken where it follows, dropped where it is known, a reason to look otherwise."""
        self.heard_s = self._hub.clock.monotonic_s()
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
        self.heard_s = self._hub.clock.monotonic_s()

    def fail(self, error: HeadraceError) -> None:
        """Ends the reading with an error, once what is buffered has been read."""
        self._error = self._error or error
        self._behind = False
        self._wake()

    def stands(self, place: Place | None) -> None:
        """Takes note of where the job stands in the queue; wakes the reader where that is news."""
        self.placed_s = self._hub.clock.monotonic_s()
        if place != self.place:
            self.place = place
            self._wake()

    def tick(self, now_s: float) -> None:
        """Lets a reader that waited long write its keep-alive."""
        if self._waiter is not None and now_s - self.spoke_s >= self._keepalive_s:
            self.spoke_s = now_s
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, entry: Entry) -> None:
        self.place = None
        self._tail = entry.last
        self._buffer_bytes += len(entry.body)
        if self._buffer_bytes > self._most_bytes:
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
        if self._waiter is None and self._hub.clock.monotonic_s() - self.spoke_s >= self._patience_s:
            self.fail(SlowReader())

    async def _catch_up(self) -> None:
        """Reads a page of the stream; level when it was the last and nothing came by the inbox meanwhile."""
        self._again = False
        try:
            entries = await self._hub.streams.after(self.job_id, self._tail, most=self._page)
        except StoreUnavailable:
            await self._hub.clock.sleep(RETRY_STORE_S)
            return
        if not self._append_page(entries):
            return
        # What comes of the store has been heard, too: an answer of `glance` that is older must not be held against it.
        self.heard_s = self._hub.clock.monotonic_s()
        self._behind = len(entries) == self._page or self._again
        self._page = next_page(entries, self._most_bytes)
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

    def __init__(self, hub: Hub, job_id: str) -> None:
        self.job_id = job_id
        self.end: asyncio.Future[Entry | None] = hub.loop.create_future()
        self.heard_s = hub.clock.monotonic_s()

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


class Limits:
    """What a reader may hold, how often it must hear something, and how long it may take nothing of too much."""

    __slots__ = ("keepalive_s", "patience_s", "reader_bytes")

    def __init__(
        self, *, reader_bytes: int = 256 * 1024, keepalive_s: float = 10, patience_s: float = PATIENCE_S
    ) -> None:
        self.reader_bytes = reader_bytes
        self.keepalive_s = keepalive_s
        self.patience_s = patience_s


class Hub:
    """Everyone who reads or waits in this process, by job."""

    def __init__(
        self,
        store: Store,
        streams: StreamStore,
        queue: Queue,
        clock: Clock,
        *,
        pools: Sequence[str],
        limits: Limits,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.clock = clock
        self.streams = streams
        self.loop = asyncio.get_running_loop()
        self._store = store
        self._queue = queue
        self._pools = pools
        self._limits = limits
        self._here: dict[bytes, list[Subscription | Waiter]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._owed: set[str] = set()
        self._forgotten: set[str] = set()
        self._open: set[anyio.CancelScope] = set()

    @contextmanager
    def cuttable(self, stream: anyio.CancelScope) -> Generator[None]:
        """Counts an answer as one that `cut` ends."""
        self._open.add(stream)
        try:
            yield
        finally:
            self._open.discard(stream)

    def cut(self) -> None:
        """Ends every open stream in the middle, for its reader to resume elsewhere: this process is about to go."""
        for stream in list(self._open):
            stream.cancel()

    @property
    def readers(self) -> int:
        """How many read or wait here now."""
        return sum(len(readers) for readers in self._here.values())

    async def start(self) -> None:
        """Begins to follow the inboxes; does not wait for Redis to be there."""
        self._tasks = [
            asyncio.create_task(self._follow(), name="hub inbox"),
            asyncio.create_task(self._watch(), name="hub watch"),
        ]

    async def close(self) -> None:
        """Stops following and gives the inboxes up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=RETRY_STORE_S * 5)
        for pool in self._pools:
            try:
                await self.streams.drop_inbox(pool, self.id)
            except HeadraceError:
                return

    # --- who reads ----------------------------------------------------------------------------------------------------

    def expect(self, job_id: str) -> Subscription:
        """A reader from the start of a job about to be submitted with this gateway's id."""
        return self._add(Subscription(self, job_id, None, behind=False, limits=self._limits))

    def expect_end(self, job_id: str) -> Waiter:
        """Someone who waits for the end of a job about to be submitted with this gateway's id."""
        return self._add(Waiter(self, job_id))

    async def watch_end(self, job_id: str) -> Waiter:
        """Someone who waits for the end of a job that exists. Raises NotFound, StoreUnavailable.

        The end may have come before: whoever waits looks at the record once after this.
        """
        waiter = self._add(Waiter(self, job_id))
        try:
            if not await self.streams.subscribe(job_id, self.id):
                raise NotFound()
        except BaseException:
            self.leave(waiter)
            raise
        return waiter

    async def watch(self, job_id: str, position: Position | None) -> Subscription:
        """A reader of a job that exists, after a position. Raises NotFound, StreamLost, StoreUnavailable."""
        reader = self._add(Subscription(self, job_id, position, behind=True, limits=self._limits))
        try:
            if not await self.streams.subscribe(job_id, self.id):
                raise NotFound()
            if position is not None:
                await self._check(job_id, position)
        except BaseException:
            reader.close()
            raise
        return reader

    async def _check(self, job_id: str, position: Position) -> None:
        """A position of another attempt's numbering, or of a stream rebuilt since, must not be continued in silence."""
        before = None if position.fence == 0 else Position(position.fence - 1, 2**32)
        first = await self.streams.after(job_id, before, most=1)
        if not first or (position.fence > 0 and first[0].last.fence != position.fence):
            raise StreamLost("The stream no longer exists, or is not the one that this position belongs to.")

    def leave(self, reader: Subscription | Waiter) -> None:
        """Takes a reader out; the last one of a job that has not ended stops its frames."""
        key = reader.job_id.encode()
        readers = self._here.get(key)
        if readers is None or reader not in readers:
            return
        readers.remove(reader)
        if readers:
            return
        del self._here[key]
        if not reader.ended:
            task = self.loop.create_task(self._unsubscribe(reader.job_id), name="unsubscribe")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unsubscribe(self, job_id: str) -> None:
        try:
            await self.streams.unsubscribe(job_id, self.id)
            # Someone may have come back while the call was under way.
            if job_id.encode() in self._here:
                await self.streams.subscribe(job_id, self.id)
        except LaterError as error:
            log.warning("hub.unsubscribe_failed", job_id=job_id, error=error.failure.message)
            self._owed.add(job_id)

    def _add(self, reader: Reader) -> Reader:
        self._here.setdefault(reader.job_id.encode(), []).append(reader)
        return reader

    # --- what comes ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                for pool in self._pools:
                    await self._keep_inbox(pool)
                async with self._store.blocking() as connection:
                    inbox = InboxReader(connection, self.id, self._pools)
                    while True:
                        self._deliver(await inbox.frames())
            except HeadraceError as error:
                log.warning("hub.store_trouble", error=error.failure.message)
                await self.clock.sleep(RETRY_STORE_S)

    def _deliver(self, frames: Iterable[tuple[bytes, Entry]]) -> None:
        here = self._here
        for job_id, entry in frames:
            readers = here.get(job_id)
            if readers is None and entry.kind == EVENTS:
                # A submission that came late, whose caller was refused and left: nobody reads it, which must be told.
                self._owed.add(job_id.decode())
            for reader in readers or ():
                reader.offer(entry)

    async def _watch(self) -> None:
        """Every second: renews the inboxes, looks after readers that heard nothing, lets the silent say something."""
        while True:
            await self.clock.sleep(TICK_S)
            now_s = self.clock.monotonic_s()
            for readers in self._here.values():
                for reader in readers:
                    if isinstance(reader, Subscription):
                        reader.tick(now_s)
            try:
                for pool in self._pools:
                    there = await self._keep_inbox(pool)
                    await self._look_after(pool, 0.0 if not there else IDLE_S)
                await self._make_up()
            except HeadraceError as error:
                log.warning("hub.store_trouble", error=error.failure.message)

    async def _keep_inbox(self, pool: str) -> bool:
        """Whether this gateway's inbox was still there.

        One that lapsed is made anew, and the jobs that are read here are told: whoever had something for them meanwhile
        has taken their readers for gone, and marked them for cancelling.
        """
        if not await self.streams.keep_inbox(pool, self.id):
            self._forgotten.add(pool)
        if pool not in self._forgotten:
            return True
        read = [key.decode() for key, readers in self._here.items() if not all(reader.ended for reader in readers)]
        mine = [job_id for job_id in read if pool_of(job_id) == pool]
        for start in range(0, len(mine), MOST_GLANCES):
            part = mine[start : start + MOST_GLANCES]
            await asyncio.gather(*(self.streams.subscribe(job_id, self.id) for job_id in part))
        self._forgotten.discard(pool)
        return False

    async def _make_up(self) -> None:
        """Takes leave of jobs whose readers left while the store was away: nobody else would cancel them."""
        owed, self._owed = self._owed, set()
        for job_id in owed:
            if job_id.encode() not in self._here:
                await self._unsubscribe(job_id)

    async def _look_after(self, pool: str, idle_s: float) -> None:
        asked_s = self.clock.monotonic_s()
        before_s = asked_s - idle_s
        silent = [
            key.decode()
            for key, readers in self._here.items()
            if any(reader.heard_s <= before_s for reader in readers) and pool_of(key.decode()) == pool
        ]
        queued: list[str] = []
        for start in range(0, len(silent), MOST_GLANCES):
            part = silent[start : start + MOST_GLANCES]
            for job_id, (state, last) in zip(part, await self.streams.glance(pool, part), strict=True):
                self._level(job_id, State(state) if state else None, last, asked_s)
                if state == State.QUEUED:
                    queued.append(job_id)
        await self._tell_places(pool, queued)

    async def _tell_places(self, pool: str, queued: Sequence[str]) -> None:
        """Tells the readers of jobs that wait where these stand; those first who heard of it longest ago."""
        told_s = {job_id: min(one.placed_s for one in subs) for job_id in queued if (subs := self._subscribed(job_id))}
        followed = heapq.nsmallest(MOST_PLACES, told_s, key=told_s.__getitem__)
        if not followed:
            return
        for job_id, place in zip(followed, await self._queue.places(pool, followed), strict=True):
            for reader in self._subscribed(job_id):
                reader.stands(place)

    def _subscribed(self, job_id: str) -> list[Subscription]:
        return [one for one in self._here.get(job_id.encode(), ()) if isinstance(one, Subscription)]

    def _level(self, job_id: str, state: State | None, last: Position | None, asked_s: float) -> None:
        for reader in list(self._here.get(job_id.encode(), ())):
            # Who has heard something since may know more than this answer, and would take it for a loss.
            if reader.heard_s <= asked_s:
                reader.level(state, last)


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
