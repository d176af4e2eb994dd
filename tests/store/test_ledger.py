"""The ledger over SQLite and PostgreSQL: what was written stays, an end is written once, whoever else writes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection

from common.contracts import State
from common.errors import LedgerUnavailable
from common.ledger import migrating, schema
from common.ledger.database import Database
from common.ledger.journal import REQUEST_LIMIT_S, JournalLedger
from common.ledger.rows import Accepted, End
from tests.support.clock import stopwatch
from tests.support.fleet import ROOT
from tests.support.postgres import PostgresServer
from tests.support.runner import until
from tests.support.seeds import job_id

pytestmark = pytest.mark.timeout(30)

LATER = 10_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lengthy)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'new' / 'ledger.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh()


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[JournalLedger]:
    """A ledger as one process has it."""
    database = Database(make_url(url))
    try:
        yield JournalLedger(database)
    finally:
        await database.close()


@asynccontextmanager
async def processes(url: str, number: int) -> AsyncGenerator[list[JournalLedger]]:
    """So many ledgers, each with connections of its own, as processes have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(url)) for _ in range(number)]


def accepted(number: int, *, created_ms: int | None = None, tenant: str = "t", spec: bytes = b"{}") -> Accepted:
    """Job `number`, accepted at that ms."""
    at_ms = number if created_ms is None else created_ms
    return Accepted(job_id(number), "default", tenant, spec, at_ms, at_ms + LATER)


def ended(number: int, status: State = State.SUCCEEDED, *, fence: int = 1, finished_ms: int = 50) -> End:
    """An end of job `number`."""
    outcome = f"outcome of {fence}".encode()
    return End(job_id(number), status, outcome, finished_ms, b"result", fence, 2, 1, 40, accepted(number))


def ids(numbers: Sequence[int]) -> list[str]:
    """The ids of these jobs."""
    return [job_id(number) for number in numbers]


# --- tables -----------------------------------------------------------------------------------------------------------


async def test_processes_that_start_together_make_the_tables_once(ledger_url: str) -> None:
    async with processes(ledger_url, 6) as ledgers:
        identities = await asyncio.gather(*(ledger.database.identity() for ledger in ledgers))
        revisions = await asyncio.gather(*(ledger.database.upgrade() for ledger in ledgers))
    assert len(set(identities)) == 1 and len(identities[0]) == 32
    assert set(revisions) == {schema.newest()}


async def test_two_ledgers_have_two_identities(ledger_url: str, tmp_path: Path) -> None:
    async with opened(ledger_url) as one, opened(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}") as other:
        assert await one.database.identity() != await other.database.identity()


async def test_a_database_that_a_newer_version_migrated_is_used_as_it_is(ledger_url: str) -> None:
    async def newer(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    async with opened(ledger_url) as ledger:
        await ledger.database.run(newer, limit_s=5, write=True)
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(1)], [])
        assert await ledger.database.revision() == "9999"


async def test_the_migrations_make_the_tables_that_the_code_knows(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.database.identity()
        assert await ledger.database.run(_differences, limit_s=5, write=False) == []


def test_each_migrations_file_is_named_by_its_revision() -> None:
    packaged = ScriptDirectory(str(ROOT / "common" / "ledger" / "migrations"))
    files = {f"m{script.revision}_" for script in packaged.walk_revisions()}
    assert {Path(script.path).name[:6] for script in packaged.walk_revisions()} == files
    assert packaged.get_current_head() == schema.newest()


@pytest.mark.lengthy
def test_who_only_looks_loads_no_alembic() -> None:
    words = "import sys, common.ledger.database; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False).returncode == 0


async def _differences(connection: AsyncConnection) -> list[object]:
    return await connection.run_sync(migrating.differences)


async def test_a_look_at_the_revision_makes_nothing(ledger_url: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir(exist_ok=True)
    async with opened(ledger_url) as ledger:
        assert await ledger.database.revision() is None
        assert await ledger.database.upgrade() == schema.newest() == await ledger.database.revision()


# --- jobs in ----------------------------------------------------------------------------------------------------------


async def test_what_was_written_is_there_for_every_process(ledger_url: str) -> None:
    async with processes(ledger_url, 2) as (one, other):
        await one.write([accepted(1, spec=b"\x00\xff" * 100), accepted(2)], [])
        entry = await other.get(job_id(1))
        assert entry is not None and (entry.accepted, entry.end) == (accepted(1, spec=b"\x00\xff" * 100), None)
        assert await other.get(job_id(3)) is None
        assert await other.counts() == {"open": 2}


async def test_a_job_written_twice_is_one_and_the_first_stands(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(1)], [])
        await ledger.write([accepted(1, spec=b"other"), accepted(2)], [])
        entry = await ledger.get(job_id(1))
        assert entry is not None and entry.accepted.spec == b"{}"
        assert await ledger.counts() == {"open": 2}


async def test_a_row_taken_back_is_gone_and_an_ended_one_stays(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(1), accepted(2)], [])
        await ledger.end([ended(2)])
        await ledger.write([accepted(3)], ids([1, 2]))
        assert await ledger.counts() == {"open": 1, "succeeded": 1}


async def test_a_tenants_jobs_come_newest_first_in_pages_and_no_other_tenants(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        rows = [accepted(number, created_ms=100 + number // 3) for number in range(20)]
        await ledger.write([*rows, accepted(77, tenant="other")], [])
        seen: list[str] = []
        below: tuple[int, str] | None = None
        while page := await ledger.of_tenant("t", most=7, below=below):
            seen += [one for _, one in page]
            below = page[-1]
        assert seen == ids(range(19, -1, -1))
        # A place between two ms, as the queue's index has them.
        assert [one for _, one in await ledger.of_tenant("t", most=3, below=(101_500, ""))] == ids([5, 4, 3])


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_the_first_end_stands_and_the_second_is_told_so(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(1)], [])
        assert await ledger.end([ended(1, fence=7)]) == {job_id(1): 7}
        assert await ledger.end([ended(1, State.FAILED, fence=8)]) == {job_id(1): 7}
        entry = await ledger.get(job_id(1))
        assert entry is not None and entry.end == ended(1, fence=7)


async def test_of_many_that_end_a_job_at_once_one_does(ledger_url: str) -> None:
    async with processes(ledger_url, 4) as ledgers:
        await ledgers[0].write([accepted(number) for number in range(30)], [])
        told = await asyncio.gather(
            *(
                ledger.end([ended(number, fence=100 + at) for number in (range(30) if at % 2 else range(29, -1, -1))])
                for at, ledger in enumerate(ledgers)
            )
        )
        entries = [await ledgers[0].get(job_id(number)) for number in range(30)]
    stands = {entry.accepted.id: entry.end.fence for entry in entries if entry and entry.end}
    assert len(stands) == 30
    assert told == [stands] * 4


async def test_an_end_of_a_job_that_the_ledger_lost_is_written_with_the_job(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        assert await ledger.end([ended(5)]) == {job_id(5): 1}
        entry = await ledger.get(job_id(5))
        assert entry is not None and (entry.accepted, entry.end) == (accepted(5), ended(5))


async def test_a_bare_end_ends_only_what_is_there(ledger_url: str) -> None:
    bare = End(job_id(1), State.CANCELLED, b"{}", 9)
    async with opened(ledger_url) as ledger:
        assert await ledger.end([bare]) == {}
        await ledger.write([accepted(1)], [])
        await ledger.end([bare])
        assert await ledger.counts() == {"cancelled": 1}


# --- what a scheduler asks --------------------------------------------------------------------------------------------


async def test_open_jobs_are_walked_through_in_order_and_only_old_enough_ones(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(number) for number in range(30)], [])
        await ledger.end([ended(number) for number in range(0, 30, 3)])
        seen: list[str] = []
        while batch := await ledger.open_ids("default", after=seen[-1] if seen else "", created_by_ms=20, most=4):
            seen += batch
        assert seen == ids([number for number in range(21) if number % 3])
        assert await ledger.open_ids("other", after="", created_by_ms=99, most=4) == []
        assert await ledger.ended_among(ids(range(8))) == set(ids([0, 3, 6]))


async def test_open_jobs_are_read_in_batches_bounded_by_their_size(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(number, spec=b"x" * 100) for number in range(10)], [])
        await ledger.end([ended(1)])
        asked = ids(range(10))
        some = await ledger.open_among(asked, most_bytes=350)
        assert [entry.accepted.id for entry in some] == ids([0, 2, 3])
        assert [entry.accepted.id for entry in await ledger.open_among(asked, most_bytes=1)] == ids([0])
        await ledger.ask_cancel(job_id(0))
        assert [entry.cancel_asked for entry in await ledger.open_among(asked, most_bytes=350)] == [True, False, False]


async def test_what_ended_long_ago_is_forgotten_in_batches_and_open_jobs_never(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.write([accepted(number, created_ms=0) for number in range(6)], [])
        await ledger.end([ended(number, finished_ms=100 * number) for number in range(5)])
        forgotten = [await ledger.forget(ended_before_ms=350, keyed_before_ms=0, most=3) for _ in range(3)]
        assert forgotten == [3, 1, 0]
        assert await ledger.counts() == {"open": 1, "succeeded": 1}


async def test_a_job_with_an_idempotency_key_is_kept_as_long_as_the_key_and_found_by_it(ledger_url: str) -> None:
    keyed = replace(accepted(1), idempotency="key", fingerprint="body")
    async with opened(ledger_url) as ledger:
        await ledger.write([keyed, accepted(2)], [])
        await ledger.end([replace(ended(1), accepted=keyed), ended(2)])
        assert await ledger.forget(ended_before_ms=1_000, keyed_before_ms=0, most=9) == 1
        found = await ledger.by_key("t", "key")
        assert found is not None and found.accepted == keyed
        assert await ledger.by_key("other", "key") is None and await ledger.by_key("t", "") is None
        assert await ledger.forget(ended_before_ms=1_000, keyed_before_ms=900, most=9) == 1


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_caller_that_gives_up_takes_no_connection_with_it(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.database.identity()
        for number in range(60):
            writing = asyncio.create_task(ledger.write([accepted(number)], []))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            writing.cancel()
        # More than there are connections, all at once.
        await asyncio.gather(*(ledger.counts() for _ in range(12)))

        async def all_are_back() -> bool:
            return ledger.database.connections_in_use == 0

        await until(all_are_back)


async def test_a_closed_ledger_refuses(ledger_url: str) -> None:
    async with opened(ledger_url) as ledger:
        await ledger.database.identity()
    with pytest.raises(LedgerUnavailable):
        await ledger.counts()


@pytest.mark.lengthy
async def test_sqlite_that_another_process_writes_waits_its_turn_and_no_longer(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    async with opened(f"sqlite+aiosqlite:///{place}") as ledger:
        await ledger.write([accepted(1)], [])
        with _held(place) as let_go:
            writing = asyncio.create_task(ledger.write([accepted(2)], []))
            # Reading goes on beside a writer.
            assert await ledger.counts() == {"open": 1}
            let_go()
            await writing
        with _held(place):
            with pytest.raises(LedgerUnavailable):
                await ledger.write([accepted(3)], [])
        assert await ledger.counts() == {"open": 2}


class _held:
    """Another process inside a write transaction of this SQLite file."""

    _SCRIPT = (
        "import sqlite3, sys\n"
        "held = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "held.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
        "held.execute('ROLLBACK')\n"
    )

    def __init__(self, place: Path) -> None:
        self._words = [sys.executable, "-c", self._SCRIPT, str(place)]

    def __enter__(self) -> Callable[[], None]:
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"held\n"
        return self._let_go

    def _let_go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def __exit__(self, *_: object) -> None:
        self._let_go()
        assert self._process.stdout is not None
        self._process.stdout.close()


async def test_sqlite_has_every_commit_on_disk_and_readers_beside_writers(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as ledger:

        async def pragmas(connection: AsyncConnection) -> list[object]:
            names = ("journal_mode", "synchronous", "busy_timeout")
            return [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in names]

        # 2 is FULL.
        assert await ledger.database.run(pragmas, limit_s=5, write=False) == ["wal", 2, 1500]


@pytest.mark.lengthy
async def test_postgresql_killed_and_started_again_costs_no_more_than_the_time_it_was_away(
    postgres: PostgresServer,
) -> None:
    async with opened(postgres.fresh()) as ledger:
        await ledger.write([accepted(1)], [])
        postgres.kill()
        try:
            with pytest.raises(LedgerUnavailable):
                await ledger.write([accepted(2)], [])
        finally:
            postgres.start()
        await ledger.write([accepted(3)], [])
        assert await ledger.counts() == {"open": 2}


@pytest.mark.lengthy
async def test_stale_connections_to_a_postgresql_that_was_restarted_fail_nobody(postgres: PostgresServer) -> None:
    async with opened(postgres.fresh()) as ledger:
        await asyncio.gather(*(ledger.counts() for _ in range(8)))
        postgres.kill()
        postgres.start()
        await asyncio.gather(*(ledger.write([accepted(number)], []) for number in range(8)))
        assert await ledger.counts() == {"open": 8}


@pytest.mark.lengthy
async def test_a_frozen_postgresql_is_waited_for_no_longer_than_the_limit(postgres: PostgresServer) -> None:
    async with opened(postgres.fresh()) as ledger:
        await ledger.write([accepted(1)], [])
        postgres.freeze()
        try:
            async with stopwatch() as served_s:
                with pytest.raises(LedgerUnavailable):
                    await ledger.write([accepted(2)], [])
                # Twice the limit, and it would have been tried twice.
                assert served_s() < 2 * REQUEST_LIMIT_S
        finally:
            postgres.thaw()
        await ledger.write([accepted(3)], [])
        assert ledger.database.connections_in_use == 0
