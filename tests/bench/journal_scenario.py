"""What the journal costs: background jobs submitted as fast as they are taken, without it, and with each database."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import aiohttp
import orjson
from sqlalchemy import make_url

from common.ledger.database import FILE_NAME, Database
from common.ledger.journal import JournalLedger
from tests.bench import stack
from tests.bench.cpu import Meter
from tests.bench.load import LoadFailed, percentile
from tests.bench.options import Options
from tests.bench.processes import NotReady, get
from tests.bench.report import Table, Value
from tests.bench.stack import API_KEY, System, headrace
from tests.support.postgres import PostgresServer
from tests.support.postgres import binaries as postgres_binaries

CONNECTIONS: Final = 64
WARM_UP: Final = 256
_END_LIMIT_S: Final = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Bed:
    """The stack with a journal of one kind or none: where the ledger is, and the database's process."""

    system: System
    ledger_url: str
    database_pid: int | None

    def meter(self) -> Meter:
        """A meter over the stack and the database."""
        return Meter({**self.system.parts, **({"postgres": self.database_pid} if self.database_pid else {})})


async def journal(options: Options) -> Table:
    """Submissions a second and CPU a job, with the journal off, in SQLite, in PostgreSQL."""
    total = 1_000 if options.short else 5_000
    table = Table(
        "journal",
        "background jobs: the journal's cost",
        f"{total} jobs of one short answer over POST /v1/jobs, {CONNECTIONS} connections kept busy; the stack on one "
        "core, load, stand-in and PostgreSQL on another; submissions/s until the last 202, CPU of each part until the "
        "last job has ended and, with a journal, is in the ledger; PostgreSQL with fsync, SQLite with synchronous=FULL",
    )
    for kind in ("off", "sqlite", "postgresql"):
        try:
            with _bed(kind, options) as bed:
                await _submitted(bed, kind, WARM_UP)
                await _until_all_ended(bed, kind, WARM_UP)
                table.add(await _measured(bed, kind, total))
        except (LoadFailed, NotReady) as error:
            table.failures.append(f"{kind}: {error}")
    return table


@contextmanager
def _bed(kind: str, options: Options) -> Generator[Bed]:
    place = options.setup.directory / f"journal-{kind}"
    environ = {"HEADRACE_JOURNAL": "off" if kind == "off" else "on", "HEADRACE_DATA_DIR": str(place)}
    if kind == "postgresql" and not postgres_binaries():
        raise NotReady("PostgreSQL is not installed here")
    server = PostgresServer(durable=True) if kind == "postgresql" else None
    try:
        if server is not None:
            server.start()
            environ["HEADRACE_DATABASE_URL"] = server.url
        setup = dataclasses.replace(options.setup, environ=environ)
        with stack.upstream(setup) as upstream, headrace(setup, upstream) as system:
            url = server.url if server else f"sqlite+aiosqlite:///{place / FILE_NAME}"
            yield Bed(system, url, server.process.pid if server and server.process else None)
    finally:
        if server is not None:
            server.stop()


async def _measured(bed: Bed, kind: str, total: int) -> dict[str, Value]:
    meter = bed.meter()
    began_s = time.perf_counter()
    took_s = await _submitted(bed, kind, total)
    wall_s = time.perf_counter() - began_s
    await _until_all_ended(bed, kind, WARM_UP + total)
    spent = meter.spent_s()
    per_1000 = {name: seconds * 1000 / total for name, seconds in spent.items() if name != "client"}
    row: dict[str, Value] = {"journal": kind, "submissions/s": total / wall_s, "n": total}
    row |= {"p50 ms": 1000 * percentile(took_s, 0.5), "p99 ms": 1000 * percentile(took_s, 0.99)}
    row["CPU s/1000"] = sum(per_1000.values())
    return {**row, **per_1000, "others %": 100 * meter.others_share()}


async def _submitted(bed: Bed, kind: str, total: int) -> list[float]:
    """How long each submission took. Raises LoadFailed where one was refused, or not accepted as it should be."""
    messages = [{"role": "user", "content": "Why do mills have a headrace?"}]
    body = orjson.dumps({"endpoint": "/v1/chat/completions", "body": {"model": "bench-instant", "messages": messages}})
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{bed.system.target.port}/v1/jobs"
    durability = "redis" if kind == "off" else "journal"
    took_s: list[float] = []

    async def ask(session: aiohttp.ClientSession, count: int) -> None:
        for _ in range(count):
            began_s = time.perf_counter()
            async with session.post(url, data=body) as answer:
                if answer.status != 202 or answer.headers["x-headrace-durability"] != durability:
                    raise LoadFailed(f"{answer.status} {dict(answer.headers)} {(await answer.text())[:200]}")
                await answer.read()
            took_s.append(time.perf_counter() - began_s)

    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(
            *(ask(session, total // CONNECTIONS + (at < total % CONNECTIONS)) for at in range(CONNECTIONS))
        )
    return took_s


def _ended(bed: Bed) -> int:
    counts = orjson.loads(get(bed.system.target.port, "/v1/queues", API_KEY)[1])["data"][0]["counts"]
    if counts.get("failed", 0) + counts.get("expired", 0) + counts.get("cancelled", 0):
        raise LoadFailed(f"not every job succeeded: {counts}")
    return counts.get("succeeded", 0)


async def _until_all_ended(bed: Bed, kind: str, total: int) -> None:
    async with asyncio.timeout(_END_LIMIT_S):
        while await asyncio.to_thread(_ended, bed) < total:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.1)
        if kind == "off":
            return
        database = Database(make_url(bed.ledger_url))
        try:
            while await JournalLedger(database).counts() != {"succeeded": total}:  # noqa: ASYNC110 - another process writes
                await asyncio.sleep(0.1)
        finally:
            await database.close()
