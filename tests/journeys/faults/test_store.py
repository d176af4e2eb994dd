"""Valkey is killed, frozen, or loses everything; the scheduler is killed, or there are two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest

from common import keys
from tests.support.clock import stopwatch
from tests.support.history import DONE, Journal
from tests.support.reader import Caller, Refused, numbered, until
from tests.support.stage import HANG_LIMIT_S, POOL, Stage, say

pytestmark = pytest.mark.timeout(60)


async def _begin(caller: Caller, count: int, tokens: int) -> tuple[list[Journal], list[asyncio.Task[None]]]:
    """So many streams, tokens coming in each."""
    journals = [Journal(tokens=tokens) for _ in range(count)]
    body = numbered(tokens, token_ms=50)
    tasks = [asyncio.create_task(caller.chat(body, journal)) for journal in journals]
    await until(lambda: all(journal.seen >= 3 for journal in journals), "no tokens came")
    return journals, tasks


async def test_no_accepted_job_is_lost_when_valkey_is_killed_and_started_again(stage: Stage) -> None:
    async with stage.caller() as caller:
        journals, tasks = await _begin(caller, 6, 80)
        ids = [await caller.submit(numbered(20, token_ms=50)) for _ in range(10)]
        delayed = await caller.submit(numbered(3), delay_ms=1_500)
        pids = {name: member.pid for name, member in stage.fleet.members.items()}
        await asyncio.to_thread(stage.redis.kill)
        began_s = time.monotonic()
        await asyncio.to_thread(stage.redis.start)
        back = Journal(tokens=5)
        await _until_taken(caller, back)
        say("Valkey killed and started: the next answer was whole after (5 s promised)", began_s)
        await asyncio.gather(*tasks)
        records = [await caller.ended(job_id) for job_id in (*ids, delayed)]
    assert [problem for journal in (*journals, back) for problem in journal.problems] == []
    assert {journal.end for journal in journals} == {DONE}
    assert {record["status"] for record in records} == {"succeeded"}
    assert {name: member.pid for name, member in stage.fleet.members.items() if member.runs} == pids
    stage.sound(*ids, delayed, back.job_id, *(journal.job_id for journal in journals))


async def _until_taken(caller: Caller, journal: Journal) -> None:
    """Asks again and again until a gateway takes it; then reads it to its end."""
    while not journal.job_id:
        try:
            await caller.chat(numbered(5), journal)
        except Refused as refused:
            assert refused.status == 503, refused


async def test_while_valkey_is_frozen_nothing_hangs_and_gateways_are_alive_but_not_ready(stage: Stage) -> None:
    async with stage.caller() as caller:
        journals, tasks = await _begin(caller, 4, 120)
        stage.redis.freeze()
        frozen_s = time.monotonic()
        asks = {
            "livez": (lambda: caller.http.get(caller.next_url() + "/livez"), 200),
            "readyz": (lambda: caller.http.get(caller.next_url() + "/readyz"), 503),
            "health": (lambda: caller.http.get(caller.next_url() + "/health"), 503),
            "a job": (lambda: caller.http.get(f"{caller.next_url()}/v1/jobs/{journals[0].job_id}"), 503),
            "events": (lambda: caller.http.get(f"{caller.next_url()}/v1/jobs/{journals[0].job_id}/events"), 503),
            "a chat": (lambda: _post(caller, "/v1/chat/completions", numbered(3)), 503),
            "a stream": (lambda: _post(caller, "/v1/chat/completions", {**numbered(3), "stream": True}), 503),
        }
        took_s = await asyncio.gather(*(_ask(name, ask, due) for name, (ask, due) in asks.items()))
        # Asked again, now that the connections are known to be bad.
        took_s += await asyncio.gather(*(_ask(name, ask, due) for name, (ask, due) in asks.items()))
        await until(lambda: time.monotonic() - frozen_s > 4, "time stands still")
        thawed_s = time.monotonic()
        stage.redis.thaw()
        back = Journal(tokens=5)
        await _until_taken(caller, back)
        say("Valkey thawed after 4 s: the next answer was whole after", thawed_s)
        await asyncio.gather(*tasks)
    assert max(took_s) < HANG_LIMIT_S
    assert [problem for journal in (*journals, back) for problem in journal.problems] == []
    assert {journal.end for journal in journals} <= {DONE, "upstream_interrupted"}
    stage.sound(back.job_id, *(journal.job_id for journal in journals))


async def test_what_readers_left_or_were_refused_while_valkey_was_frozen_is_cancelled_afterwards(stage: Stage) -> None:
    left = Journal()
    endless = numbered(3_000, token_ms=20)
    async with stage.caller() as caller:
        reading = await stage.off(caller.chat(endless, left))
        await until(lambda: left.seen >= 3, "no tokens came")
        stage.redis.freeze()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        # Valkey has this one's submission in its ear, and will carry it out although the caller was refused.
        refused = await _post(caller, "/v1/chat/completions", {**endless, "stream": True})
        stage.redis.thaw()
        assert refused.status_code == 503
        assert (await caller.ended(left.job_id))["status"] == "cancelled"
    await until(stage.rests, "something goes on that nobody reads")


async def test_what_was_refused_while_valkey_was_frozen_does_not_run_although_it_was_to_go_on_without_readers(
    stage: Stage,
) -> None:
    endless = numbered(3_000, token_ms=20)
    before = _submitted(stage)
    async with stage.caller() as caller:
        stage.redis.freeze()
        asks = (
            caller.http.post(
                caller.next_url() + "/v1/chat/completions",
                json={**endless, "stream": stream},
                headers={"x-headrace-on-disconnect": "continue"},
            )
            for stream in (True, False) * 4
        )
        answers = await asyncio.gather(*asks)
        stage.redis.thaw()
    assert {answer.status_code for answer in answers} == {503}
    thawed_s = time.monotonic()
    await until(stage.rests, "something goes on that nobody can find")
    say(f"of 8 that were refused Valkey carried out {_submitted(stage) - before}; none was left after", thawed_s)


def _submitted(stage: Stage) -> int:
    return int(stage.redis.command("HGET", keys.stats(POOL), "submitted") or 0)


async def test_a_worker_told_to_stop_while_valkey_is_away_stops_and_its_jobs_are_not_lost(stage: Stage) -> None:
    async with stage.caller() as caller:
        await asyncio.to_thread(stage.fleet.terminate, "worker-1")
        long = await caller.submit(numbered(3, first_token_ms=30_000))
        ids = [await caller.submit(numbered(3, first_token_ms=1_500)), long]
        await until(lambda: all(stage.field(job_id, "state") == "running" for job_id in ids), "they did not begin")
        await asyncio.to_thread(stage.redis.kill)
        told_s = time.monotonic()
        assert await asyncio.to_thread(stage.fleet.terminate, "worker-0") == 0
        say("a worker was gone, without Valkey and with a drain of 3 s, after", told_s)
        await asyncio.to_thread(stage.redis.start)
        await asyncio.to_thread(stage.fleet.start_again, "worker-0")
        assert (await caller.ended(ids[0]))["status"] == "succeeded"
        await until(lambda: stage.field(ids[1], "attempt") == "2", "it did not run again")
        await caller.http.post(f"{caller.next_url()}/v1/jobs/{ids[1]}/cancel")
        assert (await caller.ended(ids[1]))["status"] == "cancelled"
    stage.sound(*ids)


async def _post(caller: Caller, path: str, body: dict[str, object]) -> httpx.Response:
    return await caller.http.post(caller.next_url() + path, json=body)


async def _ask(name: str, ask: Callable[[], Awaitable[httpx.Response]], due: int) -> float:
    """How long the answer took."""
    began_s = time.monotonic()
    async with stopwatch() as served_s:
        answer = await ask()
        took_s = served_s()
    say(f"Valkey frozen: {name} answered {answer.status_code} after", began_s)
    assert answer.status_code == due, (name, answer.text)
    return took_s


async def test_readers_of_a_store_that_lost_everything_are_told_so(stage: Stage) -> None:
    journals = [Journal() for _ in range(6)]
    async with stage.caller() as caller:
        tasks = [asyncio.create_task(caller.chat(numbered(400, token_ms=30), journal)) for journal in journals[:4]]
        tasks += [
            asyncio.create_task(caller.chat(numbered(400, first_token_ms=20_000), journal)) for journal in journals[4:]
        ]
        waiting = asyncio.create_task(_post(caller, "/v1/chat/completions", numbered(5, first_token_ms=20_000)))
        await until(lambda: all(journal.seen >= 3 for journal in journals[:4]), "no tokens came")
        await until(lambda: len(_listed(stage)) == 7, "not all of them are in the queue")
        stage.redis.command("FLUSHALL")
        lost_s = time.monotonic()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        whole = await waiting
        say("everything lost: the last of the readers was told after (about 3 s promised)", lost_s)
        await until(lambda: len(_workers(stage)) == 2, "the workers did not register anew")
        back = Journal(tokens=5)
        await caller.chat(numbered(5), back)
    assert [journal.end for journal in journals[:4]] == ["stream_lost"] * 4
    assert [journal.problems for journal in journals] == [[]] * 6
    for end in ends[4:]:
        assert isinstance(end, Refused) and (end.status, end.code) == (410, "stream_lost"), end
    assert (whole.status_code, whole.json()["error"]["code"]) == (410, "stream_lost")
    assert (back.end, back.problems) == (DONE, [])


def _listed(stage: Stage) -> list[bytes]:
    return stage.redis.command("ZRANGE", keys.deadlines(POOL), 0, -1)


def _workers(stage: Stage) -> list[bytes]:
    return stage.redis.command("ZRANGE", keys.workers(POOL), 0, -1)


async def test_a_part_of_a_stream_that_was_lost_is_told_and_never_skipped(stage: Stage) -> None:
    journal, early, late = Journal(), Journal(), Journal()
    async with stage.caller() as caller:
        reading = await stage.off(caller.chat(numbered(30, token_ms=40, hang_at=30), journal))
        # Nothing is on its way: what is trimmed its reader has. An entry may hold several tokens, but not nearly all.
        await until(lambda: journal.seen == 30, "no tokens came")
        stage.redis.command("XTRIM", keys.stream(POOL, journal.job_id), "MAXLEN", 1)
        early.job_id = late.job_id = journal.job_id
        await caller.follow(early)
        for event in journal.events[:4]:
            late.take(event)
        await caller.follow(late)
        await caller.http.post(f"{caller.next_url()}/v1/jobs/{journal.job_id}/cancel")
        await reading
    assert (early.end, early.seen) == ("stream_expired", 0)
    assert (late.end, late.seen) == ("stream_expired", 4)
    assert (journal.end, journal.problems, early.problems, late.problems) == ("cancelled", [], [], [])


async def test_streams_go_on_without_a_scheduler_and_the_next_one_finds_what_was_left(stage: Stage) -> None:
    async with stage.caller() as caller:
        journals, tasks = await _begin(caller, 3, 40)
        stage.fleet.kill("scheduler-0")
        later = Journal(tokens=10)
        await asyncio.gather(*tasks, caller.chat(numbered(10), later))
        orphan = await caller.submit(numbered(30, token_ms=50))
        await until(lambda: stage.field(orphan, "state") == "running", "it did not begin")
        stage.fleet.kill(stage.holder(orphan))
        delayed = await caller.submit(numbered(3), delay_ms=10)
        cut = await caller.submit(numbered(3), delay_ms=50, deadline_ms=60)
        await asyncio.to_thread(stage.fleet.start_again, "scheduler-0")
        records = [await caller.ended(job_id) for job_id in (orphan, delayed, cut)]
    assert [problem for journal in (*journals, later) for problem in journal.problems] == []
    assert {journal.end for journal in (*journals, later)} == {DONE}
    assert [record["status"] for record in records] == ["succeeded", "succeeded", "expired"]
    stage.sound(orphan, delayed, cut)


async def test_two_schedulers_at_once_double_nothing(stage: Stage) -> None:
    if "scheduler-1" not in stage.fleet.members:
        stage.fleet.add("scheduler-1", "scheduler")
    await asyncio.to_thread(stage.fleet.start_again, "scheduler-1")
    try:
        async with stage.caller() as caller:
            ids = [await caller.submit(numbered(5, token_ms=50), delay_ms=10 * number) for number in range(60)]
            ids += [await caller.submit(numbered(40, token_ms=50)) for _ in range(20)]
            await until(lambda: stage.field(ids[-1], "state") == "running", "it did not begin")
            stage.fleet.kill("worker-0")
            stage.fleet.kill("worker-1")
            await asyncio.to_thread(stage.fleet.start_again, "worker-0")
            records = [await caller.ended(job_id) for job_id in ids]
    finally:
        await asyncio.to_thread(stage.fleet.terminate, "scheduler-1")
        del stage.fleet.members["scheduler-1"]
    assert {record["status"] for record in records} == {"succeeded"}
    # One lost attempt, and no more: had two reapers each counted it, a second failure would stand there.
    assert {int(stage.field(job_id, "failures") or 0) for job_id in ids} <= {0, 1}
    assert {record["attempt"] for record in records} <= {1, 2}
    stage.sound(*ids)
