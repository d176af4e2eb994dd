"""What the journal needs of Redis: journaled jobs that ended, for the ledger to take; whether the store lost something.

An entry is struck off only when the ledger has it, so a process that dies on the way leaves it for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from common import keys
from common.contracts import Failure, Outcome, State, pool_of
from common.inspection import parse_info
from common.ledger.rows import Accepted, End
from common.store import Store

GROUP: Final = "ledger"
LYING_MS: Final = 10_000
READER_LIFE_MS: Final = 600_000
# Jobs of one tenant that may be accepted in the same µs.
MOST_AT_ONCE: Final = 16
_FIELDS: Final = (
    *("state", "outcome", "finished_ms", "result", "fence", "attempt", "failures", "started_ms"),
    *("tenant", "spec", "created_ms", "deadline_ms"),
)


class Signed(IntEnum):
    """What `sign.lua` answered."""

    ANEW = 0
    STILL = 1
    ANOTHERS = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """An entry of the stream: a journaled job ended this way."""

    entry: str
    job_id: str
    status: State


class Outbox:
    """The stream of journaled jobs that ended, and their ledger's mark. Every method may raise StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- what ended ---------------------------------------------------------------------------------------------------

    async def read(self, pool: str, reader: str, *, most: int) -> list[Ended]:
        """Entries that this reader now has, the same again until they are struck off."""
        args = (GROUP, reader, most, LYING_MS)
        flat = await self._store.call("collect", keys.pool_prefix(pool), (keys.ended(pool),), args)
        texts = [raw.decode() for raw in flat]
        return [Ended(texts[i], texts[i + 1], State(texts[i + 2])) for i in range(0, len(texts), 3)]

    async def ends(self, pool: str, ended: Sequence[Ended], *, most_bytes: int) -> list[End]:
        """How the first of these ended, as many as have results of so many bytes together, at least one."""
        sizes = await asyncio.gather(
            *(self._store.command("HSTRLEN", keys.job(pool, one.job_id), "result") for one in ended)
        )
        fitting, total = 0, 0
        for size in sizes:
            total += int(size)
            if fitting and total > most_bytes:
                break
            fitting += 1
        found = await asyncio.gather(*(self._record(pool, one.job_id) for one in ended[:fitting]))
        return [_end(pool, one, record) for one, record in zip(ended, found, strict=False)]

    async def end_of(self, pool: str, job_id: str) -> End | None:
        """How this job ended; None where the store does not know, or it has not."""
        record = await self._record(pool, job_id)
        state = record["state"]
        if state is None or not State(state.decode()).ended:
            return None
        return _end(pool, Ended("", job_id, State(state.decode())), record)

    async def _record(self, pool: str, job_id: str) -> dict[str, bytes | None]:
        values: list[bytes | None] = await self._store.command("HMGET", keys.job(pool, job_id), *_FIELDS)
        return dict(zip(_FIELDS, values, strict=True))

    async def strike(self, pool: str, entries: Sequence[str]) -> None:
        """Takes these entries off the stream. Safe to send again."""
        await self._store.call("strike", keys.pool_prefix(pool), (keys.ended(pool),), (GROUP, *entries))

    async def forget_readers(self, pool: str) -> int:
        """The number of readers forgotten that left nothing and have not been heard of for ten minutes."""
        name = keys.ended(pool)
        if not await self._store.command("EXISTS", name):
            return 0
        readers: list[list[Any]] = await self._store.command("XINFO", "CONSUMERS", name, GROUP)
        rows = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in readers]
        gone = [row[b"name"] for row in rows if row[b"pending"] == 0 and row[b"idle"] > READER_LIFE_MS]
        for reader in gone:
            await self._store.command("XGROUP", "DELCONSUMER", name, GROUP, reader)
        return len(gone)

    # --- what the store knows -----------------------------------------------------------------------------------------

    async def states(self, pool: str, job_ids: Sequence[str]) -> dict[str, State | None]:
        """How each of these jobs stands; None where the store does not know it."""
        raw = await asyncio.gather(*(self._store.command("HGET", keys.job(pool, one), "state") for one in job_ids))
        return {one: State(state.decode()) if state else None for one, state in zip(job_ids, raw, strict=True)}

    async def unended(self, pool: str, cursor: int, *, most: int) -> tuple[int, list[str]]:
        """Some of the jobs that have not ended, and the cursor for the next; 0 to begin with, and at the end."""
        after, flat = await self._store.command("ZSCAN", keys.deadlines(pool), cursor, "COUNT", most)
        return int(after), [raw.decode() for raw in flat[::2]]

    async def index_places(self, tenant: str, job_ids: Sequence[str]) -> list[tuple[int, str]]:
        """(when accepted in µs, id) of those of these jobs that are in the tenant's index."""
        homes = [(one, pool) for one in job_ids if (pool := pool_of(one)) is not None]
        scores: list[bytes | None] = await asyncio.gather(
            *(self._store.command("ZSCORE", keys.tenant_jobs(pool, tenant), one) for one, pool in homes)
        )
        return [(int(float(score)), one) for (one, _), score in zip(homes, scores, strict=True) if score is not None]

    async def index_page(
        self, tenant: str, pools: Sequence[str], *, most: int, below: tuple[int, str] | None
    ) -> list[tuple[int, str]]:
        """(when accepted in µs, id) of the tenant's jobs, newest first, those that come after `below` in this order."""
        begin = "+inf" if below is None else below[0]
        range_ = (begin, "-inf", "WITHSCORES", "LIMIT", 0, most + MOST_AT_ONCE)
        flats: list[list[bytes]] = await asyncio.gather(
            *(self._store.command("ZREVRANGEBYSCORE", keys.tenant_jobs(pool, tenant), *range_) for pool in pools)
        )
        pairs = [pair for flat in flats for pair in zip(flat[::2], flat[1::2], strict=True)]
        places = [(int(float(score)), raw.decode()) for raw, score in pairs]
        return sorted((place for place in places if below is None or place < below), reverse=True)[:most]

    async def run_id(self) -> str:
        """The server's own mark of this run of it: another after each restart, and on another server."""
        return parse_info(await self._store.command("INFO", "server"))["run_id"]

    # --- whose journal it is ------------------------------------------------------------------------------------------

    async def sign(self, pool: str, ledger: str, *, life_s: float) -> Signed:
        """Whether this ledger keeps the pool's journal, and whether its mark was still there."""
        args = (ledger, int(life_s * 1000))
        return Signed(await self._store.call("sign", keys.pool_prefix(pool), (keys.ledger(pool),), args))

    async def signed(self, pool: str) -> str | None:
        """The identity of the ledger that keeps the pool's journal, or None where no scheduler says so."""
        raw: bytes | None = await self._store.command("GET", keys.ledger(pool))
        return raw.decode() if raw else None


def _end(pool: str, ended: Ended, record: dict[str, bytes | None]) -> End:
    state = State(raw.decode()) if (raw := record["state"]) else None
    if state is None or not state.ended:
        # The record went before the ledger came: what the stream says is all that is left.
        gone = Failure("internal_error", "The job ended, and its record was gone before the ledger had it.")
        outcome = Outcome(ended.status, failure=None if ended.status is State.SUCCEEDED else gone)
        return End(ended.job_id, ended.status, outcome.encode(), int(ended.entry.partition("-")[0]))
    return End(
        id=ended.job_id,
        status=state,
        outcome=record["outcome"] or b"",
        finished_ms=_number(record["finished_ms"]),
        result=record["result"] or b"",
        fence=_number(record["fence"]),
        attempt=_number(record["attempt"]),
        failures=_number(record["failures"]),
        started_ms=_number(started) if (started := record["started_ms"]) else None,
        accepted=Accepted(
            id=ended.job_id,
            pool=pool,
            tenant=(record["tenant"] or b"").decode(),
            spec=record["spec"] or b"",
            created_ms=_number(record["created_ms"]),
            deadline_ms=_number(record["deadline_ms"]),
        ),
    )


def _number(raw: bytes | None) -> int:
    return int(raw or 0)
