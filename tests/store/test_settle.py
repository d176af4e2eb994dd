"""settle.lua: a job ends once, by its owner or while it waits, and its stream ends with its outcome."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common import keys
from common.contracts import Failure, OnInterrupt, Outcome, State, Usage
from common.keys import INBOX_MOST_ENTRIES
from common.queue import Released, Retention, Settled, Settlement
from common.stream import INBOX_LIFE_MS, READ_WAIT_S, InboxReader, Refusal
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, View, a_job, job_id, rig, success

CANCELLED = Settlement(Outcome(State.CANCELLED, failure=Failure("cancelled", "x")))
EXPIRED = Settlement(Outcome(State.EXPIRED, failure=Failure("deadline_exceeded", "x")))
DEAD = Settlement(Outcome(State.FAILED, failure=Failure("attempts_used_up", "x")), dead=True)


async def test_an_owners_settle_ends_the_job_and_leaves_only_record_stream_and_counters(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        end = Settlement(
            Outcome(
                State.SUCCEEDED,
                "stop",
                Usage(3, 4, {"prompt_tokens_details": {"cached_tokens": 1}}),
                None,
                {"total": 9},
            ),
            events=b'{"a":1}\n{"b":2}',
            events_seq=2,
            outcome_seq=3,
            result=b'{"id":"x"}',
        )
        assert await r.settle(claim, end=end) is Settled.ENDED
        assert r.view() == View(
            states={1: "succeeded"},
            workers={"w"},
            stats={"submitted": 1, "succeeded": 1, "jobs:m": 1, "tokens:m": 1},
            streams={1: [("s", b"1"), ("c", b'{"a":1}\n{"b":2}'), ("o", end.outcome.encode())]},
        )
        assert r.ids(1) == [f"{claim.fence}-{seq}" for seq in (0, 2, 3)]
        record = await r.queue.get(job_id(1))
        assert record is not None
        assert (record.state, record.outcome, record.result) == (State.SUCCEEDED, end.outcome, b'{"id":"x"}')
        assert record.finished_ms is not None and record.finished_ms >= claim.claimed_ms


async def test_the_same_end_again_says_already_and_changes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        end = success(events=b'{"a":1}', events_seq=1, outcome_seq=2)
        assert await r.settle(claim, end=end) is Settled.ENDED
        before, record = r.view(), r.job(1)
        assert await r.settle(claim, end=end) is Settled.ALREADY
        assert (r.view(), r.job(1)) == (before, record)


async def test_another_end_is_refused(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.settle(claim)
        before = r.view()
        assert await r.settle(claim, end=DEAD) is Settled.REFUSED
        assert await r.settle(claim, end=CANCELLED) is Settled.REFUSED
        assert await r.settle(replace(claim, fence=claim.fence + 1)) is Settled.REFUSED
        assert r.view() == before


@pytest.mark.parametrize("worker, step", [("other", 0), ("w", 1), ("w", -1), ("", 0)])
async def test_a_settle_by_anyone_but_the_owner_is_refused(redis_server: RedisServer, worker: str, step: int) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        before = r.view()
        assert await r.settle(replace(claim, fence=claim.fence + step), worker) is Settled.REFUSED
        assert r.view() == before


async def test_an_unknown_job_is_unknown(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.queue.settle(POOL, job_id(9), "w", 1, success()) is Settled.UNKNOWN
        assert redis_server.command("DBSIZE") == 0


async def test_a_waiting_job_can_be_ended_and_its_lane_goes_when_it_was_the_last(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1), a_job(2), a_job(3, delay_ms=1000))
        assert await r.queue.settle(POOL, job_id(1), "", 0, EXPIRED) is Settled.ENDED
        assert (r.view().lanes, r.view().named) == ({"0:m": [2]}, {"0:m"})
        assert await r.queue.settle(POOL, job_id(2), "", 0, EXPIRED) is Settled.ENDED
        assert await r.queue.settle(POOL, job_id(3), "", 0, EXPIRED) is Settled.ENDED
        assert await r.queue.settle(POOL, job_id(3), "", 0, EXPIRED) is Settled.ALREADY
        outcome = [("o", EXPIRED.outcome.encode())]
        assert r.view() == View(
            states={1: "expired", 2: "expired", 3: "expired"},
            bells=2,
            stats={"submitted": 3, "expired": 3},
            streams={1: outcome, 2: outcome, 3: outcome},
        )


async def test_a_waiting_job_that_ran_before_is_ended_by_its_last_fence_only(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=False)
        assert await r.queue.settle(POOL, claim.job.id, "", 0, CANCELLED) is Settled.REFUSED
        assert await r.queue.settle(POOL, claim.job.id, "", claim.fence, CANCELLED) is Settled.ENDED
        assert r.ids(1) == [f"{claim.fence}-0", f"{claim.fence}-1"]
        assert r.view().lanes == {}


async def test_a_zombie_can_neither_append_nor_settle_nor_release_what_another_runs_now(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        old = await r.running(a_job(1, on_interrupt=OnInterrupt.RESTART), "zombie")
        assert await r.append(old, 1, b'{"old":1}', "zombie") is None
        r.later(20_000)
        assert await r.queue.reap(POOL) == [("zombie", job_id(1), old.fence)]
        assert await r.queue.release(POOL, job_id(1), "zombie", old.fence, failed=True) is Released.PUT_BACK
        # Between the two, nobody owns it.
        await refused(r, old)
        await r.worker("heir")
        [new] = await r.claim(worker="heir")
        await refused(r, old)
        assert await r.append(new, 1, b'{"new":1}', "heir") is None
        assert await r.settle(new, "heir", success(outcome_seq=2)) is Settled.ENDED
        await refused(r, old)
        kinds = [(kind, body) for kind, body in r.view().streams[1] if kind != "o"]
        assert kinds == [("s", b"1"), ("c", b'{"old":1}'), ("s", b"2"), ("c", b'{"new":1}')]


async def refused(r: Rig, old: object) -> None:
    """Everything that the zombie tries is refused and changes nothing."""
    before = r.view()
    assert await r.append(old, 7, b"{}", "zombie") is Refusal.FENCED  # pyright: ignore[reportArgumentType]
    assert await r.settle(old, "zombie") is Settled.REFUSED  # pyright: ignore[reportArgumentType]
    answer = await r.queue.release(POOL, job_id(1), "zombie", old.fence, failed=True)  # pyright: ignore[reportAttributeAccessIssue]
    assert answer is Released.REFUSED
    assert not await r.queue.beat(POOL, "zombie", lease_s=5, info={})
    assert r.view() == before


async def test_nothing_follows_an_outcome_even_from_the_workers_own_hand(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1), gateway="g")
        await r.streams.keep_inbox(POOL, "g")
        await r.append(claim, 1, b"{}")
        # The reaper ends it in the name of the worker that seemed dead.
        assert await r.settle(claim, end=DEAD) is Settled.ENDED
        inbox = redis_server.command("XRANGE", keys.inbox(POOL, "g"), "-", "+")
        assert await r.append(claim, 50, b'{"late":1}') is Refusal.FENCED
        assert [kind for kind, _ in r.view().streams[1]] == ["s", "c", "o"]
        assert redis_server.command("XRANGE", keys.inbox(POOL, "g"), "-", "+") == inbox


async def test_the_outcome_comes_after_the_last_entry_whatever_number_was_hoped_for(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.append(claim, 10, b"{}")
        # Its number is taken, as after a try whose reply was lost.
        assert await r.settle(claim, end=success(outcome_seq=4)) is Settled.ENDED
        assert r.ids(1) == [f"{claim.fence}-{seq}" for seq in (0, 10, 11)]


async def test_last_tokens_that_were_appended_already_are_not_doubled(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1))
        await r.append(claim, 3, b'{"t":3}')
        await r.settle(claim, end=success(events=b'{"t":3}', events_seq=3, outcome_seq=4))
        assert r.ids(1) == [f"{claim.fence}-{seq}" for seq in (0, 3, 4)]


async def test_a_dead_job_is_listed_and_the_list_is_bounded(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        dead = keys.dead(POOL)
        redis_server.command("ZADD", dead, *(word for n in range(10_000) for word in (n, job_id(n + 10))))
        claim = await r.running(a_job(1))
        assert await r.settle(claim, end=DEAD) is Settled.ENDED
        assert redis_server.command("ZCARD", dead) == 10_000
        assert redis_server.command("ZSCORE", dead, job_id(10)) is None
        assert int(float(redis_server.command("ZSCORE", dead, job_id(1)))) == int(r.job(1)["finished_ms"])
        assert r.view().stats["failed"] == 1


async def test_record_and_stream_of_an_ended_job_live_as_long_as_retention_says(redis_server: RedisServer) -> None:
    async with rig(redis_server, retention=Retention(result_s=500, stream_s=100)) as r:
        await r.settle(await r.running(a_job(1)))
        assert 490_000 < redis_server.command("PTTL", keys.job(POOL, job_id(1))) <= 500_000
        assert 90_000 < redis_server.command("PTTL", keys.stream(POOL, job_id(1))) <= 100_000


@pytest.mark.parametrize("deadline_in_ms", [60_000, 3_600_000, 86_400_000])
async def test_an_ended_jobs_record_stays_its_time_and_at_most_a_quarter_more(
    redis_server: RedisServer, deadline_in_ms: int
) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, deadline_in_ms=deadline_in_ms))
        await r.worker()
        [claim] = await r.claim()
        assert await r.settle(claim) is Settled.ENDED
        day_ms = Retention().result_s * 1000
        assert day_ms - 60_000 < redis_server.command("PTTL", keys.job(POOL, job_id(1))) <= day_ms * 1.25


async def test_every_gateway_that_reads_gets_the_last_tokens_and_the_outcome_in_one_frame(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        for gateway in ("g1", "g2"):
            await r.streams.keep_inbox(POOL, gateway)
        claim = await r.running(a_job(1), gateway="g1")
        assert await r.streams.subscribe(job_id(1), "g2")
        end = success(events=b'{"a":1}', events_seq=1, outcome_seq=2, result=b'{"all":1}')
        await r.settle(claim, end=end)
        for gateway in ("g1", "g2"):
            [(_, hello), (_, frame)] = redis_server.command("XRANGE", keys.inbox(POOL, gateway), "-", "+")
            assert hello == [b"hello", b""]
            name, at = job_id(1).encode(), str(claim.fence).encode()
            assert frame == [name, at + b"-1", b"c", b'{"a":1}', name, at + b"-2", b"o", end.outcome.encode()]


async def test_a_job_without_token_readers_gets_its_result_with_the_outcome(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.streams.keep_inbox(POOL, "g")
        claim = await r.running(a_job(1), gateway="g")
        end = success(events=b'{"a":1}', events_seq=1, outcome_seq=2, result=b'{"all":1}', share_result=True)
        await r.settle(claim, end=end)
        async with r.store.blocking() as connection:
            [(name, entry)] = await InboxReader(connection, "g", (POOL,)).frames()
        assert (name, entry.kind, entry.body) == (job_id(1).encode(), b"o", end.outcome.encode())
        assert (entry.result, str(entry.last)) == (b'{"all":1}', f"{claim.fence}-2")
        assert [kind for kind, _ in r.view().streams[1]] == ["s", "c", "o"]


async def test_an_ended_jobs_frames_make_no_inbox_where_there_is_none(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1), gateway="gone")
        await r.settle(claim)
        assert redis_server.command("EXISTS", keys.inbox(POOL, "gone")) == 0
        assert r.view().abandoned == set()


async def test_counters_add_up_over_every_kind_of_end(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.submit(*(a_job(number) for number in range(7)))
        ends = [success(), success(), DEAD, CANCELLED, EXPIRED]
        for claim, end in zip(await r.claim(5), ends, strict=True):
            await r.settle(claim, end=end)
        stats = await r.queue.stats(POOL)
        ended = sum(stats.get(state.value, 0) for state in State if state.ended)
        assert stats["submitted"] == ended + len(r.view().lanes["0:m"]) == 7
        assert (stats["succeeded"], stats["failed"], stats["cancelled"], stats["expired"]) == (2, 1, 1, 1)


async def test_measured_rates_stand_beside_the_counters(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        await r.queue.note_rates(POOL, {"jobs_per_s": 2.5})
        assert await r.queue.stats(POOL) == {"submitted": 1.0, "jobs_per_s": 2.5}


def test_the_inbox_outlives_a_reading_rounds_wait() -> None:
    assert INBOX_LIFE_MS > 3 * READ_WAIT_S * 1000
    assert INBOX_MOST_ENTRIES > 256
