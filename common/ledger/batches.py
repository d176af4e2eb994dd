"""Batches in SQL: made, shown, cancelled; taken by one gateway at a time, whose lease and fence guard its writes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.errors import Fenced
from common.ledger.database import Database
from common.ledger.files import File, finish_in, lock_input
from common.ledger.tables import BATCH_LINES, BATCHES

LIMIT_S: Final = 1.5
ROUND_LIMIT_S: Final = 10.0

VALIDATING: Final = "validating"
IN_PROGRESS: Final = "in_progress"
FINALIZING: Final = "finalizing"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
CANCELLING: Final = "cancelling"
CANCELLED: Final = "cancelled"
CANCELLABLE: Final = (VALIDATING, IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands; its fields are the columns. Times are milliseconds since the epoch by Redis's clock.

    `metadata` and `errors` are JSON. `total` is 0 until the input was found valid. `next_byte`, `next_line`: the first
    line of the input that has not begun. `fence` counts the owners there were.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    created_ms: int
    expires_ms: int
    weight: float = 1.0
    status: str = VALIDATING
    model: str | None = None
    metadata: bytes | None = None
    output_life_s: int | None = None
    errors: bytes | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_ms: int | None = None
    finalizing_ms: int | None = None
    cancelling_ms: int | None = None
    ended_ms: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    next_byte: int = 0
    next_line: int = 1
    owner: str = ""
    lease_until_ms: int = 0
    fence: int = 0


def new_batch_id(tenant: str = "", idempotency_key: str = "") -> str:
    """A fresh id of 128 random bits; with a key the one that stands for this tenant's key."""
    if not idempotency_key:
        return f"batch_{secrets.token_hex(16)}"
    return f"batch_{blake2b(f'{tenant}:{idempotency_key}'.encode(), digest_size=16).hexdigest()}"


class BatchesLedger:
    """Batches by id and by tenant. Every method may raise LedgerUnavailable, and is safe to call again."""

    def __init__(self, database: Database) -> None:
        self.database = database
        dialect = sqlite if database.is_sqlite else postgresql
        self._create = dialect.insert(BATCHES).on_conflict_do_nothing(index_elements=["id"])

    # --- callers' side ------------------------------------------------------------------------------------------------

    async def create(self, batch: Batch) -> Batch | None:
        """The batch of this id: this one, or the one that was there; None where its tenant has no such file."""
        row = {name: getattr(batch, name) for name in Batch.__slots__}

        async def work(connection: AsyncConnection) -> Batch | None:
            file = await lock_input(connection, batch.input_file_id, batch.tenant, batch.created_ms)
            if file is not None:
                await connection.execute(self._create, row)
            found = await connection.execute(select(BATCHES).where(BATCHES.c.id == batch.id))
            there = found.mappings().one_or_none()
            return None if there is None else _batch(there)

        return await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def get(self, batch_id: str, tenant: str) -> Batch | None:
        """The tenant's batch, or None where there is none by that id."""
        found = await self._batches(select(BATCHES).where(BATCHES.c.id == batch_id, BATCHES.c.tenant == tenant))
        return found[0] if found else None

    async def page(self, tenant: str, *, most: int, after: Batch | None) -> list[Batch]:
        """The tenant's batches, newest first, those that come after `after`."""
        some = select(BATCHES).where(BATCHES.c.tenant == tenant)
        if after is not None:
            some = some.where(tuple_(BATCHES.c.created_ms, BATCHES.c.id) < tuple_(after.created_ms, after.id))
        return await self._batches(some.order_by(BATCHES.c.created_ms.desc(), BATCHES.c.id.desc()).limit(most))

    async def cancel(self, batch_id: str, *, now_ms: int) -> None:
        """The batch is being cancelled, where that is still possible; whoever works on it sees that soon."""
        asked = update(BATCHES).where(BATCHES.c.id == batch_id, BATCHES.c.status.in_(CANCELLABLE))
        asked = asked.values(status=CANCELLING, cancelling_ms=now_ms)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(asked)

        await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def _batches(self, query: Select[Any]) -> list[Batch]:
        async def work(connection: AsyncConnection) -> list[Batch]:
            return [_batch(row) for row in (await connection.execute(query)).mappings()]

        return await self.database.run(work, limit_s=LIMIT_S, write=False)

    # --- whose it is --------------------------------------------------------------------------------------------------

    async def take(self, owner: str, *, now_ms: int, lease_ms: int) -> Batch | None:
        """A batch that nobody works on, now this owner's. None: there is none.

        It is one of the tenant of whose batches the fewest are worked on, and of those the one left alone longest.
        """
        next_one = _next_free(now_ms).with_for_update(skip_locked=True, of=BATCHES).scalar_subquery()
        taken = update(BATCHES).where(BATCHES.c.id == next_one)
        taken = taken.values(owner=owner, lease_until_ms=now_ms + lease_ms, fence=BATCHES.c.fence + 1)

        async def work(connection: AsyncConnection) -> Batch | None:
            row = (await connection.execute(taken.returning(*BATCHES.c))).mappings().one_or_none()
            return None if row is None else _batch(row)

        # Most looks find nothing, and needn't wait for their turn to write.
        if not await self.some_free(now_ms=now_ms):
            return None
        return await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def some_free(self, *, now_ms: int) -> bool:
        """Whether there is a batch that nobody works on."""
        wanted = select(BATCHES.c.id).where(_free(now_ms)).limit(1)

        async def work(connection: AsyncConnection) -> bool:
            return (await connection.execute(wanted)).first() is not None

        return await self.database.run(work, limit_s=LIMIT_S, write=False)

    async def renew(self, held: Batch, *, now_ms: int, lease_ms: int) -> Batch:
        """The batch as it stands, its lease longer. Raises Fenced."""
        return await self.write(held, {"lease_until_ms": now_ms + lease_ms})

    async def release(self, held: Batch, *, now_ms: int) -> None:
        """The batch is anybody's again from now on, if it was still this owner's."""
        mine = update(BATCHES).where(BATCHES.c.id == held.id, BATCHES.c.fence == held.fence)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(mine.values(lease_until_ms=now_ms, owner=""))

        await self.database.run(work, limit_s=LIMIT_S, write=True)

    async def write(
        self, held: Batch, values: dict[str, Any], *, unless_cancelled: bool = False, files: Sequence[File] = ()
    ) -> Batch:
        """The batch with these values, and these files there for its tenant. Raises Fenced, and then nothing changed.

        `unless_cancelled`: where it is being cancelled, it is returned as it is, and nothing is written.
        """

        async def work(connection: AsyncConnection) -> Batch:
            current = await held_in(connection, held, {})
            if unless_cancelled and current.status == CANCELLING:
                return current
            for file in files:
                await finish_in(connection, file)
            return await held_in(connection, held, values)

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=True)

    # --- what need not be kept any longer -----------------------------------------------------------------------------

    async def sweep(self, *, ended_before_ms: int, most: int) -> int:
        """How many lines' rows were deleted of a batch that ended before then, and 1 for the last of them."""
        ended = select(BATCHES.c.id).where(BATCHES.c.swept.is_(False), BATCHES.c.ended_ms < ended_before_ms).limit(1)

        async def work(connection: AsyncConnection) -> int:
            batch_id = (await connection.execute(ended)).scalar_one_or_none()
            if batch_id is None:
                return 0
            some = select(BATCH_LINES.c.number).where(BATCH_LINES.c.batch_id == batch_id).limit(most)
            lines = delete(BATCH_LINES).where(BATCH_LINES.c.batch_id == batch_id, BATCH_LINES.c.number.in_(some))
            gone = (await connection.execute(lines)).rowcount
            if gone < most:
                done = update(BATCHES).where(BATCHES.c.id == batch_id).values(swept=True)
                gone += (await connection.execute(done)).rowcount
            return gone

        return await self.database.run(work, limit_s=ROUND_LIMIT_S, write=True)


async def held_in(connection: AsyncConnection, held: Batch, values: dict[str, Any]) -> Batch:
    """The batch with these values written in this transaction. Raises Fenced where another owner has taken it."""
    # Also without values: from here on no other owner can take it before this transaction ends.
    mine = update(BATCHES).where(BATCHES.c.id == held.id, BATCHES.c.fence == held.fence, BATCHES.c.ended_ms.is_(None))
    mine = mine.values(**(values or {"fence": held.fence}))
    row = (await connection.execute(mine.returning(*BATCHES.c))).mappings().one_or_none()
    if row is None:
        raise Fenced("This batch has another owner by now, or has ended.")
    return _batch(row)


def _free(now_ms: int) -> ColumnElement[bool]:
    return BATCHES.c.ended_ms.is_(None) & (BATCHES.c.lease_until_ms <= now_ms)


def _next_free(now_ms: int) -> Select[tuple[str]]:
    """The id of the batch to be taken next."""
    held = select(BATCHES.c.tenant, func.count().label("number")).group_by(BATCHES.c.tenant)
    held = held.where(BATCHES.c.ended_ms.is_(None), BATCHES.c.lease_until_ms > now_ms).subquery()
    free = select(BATCHES.c.id).outerjoin(held, held.c.tenant == BATCHES.c.tenant).where(_free(now_ms))
    turn = (func.coalesce(held.c.number, 0), BATCHES.c.lease_until_ms, BATCHES.c.created_ms)
    return free.order_by(*turn).limit(1)


def _batch(row: RowMapping) -> Batch:
    return Batch(**{name: row[name] for name in Batch.__slots__})
