"""A job's token stream: what stands in its entries, who appends, who follows. The only reader and writer of them
(but for the first and the last entry, which `claim.lua` and `settle.lua` write together with the job's state).

An entry's id is `<fence>-<number of its last event>`. Its one field tells its kind: `s` the attempt started, `c` events
(JSON objects, one a line), `o` the outcome, which is always the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from common import keys
from common.contracts import Position, pool_of
from common.store import BlockingReader, Store

STARTED: Final = b"s"
EVENTS: Final = b"c"
OUTCOME: Final = b"o"
RESULT: Final = b"r"
# How each event begins where another model than the job's says it.
OTHER_MODEL: Final = b'{"model":'
INBOX_LIFE_MS: Final = 15_000
READ_WAIT_S: Final = 1.0


class Refusal(IntEnum):
    """Why `append.lua` did not write."""

    FENCED = 1
    LOST = 2


@dataclass(slots=True)
class Tokens:
    """Events of one job on their way: `last_seq` is the number of the last of them."""

    job_id: str
    fence: int
    last_seq: int
    events: bytes


@dataclass(slots=True)
class Entry:
    """An entry of a job's stream, or its copy in a frame. `last` is its last event's position.

    `body` is the kind's payload; for `EVENTS` one JSON object a line. `result` only comes with an outcome whose job
    has no token readers.
    """

    last: Position
    kind: bytes
    body: bytes
    result: bytes | None = None


class StreamStore:
    """Appending to and reading of streams in Redis. Every method may raise StoreUnavailable."""

    def __init__(self, store: Store, *, disconnect_grace_s: float = 10, inbox_life_ms: int = INBOX_LIFE_MS) -> None:
        self._store = store
        self._inbox_life_ms = inbox_life_ms
        self._grace_ms = int(disconnect_grace_s * 1000)

    # --- the worker's side --------------------------------------------------------------------------------------------

    async def append(self, pool: str, worker: str, tokens: Sequence[Tokens]) -> dict[str, Refusal]:
        """The jobs whose tokens were not written, and why. Safe to send again: a position is written once."""
        args: list[str | bytes | int] = [worker, keys.INBOX_MOST_ENTRIES, self._grace_ms]
        for item in tokens:
            args += (item.job_id, item.fence, item.last_seq, item.events)
        reply: list[int] = await self._store.call("append", keys.pool_prefix(pool), (keys.abandoned(pool),), args)
        return {tokens[reply[i] - 1].job_id: Refusal(reply[i + 1]) for i in range(0, len(reply), 2)}

    # --- the gateway's side -------------------------------------------------------------------------------------------

    async def keep_inbox(self, pool: str, gateway: str) -> bool:
        """Whether this gateway's inbox was still there; it is now, for another `inbox_life_ms`. Safe to send again."""
        there = await self._store.call(
            "inbox", keys.pool_prefix(pool), (keys.inbox(pool, gateway),), (self._inbox_life_ms,)
        )
        return there == 1

    async def drop_inbox(self, pool: str, gateway: str) -> None:
        """Removes the inbox of a gateway that closes."""
        await self._store.command("DEL", keys.inbox(pool, gateway))

    async def subscribe(self, job_id: str, gateway: str) -> bool:
        """Whether the job exists; its frames come to this gateway from now on. Safe to send again."""
        pool = _pool(job_id)
        names = (keys.job(pool, job_id), keys.abandoned(pool))
        return (await self._store.call("subscribe", keys.pool_prefix(pool), names, (job_id, gateway))) != b""

    async def unsubscribe(self, job_id: str, gateway: str, *, at_once: bool = False) -> None:
        """Stops the frames; a job that wants it is cancelled after the grace when no reader is left. Safe to repeat.

        `at_once`: the grace is over now.
        """
        pool = _pool(job_id)
        names = (keys.job(pool, job_id), keys.abandoned(pool))
        grace_ms = 0 if at_once else self._grace_ms
        await self._store.call("unsubscribe", keys.pool_prefix(pool), names, (job_id, gateway, grace_ms))

    async def after(self, job_id: str, position: Position | None, *, most: int = 500) -> list[Entry]:
        """The stream's entries after a position (from the start for None), oldest first."""
        start = "-" if position is None else f"({position}"
        stream = keys.stream(_pool(job_id), job_id)
        reply: list[Any] = await self._store.command("XRANGE", stream, start, "+", "COUNT", most)
        return [_entry(raw_id, fields) for raw_id, fields in reply]

    async def glance(self, pool: str, job_ids: Sequence[str]) -> list[tuple[str, Position | None]]:
        """For each job of one pool its state ('' when unknown) and its stream's last position (None: no stream)."""
        reply: list[bytes] = await self._store.call("glance", keys.pool_prefix(pool), (), job_ids)
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return [(state.decode(), Position.parse(last.decode()) if last else None) for state, last in pairs]


class InboxReader:
    """One connection that follows this gateway's inboxes, one in each pool."""

    def __init__(self, reader: BlockingReader, gateway: str, pools: Sequence[str]) -> None:
        self._reader = reader
        self._after: dict[bytes, bytes] = {keys.inbox(pool, gateway).encode(): b"0" for pool in pools}

    async def frames(self) -> list[tuple[bytes, Entry]]:
        """(job id, entry) of what came, in order; empty after a wait of `READ_WAIT_S`. Raises StoreUnavailable."""
        wait_ms = int(READ_WAIT_S * 1000)
        names, ids = list(self._after), list(self._after.values())
        words = ("XREAD", "COUNT", 256, "BLOCK", wait_ms, "STREAMS", *names, *ids)
        reply: list[Any] | None = await self._reader.command(*words, wait_s=READ_WAIT_S)
        found: list[tuple[bytes, Entry]] = []
        for name, entries in reply or ():
            for _, fields in entries:
                _unpack(fields, found)
            self._after[name] = entries[-1][0]
        return found


def _unpack(fields: list[bytes], found: list[tuple[bytes, Entry]]) -> None:
    """A frame is a flat list of (job id, position), (kind, body), …; `r` amends the entry before it."""
    i = 0
    while i + 1 < len(fields):
        name, value = fields[i], fields[i + 1]
        i += 2
        if name == RESULT:
            found[-1][1].result = value
        elif i + 1 < len(fields):
            fence, _, seq = value.partition(b"-")
            found.append((name, Entry(Position(int(fence), int(seq)), fields[i], fields[i + 1])))
            i += 2


def _entry(raw_id: bytes, fields: list[bytes]) -> Entry:
    fence, _, seq = raw_id.partition(b"-")
    return Entry(Position(int(fence), int(seq)), fields[0], fields[1])


def _pool(job_id: str) -> str:
    pool = pool_of(job_id)
    if pool is None:
        raise ValueError(f"not a job id: {job_id[:80]!r}")
    return pool
