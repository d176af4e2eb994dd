"""A gateway's work on batches over a real store and ledger, its worker and its scheduler moved by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from pydantic import SecretStr

from common import keys
from common.config import Settings
from common.contracts import Outcome, Priority, State, Usage
from common.ledger.batch_lines import LinesLedger
from common.ledger.batches import Batch, new_batch_id
from common.ledger.files import File
from common.ledger.journal import JournalLedger
from common.outbox import Outbox
from common.queue import Claim, Queue, Settlement
from common.servers import Backend
from common.store import Store
from gateway.batches.desk import Desk, Held
from gateway.batches.steps import Steps
from gateway.files import FileWriter, pieces
from gateway.main import open_parts
from gateway.parts import Parts
from scheduler.journal import Journal, JournalParams
from tests.support.clock import ManualClock
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL

CHAT: Final = "/v1/chat/completions"
MODEL: Final = "echo"
WINDOW_MS: Final = 86_400_000
MESSAGE: Final = {"role": "assistant", "content": "hello", "refusal": None}
ANSWER: Final = orjson.dumps({"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}]})
WON: Final = Settlement(Outcome(State.SUCCEEDED, "stop", Usage(3, 4)), result=ANSWER)


def line(number: int, **changes: Any) -> bytes:
    """A line of a batch of chats."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"hi {number}"}]}
    return orjson.dumps({"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} | changes)


def lines(numbers: Iterable[int]) -> bytes:
    """An input of these lines."""
    return b"".join([line(number) + b"\n" for number in numbers])


def ids(rows: list[dict[str, Any]]) -> list[str]:
    """The custom ids of a file's lines, in their order."""
    return [row["custom_id"] for row in rows]


def named(numbers: range) -> list[str]:
    """The custom ids of these lines."""
    return [f"c{number}" for number in numbers]


class Death(BaseException):
    """The process dies here: nothing in the code under test may catch it."""


@dataclass
class Fate:
    """Counts what a process does to what it shares with others, and lets it die at one such point."""

    dies_at: int | None = None
    steps: int = 0

    def step(self) -> None:
        """One more point at which it could die; nothing happens after that."""
        self.steps += 1
        if self.died:
            raise Death()

    @property
    def died(self) -> bool:
        """Whether it has died."""
        return self.dies_at is not None and self.steps >= self.dies_at


class Mortal:
    """What it stands for, with a point to die at before each call of it and one after."""

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found: Any = getattr(self._inner, name)
        return self._call(found) if callable(found) else found

    def _call(self, found: Any) -> Callable[..., Awaitable[Any]]:
        async def called(*given: Any, **named: Any) -> Any:
            self._fate.step()
            answer = await found(*given, **named)
            self._fate.step()
            return answer

        return called


@dataclass
class Works:
    """A gateway's parts, a worker, a scheduler. `done`: how often each line's job was run to its end."""

    server: RedisServer
    parts: Parts
    desk: Desk
    scheduler: Journal
    clock: ManualClock
    done: dict[str, int] = field(default_factory=dict[str, int])

    # --- what callers do ----------------------------------------------------------------------------------------------

    async def upload(self, data: bytes, tenant: str = "t") -> str:
        """The id of a file of these bytes."""
        writer = FileWriter(self.parts.files, tenant, self.parts.queue.now_ms)
        await writer.begin()
        await writer.write(data)
        await writer.end()
        await self.parts.files.finish(File(writer.id, tenant, "in", "batch", writer.size_bytes, writer.created_ms))
        return writer.id

    async def create(self, data: bytes, **changes: Any) -> Batch:
        """A batch of this input."""
        now_ms = await self.parts.queue.now_ms()
        values: dict[str, Any] = {"tenant": "t", "endpoint": CHAT, "expires_ms": now_ms + WINDOW_MS} | changes
        file_id = await self.upload(data, values["tenant"])
        batch = Batch(new_batch_id(), input_file_id=file_id, created_ms=now_ms, **values)
        assert await self.parts.batches.create(batch) is not None
        return batch

    async def batch(self, batch: Batch) -> Batch:
        """The batch as it stands."""
        found = await self.parts.batches.get(batch.id, batch.tenant)
        assert found is not None
        return found

    async def file(self, batch: Batch, kind: str) -> list[dict[str, Any]]:
        """The lines of a batch's output or error file; none where it has no such file."""
        file_id = getattr(batch, f"{kind}_file_id")
        if file_id is None:
            return []
        file = await self.parts.files.get(file_id, batch.tenant, now_ms=await self.parts.queue.now_ms())
        data = b"".join([piece async for piece in pieces(self.parts.files, file_id)])
        assert file is not None and file.size_bytes == len(data)
        return [orjson.loads(one) for one in data.splitlines()]

    # --- what gateways do ---------------------------------------------------------------------------------------------

    async def take(self, desk: Desk | None = None) -> Held:
        """The batch that is free, held."""
        desk = desk or self.desk
        now_ms = await self.parts.queue.now_ms()
        batch = await desk.batches.take("gateway", now_ms=now_ms, lease_ms=desk.lease_ms)
        assert batch is not None
        return Held(desk, batch)

    async def to_the_end(self, batch: Batch) -> Batch:
        """The batch once it has ended, whoever died over it before."""
        await self.work_on(await self.take())
        return await self.batch(batch)

    async def work_on(self, held: Held, desk: Desk | None = None, *, most_rounds: int = 100) -> None:
        """Goes on with the batch until it has ended, the worker and the scheduler going on in turn."""
        steps = Steps(desk or self.desk, held)
        try:
            for _ in range(most_rounds):
                if held.batch.ended_ms is not None:
                    return
                if not await steps.step():
                    await self.work()
                    self.clock.advance(2)
                    await held.look()
            raise AssertionError(f"it did not end: {held.batch}")
        finally:
            await steps.close()

    def mortal(self, fate: Fate) -> Desk:
        """A desk like this one, of a process that may die."""
        names = ("batches", "lines", "files", "journal", "outbox", "queue")
        return replace(self.desk, **{name: Mortal(getattr(self.desk, name), fate) for name in names})

    # --- what others do -----------------------------------------------------------------------------------------------

    async def work(self, end: Settlement = WON, *, most: int = 256, model: str = MODEL) -> int:
        """How many jobs the worker ran to this end; the scheduler then writes them down."""
        queue = self.parts.queue
        await queue.beat(POOL, "w", lease_s=600, info={}, register=True)
        lane = keys.lane_name(Priority.BATCH, model)
        claims = await queue.claim(POOL, "w", most=most, lanes=(lane,)) or []
        for claim in claims:
            await self.end(claim, end)
        await self.scheduler.round()
        return len(claims)

    async def end(self, claim: Claim, end: Settlement = WON) -> None:
        """A claimed job ends."""
        await self.parts.queue.finish(claim, "w", end)
        self.done[claim.job.id] = self.done.get(claim.job.id, 0) + 1

    def later(self, milliseconds: int) -> None:
        """Moves the store's time forward."""
        self.parts.store.clock_offset_ms += milliseconds


@asynccontextmanager
async def works(server: RedisServer, database_url: str, **settings: Any) -> AsyncGenerator[Works]:
    """A desk over this server and this ledger."""
    store = Store.from_url(server.url)
    given = Settings(
        backends=(Backend(name="echo", kind="echo"),),
        models={MODEL: {"targets": [{"backend": "echo", "model": MODEL}]}},  # pyright: ignore[reportArgumentType]
        database_url=SecretStr(database_url),
        **settings,
    )
    parts = open_parts(given, store)
    clock = ManualClock()
    desk = Desk(
        parts.batches,
        LinesLedger(parts.database),
        parts.files,
        parts.queue,
        Outbox(store),
        parts.journal,
        parts.admission,
        clock,
        lease_s=10,
        most_line_bytes=given.max_body_bytes,
    )
    params = JournalParams(grace_s=0, result_life_s=given.result_retention_s)
    queue = Queue(store, most_in_lane=2**31, most_waiting=2**31)
    scheduler = Journal(JournalLedger(parts.database), Outbox(store), queue, clock, (POOL,), params)
    try:
        # It says whose journal this is; a gateway that finds no such word accepts by the store alone.
        await scheduler.round()
        yield Works(server, parts, desk, scheduler, clock)
    finally:
        await parts.journal.close()
        await parts.database.close()
        await store.close()


Open = Callable[..., AbstractAsyncContextManager[Works]]
"""Opens the works with these settings, over a store and a ledger that are empty."""
