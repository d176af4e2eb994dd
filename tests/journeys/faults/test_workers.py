"""A worker is killed, frozen or drained in the middle of its work."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.support.history import DONE, Journal
from tests.support.reader import numbered, until
from tests.support.stage import Stage, say

pytestmark = pytest.mark.timeout(60)

SLOW = numbered(60, token_ms=60)


async def test_a_job_whose_worker_is_killed_before_its_first_token_runs_again_and_its_reader_sees_each_token_once(
    stage: Stage,
) -> None:
    journal = Journal(tokens=30)
    async with stage.caller() as caller:
        reading = await stage.off(caller.chat(numbered(30, first_token_ms=3_000), journal))
        # The status is out only with the first token; the store knows the job before.
        job_id = await _running_job(stage)
        killed_s = time.monotonic()
        stage.fleet.kill(stage.holder(job_id))
        await reading
    say("killed before the first token, whole answer after", killed_s)
    assert journal.problems == []
    assert (journal.end, journal.resets, journal.connections) == (DONE, 0, 1)
    assert stage.field(job_id, "attempt") == "2"
    stage.sound(job_id)


async def _running_job(stage: Stage) -> str:
    found: list[str] = []

    def look() -> bool:
        ids = [raw.decode() for raw in stage.redis.command("ZRANGE", "hr:{default}:deadlines", 0, -1)]
        found[:] = [job_id for job_id in ids if stage.field(job_id, "state") == "running"]
        return bool(found)

    await until(look, "no job runs")
    return found[0]


async def test_a_stream_whose_worker_is_killed_ends_with_an_explicit_error_after_exactly_what_was_made(
    stage: Stage,
) -> None:
    journal = Journal(tokens=60)
    async with stage.caller() as caller:
        reading = await stage.off(caller.chat(SLOW, journal))
        await until(lambda: journal.seen >= 5, "no tokens came")
        killed_s = time.monotonic()
        stage.fleet.kill(stage.holder(journal.job_id))
        await reading
        say("killed in mid-stream, upstream_interrupted after (lease + 2 s = 4 s)", killed_s)
        record = await caller.job(journal.job_id)
    assert journal.problems == []
    assert (journal.end, journal.resets, journal.connections) == ("upstream_interrupted", 0, 1)
    assert (record["status"], record["error"]["code"]) == ("failed", "upstream_interrupted")
    assert 5 <= journal.seen < 60
    assert journal.seen == _tokens_in(stage, journal.job_id), "the reader has not all that was written"
    stage.sound(journal.job_id)


def _tokens_in(stage: Stage, job_id: str) -> int:
    return sum(body.count("\n") + 1 for _, kind, body in stage.entries(job_id) if kind == "c")


async def test_a_stream_that_allows_it_begins_anew_after_a_reset_when_its_worker_is_killed(stage: Stage) -> None:
    journal, late = Journal(tokens=60), Journal(tokens=60)
    async with stage.caller() as caller:
        reading = await stage.off(caller.chat(SLOW, journal, on_interrupt="restart"))
        await until(lambda: journal.seen >= 5, "no tokens came")
        # Someone who comes back with a position of the first attempt must learn of the second.
        stage.fleet.kill(stage.holder(journal.job_id))
        late.job_id = journal.job_id
        for event in journal.events[:3]:
            late.take(event)
        await asyncio.gather(reading, caller.follow(late))
    assert (journal.problems, late.problems) == ([], [])
    assert (journal.end, journal.resets, late.end, late.resets) == (DONE, 1, DONE, 1)
    stage.sound(journal.job_id)


async def test_a_job_in_the_background_whose_worker_is_killed_runs_again_and_succeeds(stage: Stage) -> None:
    async with stage.caller() as caller:
        ids = [await caller.submit(numbered(40, token_ms=50)) for _ in range(4)]
        await until(lambda: all(stage.entries(job_id)[1:] for job_id in ids), "not all of them began")
        stage.fleet.kill(stage.holder(ids[0]))
        records = [await caller.ended(job_id) for job_id in ids]
    assert [record["status"] for record in records] == ["succeeded"] * 4
    texts = {record["result"]["choices"][0]["message"]["content"] for record in records}
    assert texts == {"".join(f" {number}" for number in range(40))}
    assert any(record["attempt"] > 1 for record in records)
    stage.sound(*ids)


async def test_a_job_that_kills_its_workers_is_given_up_as_dead_after_its_last_attempt(stage: Stage) -> None:
    async with stage.caller() as caller:
        job_id = await caller.submit(numbered(10, first_token_ms=60_000))
        for attempt in ("1", "2", "3"):
            await until(lambda due=attempt: _runs(stage, job_id, due), f"attempt {attempt} did not begin")
            name = stage.holder(job_id)
            stage.fleet.kill(name)
            await asyncio.to_thread(stage.fleet.start_again, name)
        record = await caller.ended(job_id)
    assert (record["status"], record["error"]["code"]) == ("failed", "attempts_exhausted")
    assert stage.redis.command("ZSCORE", "hr:{default}:dead", job_id) is not None
    stage.sound(job_id)


def _runs(stage: Stage, job_id: str, attempt: str) -> bool:
    return (stage.field(job_id, "state"), stage.field(job_id, "attempt")) == ("running", attempt)


async def test_a_worker_that_wakes_after_its_lease_can_write_nothing_more_and_works_on_under_a_new_name(
    stage: Stage,
) -> None:
    journal, cut = Journal(tokens=60), Journal(tokens=60)
    async with stage.caller() as caller:
        await asyncio.to_thread(stage.fleet.terminate, "worker-1")  # all of it is worker-0's
        readings = [
            await stage.off(caller.chat(SLOW, journal, on_interrupt="restart")),
            await stage.off(caller.chat(SLOW, cut)),
        ]
        await until(lambda: journal.seen >= 5 and cut.seen >= 5, "no tokens came")
        owner = stage.field(journal.job_id, "worker")
        stage.fleet.freeze("worker-0")
        await until(lambda: stage.field(journal.job_id, "state") != "running", "its lease did not lapse")
        await until(lambda: cut.end is not None, "the other stream was not ended")
        await asyncio.to_thread(stage.fleet.start_again, "worker-1")
        await until(lambda: _runs(stage, journal.job_id, "2"), "nobody took the job over")
        stage.fleet.thaw("worker-0")
        await asyncio.gather(*readings)
        await until(lambda: _listed(stage, "worker-0") not in ("", owner), "the zombie did not register anew")
    assert (journal.problems, cut.problems) == ([], [])
    assert (journal.end, journal.resets, cut.end) == (DONE, 1, "upstream_interrupted")
    stage.sound(journal.job_id, cut.job_id)
    assert "worker.fenced" in stage.fleet.members["worker-0"].log()


def _listed(stage: Stage, name: str) -> str:
    """The id under which a member is registered; '' while it isn't."""
    pid = str(stage.fleet.members[name].pid)
    listed = [raw.decode() for raw in stage.redis.command("ZRANGE", "hr:{default}:workers", 0, -1)]
    return next((worker for worker in listed if worker.split(".")[1] == pid), "")


async def test_a_worker_told_to_stop_lets_its_streams_end_and_takes_nothing_new(stage: Stage) -> None:
    journal, later = Journal(tokens=40), Journal(tokens=5)
    async with stage.caller() as caller:
        await asyncio.to_thread(stage.fleet.terminate, "worker-1")
        reading = await stage.off(caller.chat(numbered(40, token_ms=50), journal))
        await until(lambda: journal.seen >= 3, "no tokens came")
        told = stage.fleet.members["worker-0"].log().count("worker.draining")
        stage.fleet.members["worker-0"].signal(signal.SIGTERM)
        # A signal is heard when the process gets its turn, and until then it may take a job.
        await until(
            lambda: stage.fleet.members["worker-0"].log().count("worker.draining") > told, "it did not hear the signal"
        )
        waiting = await stage.off(caller.chat(numbered(5), later))
        await reading
        status = await asyncio.to_thread(stage.fleet.members["worker-0"].wait)
        assert later.seen == 0
        await asyncio.to_thread(stage.fleet.start_again, "worker-1")
        await waiting
    assert (status, journal.end, journal.problems) == (0, DONE, [])
    assert (later.end, later.problems, stage.field(later.job_id, "attempt")) == (DONE, [], "1")
    stage.sound(journal.job_id, later.job_id)


async def test_what_outlasts_a_workers_drain_goes_back_without_a_failure_or_ends_explicitly(stage: Stage) -> None:
    cut = Journal(tokens=600)
    long = numbered(600, token_ms=50)
    async with stage.caller() as caller:
        await asyncio.to_thread(stage.fleet.terminate, "worker-1")
        reading = await stage.off(caller.chat(long, cut))
        begun = await caller.submit(numbered(12, first_token_ms=4_500))
        await until(lambda: cut.seen >= 3 and _runs(stage, begun, "1"), "they did not begin")
        told_s = time.monotonic()
        stage.fleet.members["worker-0"].signal(signal.SIGTERM)
        status = await asyncio.to_thread(stage.fleet.members["worker-0"].wait)
        say("a worker with endless work was gone after its drain of 3 s", told_s)
        await reading
        assert (stage.field(begun, "state"), stage.field(begun, "failures") or "0") == ("queued", "0")
        await asyncio.to_thread(stage.fleet.start_again, "worker-1")
        record = await caller.ended(begun)
    assert (status, cut.end, cut.problems) == (0, "upstream_interrupted", [])
    assert (record["status"], record["attempt"]) == ("succeeded", 2)
    stage.sound(cut.job_id, begun)


async def test_an_upstream_that_breaks_off_in_mid_stream_is_told_of_and_not_asked_again(stage: Stage) -> None:
    journal = Journal(tokens=20)
    async with stage.caller() as caller:
        await caller.chat(numbered(20, token_ms=30, fail_at=7, error="upstream_unreachable"), journal)
    assert (journal.end, journal.seen, journal.problems) == ("upstream_interrupted", 7, [])
    stage.sound(journal.job_id)
