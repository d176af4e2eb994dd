"""The process's one reader of Redis: frames of this gateway's inboxes to whoever reads or waits here.

It renews the inboxes, compares those that heard nothing with the store, and tells the store who came and left.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
import structlog

from common.clock import Clock
from common.contracts import Position, State, pool_of
from common.errors import HeadraceError, LaterError, NotFound, StreamLost
from common.queue import Queue
from common.store import Store
from common.stream import EVENTS, Entry, InboxReader, StreamStore
from gateway.readers import IDLE_S, Limits, Source, Subscription, Waiter

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
RETRY_STORE_S: Final = 0.2
MOST_GLANCES: Final = 500
# With more streams that wait each hears of its place less often; what it costs stays the same.
MOST_PLACES: Final = 500

Reader = TypeVar("Reader", Subscription, Waiter)


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
        self._source = Source(streams, clock, limits, self.leave)
        self.loop = asyncio.get_running_loop()
        self._store = store
        self._queue = queue
        self._pools = pools
        self._here: dict[bytes, list[Subscription | Waiter]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._owed: set[str] = set()
        self._forgotten: set[str] = set()
        self._open: set[anyio.CancelScope] = set()
        self._goes = False

    @contextmanager
    def cuttable(self, stream: anyio.CancelScope) -> Generator[None]:
        """Counts an answer as one that `cut` ends; one that begins only afterwards ends at once."""
        self._open.add(stream)
        if self._goes:
            stream.cancel()
        try:
            yield
        finally:
            self._open.discard(stream)

    def cut(self) -> None:
        """Ends every open stream in the middle, for its reader to resume elsewhere: this process is about to go."""
        self._goes = True
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
        return self._add(Subscription(self._source, job_id, None, behind=False))

    def expect_end(self, job_id: str) -> Waiter:
        """Someone who waits for the end of a job about to be submitted with this gateway's id."""
        return self._add(Waiter(self._source, job_id))

    async def watch_end(self, job_id: str) -> Waiter:
        """Someone who waits for the end of a job that exists. Raises NotFound, StoreUnavailable.

        The end may have come before: whoever waits looks at the record once after this.
        """
        waiter = self._add(Waiter(self._source, job_id))
        try:
            if not await self.streams.subscribe(job_id, self.id):
                raise NotFound()
        except BaseException:
            self.leave(waiter)
            raise
        return waiter

    async def watch(self, job_id: str, position: Position | None) -> Subscription:
        """A reader of a job that exists, after a position. Raises NotFound, StreamLost, StoreUnavailable."""
        reader = self._add(Subscription(self._source, job_id, position, behind=True))
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

    async def give_up(self, job_id: str) -> None:
        """Nobody comes back for this job: without another reader, here or elsewhere, it ends now, not after the grace.

        One that goes on without readers is left alone.
        """
        if job_id.encode() in self._here:
            return
        try:
            await self.streams.unsubscribe(job_id, self.id, at_once=True)
            if job_id.encode() in self._here:
                await self.streams.subscribe(job_id, self.id)
            else:
                await self._queue.cancel(job_id, unread=True)
        except LaterError as error:
            log.warning("hub.give_up_failed", job_id=job_id, error=error.failure.message)
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
                        # Who was woken writes first: asking for the next frames would hold these up.
                        await asyncio.sleep(0)
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
        known = pool not in self._forgotten
        # Until it is answered: what is lost with an answer may be that the inbox was made anew.
        self._forgotten.add(pool)
        if await self.streams.keep_inbox(pool, self.id) and known:
            self._forgotten.discard(pool)
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
