"""A gateway is killed, drained or replaced while streams are open; readers are slow, or hang up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.support import runner
from tests.support.fleet import Member
from tests.support.history import DONE, Journal
from tests.support.reader import Caller, Pieces, numbered, script, until
from tests.support.stage import Stage, say

pytestmark = pytest.mark.timeout(90)


async def test_readers_of_a_killed_gateway_resume_at_another_and_get_every_event_once(stage: Stage) -> None:
    journals = [Journal(tokens=50) for _ in range(8)]
    body = numbered(50, token_ms=60)
    async with stage.caller() as caller:
        readings = [await stage.off(caller.chat(body, journal, stage.fleet.url(0))) for journal in journals]
        await until(lambda: all(journal.seen >= 3 for journal in journals), "no tokens came")
        killed_s = time.monotonic()
        stage.fleet.kill("gateway-0")
        await until(lambda: all(journal.connections > 1 for journal in journals), "not all of them resumed")
        say("all readers of a killed gateway resumed after", killed_s)
        await asyncio.gather(*readings)
    assert [journal.problems for journal in journals] == [[]] * 8
    assert {(journal.end, journal.resets) for journal in journals} == {(DONE, 0)}
    stage.sound(*(journal.job_id for journal in journals))


async def test_what_nobody_resumes_after_a_gateways_death_is_cancelled_unless_it_was_to_go_on(stage: Stage) -> None:
    left, kept = Journal(), Journal()
    endless = numbered(2_000, token_ms=20)
    async with stage.caller() as caller:
        tasks = [
            await stage.off(caller.chat(endless, left, stage.fleet.url(0))),
            await stage.off(
                # Whether a crowded machine lets a lease lapse meanwhile is not what is asked here.
                caller.chat(
                    numbered(400, token_ms=20),
                    kept,
                    stage.fleet.url(0),
                    on_disconnect="continue",
                    on_interrupt="restart",
                )
            ),
        ]
        await until(lambda: left.seen >= 3 and kept.seen >= 3, "no tokens came")
        stage.fleet.kill("gateway-0")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        killed_s = time.monotonic()
        record = await caller.ended(left.job_id, 40)
        say("a killed gateway's stream that nobody resumed was cancelled after", killed_s)
        other = await caller.ended(kept.job_id, 40)
    assert (record["status"], other["status"], other["error"]) == ("cancelled", "succeeded", None)
    stage.sound(left.job_id, kept.job_id)


async def test_a_gateway_told_to_stop_lets_short_streams_end_and_cuts_long_ones_so_that_they_can_resume(
    stage: Stage,
) -> None:
    short, long = Journal(tokens=20), Journal(tokens=110)
    async with stage.caller() as caller:
        readings = [
            await stage.off(caller.chat(numbered(110, token_ms=50), long, stage.fleet.url(0))),
            await stage.off(caller.chat(numbered(20, token_ms=20), short, stage.fleet.url(0))),
        ]
        await until(lambda: short.seen >= 3 and long.seen >= 3, "no tokens came")
        told_s = time.monotonic()
        stage.fleet.members["gateway-0"].signal(signal.SIGTERM)
        status = await asyncio.to_thread(stage.fleet.members["gateway-0"].wait)
        say("a gateway with open streams was gone after its drain of 3 s", told_s)
        await asyncio.gather(*readings)
    assert status == 0
    # To end a stream in the middle is no fault of the application's.
    assert "ASGI callable" not in stage.fleet.members["gateway-0"].log()
    assert (short.problems, short.end, short.connections) == ([], DONE, 1)
    assert (long.problems, long.end, long.resets) == ([], DONE, 0)
    assert long.connections > 1
    stage.sound(short.job_id, long.job_id)


async def test_a_rolling_restart_of_everything_under_load_fails_no_resuming_caller(stage: Stage) -> None:
    journals: list[Journal] = []
    rolling = asyncio.Event()
    async with stage.caller() as caller:
        loads = [asyncio.create_task(_load(caller, journals, rolling)) for _ in range(8)]
        began_s = time.monotonic()
        for name in ("gateway-0", "worker-0", "scheduler-0", "gateway-1", "worker-1"):
            assert await asyncio.to_thread(stage.fleet.terminate, name) == 0
            await asyncio.to_thread(stage.fleet.start_again, name)
        rolling.set()
        await asyncio.gather(*loads)
    say(f"rolled two gateways, two workers and a scheduler under {len(journals)} streams", began_s)
    assert [problem for journal in journals for problem in journal.problems] == []
    assert {journal.end for journal in journals} == {DONE}
    stage.sound(*(journal.job_id for journal in journals))


async def _load(caller: Caller, journals: list[Journal], rolling: asyncio.Event) -> None:
    """Streams one after the other, as long as things are rolled."""
    while not rolling.is_set():
        journal = Journal(tokens=15)
        while not journal.job_id:
            try:
                await caller.chat(numbered(15, token_ms=40), journal)
            except httpx.TransportError:
                continue  # that gateway is closing, and nothing was answered: another takes it
        journals.append(journal)


# --- readers that don't read ------------------------------------------------------------------------------------------

BIG = script(text="x" * 2_000, tokens=4_000)
STALLED = 8


def _slow_caller(stage: Stage, window_bytes: int = 4_096) -> Caller:
    """A caller of the first gateway for whom the system takes no more than this."""
    transport = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)])
    return Caller([stage.fleet.url(0)], transport=transport)


async def test_a_reader_that_pauses_for_longer_than_its_stream_lasts_then_gets_all_of_it(stage: Stage) -> None:
    journal = Journal(tokens=4_000, numbered=False)
    async with stage.caller(1) as caller, _slow_caller(stage, 65_536) as slow:
        async with slow.chatting(BIG, journal, slow.next_url()) as pieces:
            await slow.read(pieces, journal, until=lambda: journal.seen > 0)
            await caller.ended(journal.job_id)  # it takes nothing meanwhile
            await slow.read(pieces, journal)
        sent_away = journal.seen
        await caller.follow(journal)
    sys.stdout.write(f"a reader that paused got {sent_away} of 4000 tokens over its first connection\n")
    assert (journal.problems, journal.end) == ([], DONE)
    stage.sound(journal.job_id)


async def test_readers_that_take_nothing_cost_a_gateway_little_and_hold_nobody_up(stage: Stage) -> None:
    gateway = stage.fleet.members["gateway-0"]
    journal = Journal(tokens=40)
    async with stage.caller(0) as caller, AsyncExitStack() as stalled:
        # What a gateway needs for a fast stream as such is not the slow readers'.
        await caller.ended(await _stall(stage, stalled))
        before_kib = _resident_kib(gateway)
        ids = [await _stall(stage, stalled) for _ in range(STALLED)]
        await caller.chat(numbered(40, token_ms=20), journal)
        records = [await caller.ended(job_id) for job_id in ids]
        each_kib = (_resident_kib(gateway) - before_kib) / STALLED
    sys.stdout.write(f"each reader that took nothing of 8 MB cost the gateway {each_kib:.0f} KiB\n")
    assert (journal.problems, journal.end, journal.connections) == ([], DONE, 1)
    assert {record["status"] for record in records} == {"succeeded"}
    assert each_kib < 6_144
    stage.sound(journal.job_id, *ids)


async def _stall(stage: Stage, stalled: AsyncExitStack) -> str:
    """The id of a large job's stream whose reader takes nothing but the head."""
    slow = await stalled.enter_async_context(_slow_caller(stage))
    journal = Journal(numbered=False)
    await stalled.enter_async_context(slow.chatting(BIG, journal, slow.next_url()))
    return journal.job_id


async def test_many_readers_that_resume_a_large_answer_and_take_nothing_cost_little_too(stage: Stage) -> None:
    gateway = stage.fleet.members["gateway-0"]
    async with stage.caller(0) as caller, AsyncExitStack() as stalled:
        job_id = await caller.submit(BIG)
        await caller.ended(job_id)
        readers = [await _stall_on(stage, stalled, job_id)]
        before_kib = _resident_kib(gateway)
        for _ in range(STALLED):
            readers.append(await _stall_on(stage, stalled, job_id))
        each_kib = (_resident_kib(gateway) - before_kib) / STALLED
        assert (await caller.http.get(caller.next_url() + "/health")).json()["streams"] == len(readers)
    sys.stdout.write(f"each reader that resumed 8 MB and took nothing cost the gateway {each_kib:.0f} KiB\n")
    assert each_kib < 6_144


async def _stall_on(stage: Stage, stalled: AsyncExitStack, job_id: str) -> Pieces:
    """A reader of a job that takes nothing but its head and a first piece; it hangs up when it is forgotten."""
    slow = await stalled.enter_async_context(_slow_caller(stage))
    journal = Journal(numbered=False, job_id=job_id)
    pieces = await stalled.enter_async_context(slow.following(journal, slow.next_url()))
    await slow.read(pieces, journal, until=lambda: True)
    return pieces


def _resident_kib(member: Member) -> int:
    with open(f"/proc/{member.pid}/status", encoding="ascii") as lines:
        (found,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(found.split()[1])


# --- leaks ------------------------------------------------------------------------------------------------------------


def _files(member: Member) -> int:
    return len(os.listdir(f"/proc/{member.pid}/fd"))


async def _figure(caller: Caller, name: str) -> float:
    text = (await caller.http.get(caller.next_url() + "/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + (" ")))


async def test_hundreds_of_readers_that_hang_up_leave_no_file_connection_or_reader_behind(stage: Stage) -> None:
    gateway = stage.fleet.members["gateway-0"]
    async with stage.caller(0) as caller:
        job_id = await caller.submit(numbered(4_000, token_ms=20))
        await _hang_up_often(caller, job_id, 20)
        await _quiet(caller)
        files, store = _files(gateway), _connections(stage)
        began_s = time.monotonic()
        for _ in range(10):
            await asyncio.gather(_hang_up_often(caller, job_id, 15), _chat_and_leave(caller, 15))
        await _quiet(caller)
        say("300 readers came and hung up in", began_s)
        await until(lambda: _files(gateway) <= files + 2, f"{_files(gateway)} files are open, {files} were before")
        await until(
            lambda: _connections(stage) <= store + 1, f"{_connections(stage)} store connections, {store} before"
        )
        await caller.http.post(f"{caller.next_url()}/v1/jobs/{job_id}/cancel")
        assert (await caller.ended(job_id))["status"] == "cancelled"
    # What they left is cancelled after its grace, and no worker goes on with it.
    await until(stage.rests, "left streams were not cancelled")


async def _hang_up_often(caller: Caller, job_id: str, times: int) -> None:
    for number in range(times):
        journal = Journal(job_id=job_id)
        reading = asyncio.create_task(caller.follow_once(journal, caller.next_url()))
        if number % 2:
            await until(lambda seen=journal: seen.events, "no event came")
        await _drop(reading)


async def _chat_and_leave(caller: Caller, times: int) -> None:
    for number in range(times):
        journal = Journal()
        reading = asyncio.create_task(caller.chat(numbered(500, token_ms=20), journal))
        if number % 2:
            await until(lambda seen=journal: seen.events, "no event came")
        await _drop(reading)


async def _drop(reading: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _quiet(caller: Caller) -> None:
    """Returns once the gateway has no reader and no open stream."""

    async def nobody_reads() -> bool:
        health = await caller.http.get(caller.next_url() + "/health")
        return health.json()["streams"] == 0 and await _figure(caller, "headrace_streams_open") == 0

    await runner.until(nobody_reads)


def _connections(stage: Stage) -> int:
    return len(stage.redis.command("CLIENT", "LIST").splitlines())
