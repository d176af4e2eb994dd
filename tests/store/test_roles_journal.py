"""The journal's keeper over a real store and ledger: ends written once, lost jobs run again or told to be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from common import keys
from common.contracts import Failure, Job, Outcome, State
from common.errors import LedgerUnavailable, StoreUnavailable
from common.ledger.database import Database
from common.ledger.journal import JournalLedger
from common.ledger.rows import Accepted, Entry
from common.outbox import Outbox
from common.queue import Queue, Settled, Settlement
from common.store import Store
from scheduler.journal import Journal, JournalParams
from tests.support.blank_ledger import blank_ledger
from tests.support.clock import ManualClock
from tests.support.postgres import PostgresServer
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success

pytestmark = [pytest.mark.timeout(30), pytest.mark.either_server]

GRACE_S = 2.5
DEADLINE_MS = 60_000
FAILED = Settlement(Outcome(State.FAILED, failure=Failure("upstream_error", "x")))


@dataclass
class Desk:
    """A store, a ledger and a keeper of both."""

    r: Rig
    ledger: JournalLedger
    keeper: Journal
    clock: ManualClock

    async def accept(self, *jobs: Job) -> None:
        """Jobs accepted as a gateway does it: the ledger first, then the queue."""
        for job in jobs:
            await self.write(job)
            await self.r.queue.submit(job)

    async def write(self, job: Job) -> None:
        """A job whose gateway died between the two."""
        now_ms = await self.r.queue.now_ms()
        row = Accepted(job.id, POOL, job.tenant, job.encode(), now_ms, now_ms + job.deadline_in_ms, job.idempotency)
        await self.ledger.write([row], [])

    async def run(self, number: int, end: Settlement | None = None, worker: str = "w") -> None:
        """The one job that waits, run to its end."""
        await self.r.worker(worker)
        (claim,) = await self.r.claim(1, worker)
        assert claim.job.id == job_id(number)
        assert await self.r.settle(claim, worker, end) is Settled.ENDED

    async def entry(self, number: int) -> Entry:
        """What the ledger has of a job."""
        entry = await self.ledger.get(job_id(number))
        assert entry is not None
        return entry

    async def end(self, number: int) -> tuple[State, str | None, bytes]:
        """How a job ended, by the ledger: status, failure's code, result."""
        end = (await self.entry(number)).end
        assert end is not None, f"job {number} is open"
        failure = Outcome.decode(end.outcome).failure
        return end.status, failure.code if failure else None, end.result

    def outbox_length(self) -> int:
        """Ended jobs that wait for the ledger."""
        return self.r.server.command("XLEN", keys.ended(POOL))

    def lose_everything(self) -> None:
        """FLUSHALL."""
        self.r.server.command("FLUSHALL")


def journaled(number: int, **changes: Any) -> Job:
    """Job `number`, which the ledger is to know."""
    return replace(a_job(number, journal=True, deadline_in_ms=DEADLINE_MS), **changes)


def keeper(store: Store, ledger: JournalLedger, clock: ManualClock, **params: Any) -> Journal:
    """A scheduler's role."""
    queue = Queue(store, most_in_lane=2**31, most_waiting=2**31)
    return Journal(ledger, Outbox(store), queue, clock, (POOL,), JournalParams(grace_s=GRACE_S, **params))


@asynccontextmanager
async def desk(server: RedisServer, place: Path, **params: Any) -> AsyncGenerator[Desk]:
    """A desk on this server, its ledger a file in this place."""
    database = Database(make_url(blank_ledger(place)))
    clock = ManualClock()
    try:
        async with rig(server) as r:
            ledger = JournalLedger(database)
            yield Desk(r, ledger, keeper(r.store, ledger, clock, **params), clock)
    finally:
        await database.close()


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_an_end_goes_into_the_ledger_with_its_result_and_leaves_the_store(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.run(1, success(result=b'{"a":1}'))
        assert d.outbox_length() == 1
        assert await d.keeper.round() == 1
        assert d.outbox_length() == 0
        assert await d.end(1) == (State.SUCCEEDED, None, b'{"a":1}')
        entry, record = await d.entry(1), await d.r.queue.get(job_id(1))
        assert entry.end is not None and record is not None
        told = (entry.end.fence, entry.end.attempt, entry.end.failures, entry.end.started_ms, entry.end.finished_ms)
        assert told == (record.fence, record.attempt, record.failures, record.started_ms, record.finished_ms)


async def test_a_job_that_is_not_journaled_never_meets_the_ledger(redis_server: RedisServer, tmp_path: Path) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.r.submit(a_job(1))
        await d.run(1)
        assert await d.keeper.round() == 0
        assert await d.ledger.counts() == {}


async def test_an_end_that_the_ledger_could_not_take_is_taken_later_by_whoever_comes(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.run(1)
        broken = Database(make_url(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"))
        other = keeper(d.r.store, JournalLedger(broken), d.clock)
        await other.round()  # it signs, reads and strikes; nothing is left for it to do wrong
        await d.accept(journaled(2))
        await d.run(2)
        outbox = Outbox(d.r.store)
        assert [one.job_id for one in await outbox.read(POOL, "dies here", most=10)] == [job_id(2)]
        # What another reader took is left to it for a while.
        assert await outbox.read(POOL, "quick", most=10) == []
        assert [one.job_id for one in await outbox.read(POOL, "dies here", most=10)] == [job_id(2)]
        await broken.close()
        with pytest.raises(LedgerUnavailable):
            await other.round()
        await d.keeper.round()
        # The look through open jobs finds it in the meantime.
        await _past_the_grace(d)
        await d.keeper.round()
        assert await d.end(2) == (State.SUCCEEDED, None, b"")


async def test_a_keeper_that_died_after_the_commit_leaves_nothing_to_double(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.run(1, success(result=b"1"))
        outbox = Outbox(d.r.store)
        ended = await outbox.read(POOL, "dies after its commit", most=10)
        await d.ledger.end(await outbox.ends(POOL, ended, most_bytes=1))
        await d.keeper.round()
        assert await d.end(1) == (State.SUCCEEDED, None, b"1")
        assert await d.ledger.counts() == {"succeeded": 1}
        assert not (await d.r.queue.get(job_id(1))).deferred  # pyright: ignore[reportOptionalMemberAccess]


async def test_an_end_whose_record_is_gone_is_written_as_far_as_it_is_known(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1), journaled(2))
        await d.r.worker()
        for claim in await d.r.claim(2):
            await d.r.settle(claim, end=success() if claim.job.id == job_id(1) else FAILED)
        d.r.server.command("DEL", keys.job(POOL, job_id(1)), keys.job(POOL, job_id(2)))
        await d.keeper.round()
        assert await d.end(1) == (State.SUCCEEDED, None, b"")
        assert await d.end(2) == (State.FAILED, "internal_error", b"")


async def test_large_results_are_written_a_few_at_a_time_and_all_of_them(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path, most_bytes=2_500) as d:
        await d.accept(*(journaled(number) for number in range(1, 6)))
        await d.r.worker()
        for claim in await d.r.claim(5):
            await d.r.settle(claim, end=success(result=b"x" * 1_000))
        assert await d.keeper.round() == 5
        assert await d.ledger.counts() == {"succeeded": 5} and d.outbox_length() == 0


# --- a store that lost everything -------------------------------------------------------------------------------------


async def _past_the_grace(d: Desk) -> None:
    d.r.later(int(GRACE_S * 1000) + 100)


async def test_everything_open_is_queued_again_after_a_total_loss_and_ends_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(*(journaled(number) for number in range(1, 31)))
        await d.run(1, success(result=b"1"))
        await d.keeper.round()
        await d.r.worker()
        assert await d.r.numbers(5) == [2, 3, 4, 5, 6]
        d.lose_everything()
        await _past_the_grace(d)
        assert await d.keeper.round() == 29
        view = d.r.view()
        assert view.states == dict.fromkeys(range(2, 31), "queued")
        assert await d.keeper.round() == 0
        await d.r.worker()
        claims = await d.r.claim(29)
        assert len(claims) == 29
        for claim in claims:
            await d.r.settle(claim)
        await d.keeper.round()
        assert await d.ledger.counts() == {"succeeded": 30}
        assert await d.r.listed("t", most=50) is not None


async def test_a_refilled_job_has_what_is_left_of_its_time_and_of_its_delay(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1, delay_ms=30_000), journaled(2))
        due = d.r.job(2)
        d.r.later(10_000)
        d.lose_everything()
        await d.keeper.round()
        assert abs(int(d.r.job(2)["deadline_ms"]) - int(due["deadline_ms"])) < 1_000
        assert d.r.view().delayed == [1]
        d.r.later(19_000)
        assert await d.r.queue.promote(POOL) == 0
        d.r.later(1_500)
        assert await d.r.queue.promote(POOL) == 1


async def test_a_job_whose_deadline_passed_while_it_was_lost_is_told_to_be_lost(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1), journaled(2, deadline_in_ms=2 * DEADLINE_MS))
        d.lose_everything()
        d.r.later(DEADLINE_MS + 1)
        assert await d.keeper.round() == 2
        assert await d.end(1) == (State.FAILED, "redis_lost", b"")
        assert d.r.view().states == {2: "queued"}


async def test_a_job_that_was_to_be_cancelled_does_not_come_back(redis_server: RedisServer, tmp_path: Path) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.ledger.ask_cancel(job_id(1))
        d.lose_everything()
        await _past_the_grace(d)
        await d.keeper.round()
        assert await d.end(1) == (State.CANCELLED, "cancelled", b"")
        assert d.r.view().states == {}


async def test_a_job_is_left_to_its_gateway_for_a_moment_and_then_queued(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.keeper.round()
        await d.write(journaled(1))
        assert await d.keeper.round() == 0
        await _past_the_grace(d)
        assert await d.keeper.round() == 1
        assert d.r.view().states == {1: "queued"}


async def test_a_full_lane_takes_back_what_was_accepted_before(redis_server: RedisServer, tmp_path: Path) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        d.lose_everything()
        d.r.queue = Queue(d.r.store, most_in_lane=1)
        await d.r.submit(a_job(2))
        await _past_the_grace(d)
        await d.keeper.round()
        assert d.r.view().states == {1: "queued", 2: "queued"}


@pytest.mark.parametrize("fingerprint", ["same", "another"])
async def test_a_job_whose_key_another_took_meanwhile_still_runs(
    redis_server: RedisServer, tmp_path: Path, fingerprint: str
) -> None:
    async with desk(redis_server, tmp_path) as d:
        keyed = {"idempotency": "key", "fingerprint": "same"}
        await d.accept(journaled(1, **keyed))
        d.lose_everything()
        await d.r.submit(a_job(2, idempotency="key", fingerprint=fingerprint))
        await _past_the_grace(d)
        await d.keeper.round()
        assert d.r.view().states == {1: "queued", 2: "queued"}
        assert await d.r.queue.by_key(POOL, "t", "key") == job_id(2)


async def test_a_lost_store_is_looked_through_whole_at_once_however_much_is_open(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path, most=10) as d:
        await d.accept(*(journaled(number) for number in range(1, 101)))
        await _past_the_grace(d)
        await d.keeper.round()
        await _past_the_grace(d)
        await d.keeper.round()
        # Now that nothing is amiss, a round looks at a few only.
        for number in range(1, 101):
            d.r.server.command("DEL", keys.job(POOL, job_id(number)))
        assert await d.keeper.round() == 10
        d.lose_everything()
        assert await d.keeper.round() == 100


# --- a store that went back in time -----------------------------------------------------------------------------------


async def test_what_runs_again_although_it_ended_is_cancelled_and_readers_are_sent_to_the_ledger(
    own_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(own_server, tmp_path) as d:
        await d.accept(journaled(1), journaled(2))
        await d.run(1, success(result=b"the first"))
        await d.keeper.round()
        # As an older copy has it: the job waits, and nothing of its end is known.
        d.r.server.command("DEL", keys.job(POOL, job_id(1)), keys.stream(POOL, job_id(1)))
        await d.r.submit(journaled(1))
        own_server.kill()
        own_server.start()
        with suppress(StoreUnavailable):
            await d.keeper.round()  # over the connection of before
        await d.keeper.round()
        record = await d.r.queue.get(job_id(1))
        assert record is not None and record.deferred and record.state is State.CANCELLED
        await d.keeper.round()
        assert await d.end(1) == (State.SUCCEEDED, None, b"the first")
        other = await d.r.queue.get(job_id(2))
        assert other is not None and not other.deferred and other.state is State.QUEUED


async def test_a_second_end_of_a_job_changes_nothing_and_readers_are_sent_to_the_first(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.run(1, success(result=b"the first"))
        await d.keeper.round()
        d.r.server.command("DEL", keys.job(POOL, job_id(1)), keys.stream(POOL, job_id(1)))
        await d.r.submit(journaled(1))
        d.r.later(10)
        await d.run(1, FAILED)
        await d.keeper.round()
        assert await d.end(1) == (State.SUCCEEDED, None, b"the first")
        record = await d.r.queue.get(job_id(1))
        assert record is not None and record.deferred and record.state is State.FAILED


async def test_an_end_that_only_the_store_still_knows_is_written_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with desk(redis_server, tmp_path) as d:
        await d.accept(journaled(1))
        await d.run(1, success(result=b"r"))
        d.r.server.command("DEL", keys.ended(POOL))
        await _past_the_grace(d)
        await d.keeper.round()
        assert await d.end(1) == (State.SUCCEEDED, None, b"r")


# --- several of everything --------------------------------------------------------------------------------------------


@pytest.mark.lengthy
async def test_two_keepers_at_once_refill_and_end_each_job_once(
    redis_server: RedisServer, postgres: PostgresServer
) -> None:
    url, clock = postgres.fresh(), ManualClock()
    databases = [Database(make_url(url)) for _ in range(2)]
    try:
        async with rig(redis_server) as r:
            ledgers = [JournalLedger(database) for database in databases]
            keepers = [keeper(r.store, ledger, clock) for ledger in ledgers]
            d = Desk(r, ledgers[0], keepers[0], clock)
            await d.accept(*(journaled(number) for number in range(60)))
            d.lose_everything()
            await _past_the_grace(d)
            await asyncio.gather(*(one.round() for one in keepers))
            assert r.view().states == dict.fromkeys(range(60), "queued")
            assert r.server.command("HGET", keys.stats(POOL), "submitted") == b"60"
            await r.worker()
            claims = await r.claim(60)
            ending = [r.settle(claim) for claim in claims]
            await asyncio.gather(*ending, *(one.round() for one in keepers))
            for _ in range(3):
                await asyncio.gather(*(one.round() for one in keepers))
            assert await d.ledger.counts() == {"succeeded": 60} and d.outbox_length() == 0
            deferred = [claim.job.id for claim in claims if (await r.queue.get(claim.job.id)).deferred]  # pyright: ignore[reportOptionalMemberAccess]
            assert deferred == []
    finally:
        for database in databases:
            await database.close()


async def test_a_pool_has_one_ledger_and_another_one_keeps_away(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with desk(redis_server, tmp_path) as d, desk(redis_server, tmp_path / "other") as stranger:
        await d.keeper.round()
        await stranger.accept(journaled(1))
        await stranger.run(1)
        await _past_the_grace(stranger)
        assert await stranger.keeper.round() == 0
        assert await stranger.ledger.counts() == {"open": 1}
        assert await Outbox(d.r.store).signed(POOL) == await d.ledger.database.identity()
        # It takes over when nobody keeps the other any more.
        d.r.server.command("DEL", keys.ledger(POOL))
        await stranger.keeper.round()
        assert await stranger.ledger.counts() == {"succeeded": 1}
        assert await d.keeper.round() == 0


async def test_ended_jobs_are_kept_as_long_as_results_are(redis_server: RedisServer, tmp_path: Path) -> None:
    async with desk(redis_server, tmp_path, result_life_s=100, key_life_s=100) as d:
        await d.accept(journaled(1), journaled(2, deadline_in_ms=10**7))
        await d.r.worker()
        (claim, _) = await d.r.claim(2)
        await d.r.settle(claim)
        await d.keeper.round()
        d.r.later(99_000)
        d.clock.advance(61)
        await d.keeper.round()
        assert await d.ledger.counts() == {"open": 1, "succeeded": 1}
        d.r.later(2_000)
        d.clock.advance(61)
        await d.keeper.round()
        assert await d.ledger.counts() == {"open": 1}


def test_nothing_of_a_job_is_lost_on_its_way_through_the_ledger() -> None:
    job = journaled(1, idempotency="key", fingerprint="f", metadata={"a": [1]})
    assert replace(Job.decode(job.encode()), id=job.id) == job
