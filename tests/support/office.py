"""A fleet with a ledger, and what a journey asks of both."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common import keys
from common.errors import LedgerUnavailable
from common.ledger.database import Database
from common.ledger.journal import JournalLedger
from common.ledger.tables import JOBS as ROWS
from tests.support.fleet import Fleet
from tests.support.fleet import until as until_it
from tests.support.reader import Caller, Refused
from tests.support.stage import POOL

JOBS: Final = "/v1/jobs"
SCHEDULERS: Final = ("scheduler-0", "scheduler-1")


class Office:
    """A fleet and the database of its ledger."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.fleet = fleet
        self.redis = fleet.redis
        self.url = url

    def caller(self) -> Caller:
        """A caller of both gateways."""
        return Caller([self.fleet.url(number) for number in (0, 1)])

    @asynccontextmanager
    async def ledger(self) -> AsyncGenerator[JournalLedger]:
        """The ledger, as another process has it."""
        database = Database(make_url(self.url))
        try:
            yield JournalLedger(database)
        finally:
            await database.close()

    async def ends(self, job_ids: list[str]) -> Counter[str]:
        """How many of these jobs the ledger has with each status, once none is open. Raises TimeoutError."""
        async with self.ledger() as ledger, asyncio.timeout(30):
            while True:
                entries = [await ledger.get(job_id) for job_id in job_ids]
                if all(entry is not None and entry.end is not None for entry in entries):
                    return Counter(entry.end.status.value for entry in entries if entry and entry.end)
                await asyncio.sleep(0.1)

    async def freeze_schedulers(self) -> None:
        """Stops every scheduler at a moment when none is in the middle of a write: what it writes stays locked for all
        others while it stands still, the whole file or its rows. Raises TimeoutError."""
        async with self.ledger() as ledger, asyncio.timeout(30):
            while True:
                for name in SCHEDULERS:
                    self.fleet.freeze(name)
                try:
                    await ledger.database.run(_lock_all, limit_s=1, write=True)
                    return
                except LedgerUnavailable:
                    self.thaw_schedulers()
                    await asyncio.sleep(0.1)

    def thaw_schedulers(self) -> None:
        """They go on from where they stood."""
        for name in SCHEDULERS:
            self.fleet.thaw(name)

    def mend(self) -> None:
        """Starts what does not run, and cancels what a test left."""
        self.redis.thaw()
        if self.redis.process is None or self.redis.process.poll() is not None:
            self.redis.start()
        self.redis.command("CLIENT", "UNPAUSE")
        for name in self.fleet.members:
            self.fleet.thaw(name)
        self.fleet.start_again(*(name for name, member in self.fleet.members.items() if not member.runs))
        until_it(lambda: self.redis.command("EXISTS", keys.ledger(POOL)), what="nobody keeps the journal")
        self.fleet.cancel_all(POOL)


async def _lock_all(connection: AsyncConnection) -> None:
    await connection.execute(select(ROWS.c.id).where(ROWS.c.status.is_(None)).with_for_update())


async def submit(caller: Caller, body: dict[str, Any], **options: Any) -> str:
    """The id of a job accepted by the ledger."""
    answer = await caller.http.post(caller.next_url() + JOBS, json=background(body, **options))
    if answer.is_error:
        raise Refused(answer.status_code, answer.content)
    assert (answer.status_code, answer.headers["x-headrace-durability"]) == (202, "journal"), answer.text
    return answer.json()["id"]


def background(body: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A chat as a job's submission."""
    return {"endpoint": "/v1/chat/completions", "body": body, **options}
