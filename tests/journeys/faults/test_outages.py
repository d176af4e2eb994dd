"""Valkey is away for ten seconds in four ways, or its connections are cut at random bytes; times are printed."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.support.clock import stopwatch
from tests.support.fleet import Fleet
from tests.support.history import DONE, Journal
from tests.support.proxied import ProxyThread
from tests.support.proxy import Blackhole, CutAtByte, DropReply, Ending, EndNow, Fault
from tests.support.reader import Caller, Refused, numbered, until
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.runner import drawn_seed
from tests.support.stage import HANG_LIMIT_S, LEASE_S, RECOVERY_LIMIT_S, Stage, recovering, say

pytestmark = pytest.mark.timeout(120)

OUTAGE_S: Final = 10.0
CUTS: Final = 150


class Wired(Stage):
    """A fleet that reaches its store through a proxy."""

    def __init__(self, fleet: Fleet, proxy: ProxyThread) -> None:
        super().__init__(fleet)
        self.proxy = proxy


@pytest.fixture(scope="module")
def _stage_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    fleet = Fleet(
        tmp_path_factory.mktemp("outages"),
        gateways=0,
        workers=0,
        schedulers=0,
        valkey=EVERY_WRITE_KEPT,
        lease_s=LEASE_S,
        # A claim's lost answer counts as a failed attempt; here many are lost.
        max_attempts=50,
        disconnect_grace_s=5,
        drain_s=3,
        keepalive_s=1,
    )
    with ProxyThread(fleet.redis.port) as proxy:
        for name, room in (("gateway", "gateway"), ("worker", "workers")):
            fleet.add(f"{name}-0", room, redis_url=proxy.url)
            fleet.add(f"{name}-1", room, redis_url=proxy.url)
        fleet.add("scheduler-0", "scheduler", redis_url=proxy.url)
        try:
            yield Wired(fleet.start(), proxy)
        finally:
            fleet.stop()


@pytest.fixture
def stage(_stage_of_all: Wired) -> Iterator[Wired]:
    """The fleet with every member at work; none of them may end, or log a fault."""
    _stage_of_all.proxy.heal()
    _stage_of_all.mend(cancel=True)
    before = {name: member.pid for name, member in _stage_of_all.fleet.members.items()}
    yield _stage_of_all
    _stage_of_all.proxy.heal()
    assert {name: member.pid for name, member in _stage_of_all.fleet.members.items() if member.runs} == before
    _stage_of_all.mend()
    _stage_of_all.check()


def _nothing() -> None:
    """It ends by itself."""


def _outage(stage: Wired, kind: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """How it begins and how it ends."""
    return {
        "frozen": (stage.redis.freeze, stage.redis.thaw),
        "paused": (lambda: stage.redis.command("CLIENT", "PAUSE", int(OUTAGE_S * 1000), "ALL"), _nothing),
        "killed": (stage.redis.kill, stage.redis.start),
        "blackhole": (lambda: stage.proxy.put_in(Blackhole()), stage.proxy.heal),
    }[kind]


@dataclass
class Asked:
    """What was asked during an outage: how long each answer took, and what it was."""

    took_s: dict[str, float] = field(default_factory=dict[str, float])
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    async def ask(self, caller: Caller, what: str, method: str, path: str, body: object = None) -> int:
        """The answer's status."""
        async with stopwatch() as served_s:
            answer = await caller.http.request(method, caller.next_url() + path, json=body)
            self.took_s[what] = max(self.took_s.get(what, 0.0), served_s())
        self.statuses[what, answer.status_code] += 1
        return answer.status_code


@pytest.mark.parametrize(
    "kind",
    [
        "frozen",
        pytest.param("paused", marks=pytest.mark.slow),
        "killed",
        pytest.param("blackhole", marks=pytest.mark.slow),
    ],
)
async def test_an_outage_of_ten_seconds_hangs_no_request_ends_no_process_and_is_over_soon_after(
    stage: Wired, kind: str
) -> None:
    begin, end = _outage(stage, kind)
    asked = Asked()
    async with stage.caller() as caller:
        journals = [Journal(tokens=300) for _ in range(4)]
        tasks = [asyncio.create_task(caller.chat(numbered(300, token_ms=50), journal)) for journal in journals]
        await until(lambda: all(journal.seen >= 3 for journal in journals), "no tokens came")
        await asyncio.to_thread(begin)
        gone_s = time.monotonic()
        async with asyncio.timeout(RECOVERY_LIMIT_S):
            await _until_ready(caller, asked, 503)
        while time.monotonic() - gone_s < OUTAGE_S - HANG_LIMIT_S:
            await _ask_all(caller, asked, journals[0].job_id)
        await until(lambda: time.monotonic() - gone_s >= OUTAGE_S, "time stands still")
        await asyncio.to_thread(end)
        back_s = time.monotonic()
        await asyncio.gather(*(_until_served(caller, stage.fleet.url(number)) for number in (0, 1)))
        say(f"{kind} for 10 s: both gateways gave a whole answer again after (5 s promised)", back_s)
        await asyncio.gather(*tasks)
        say(f"{kind}: the streams were at their end after another", back_s)
    _print(kind, asked, journals)
    assert max(asked.took_s.values()) < HANG_LIMIT_S
    assert {status for what, status in asked.statuses if what == "livez"} == {200}
    assert {status for what, status in asked.statuses if what not in ("livez", "readyz")} == {503}
    assert [problem for journal in journals for problem in journal.problems] == []
    assert {journal.end for journal in journals} <= {DONE, "upstream_interrupted"}
    stage.sound(*(journal.job_id for journal in journals))


async def _until_ready(caller: Caller, asked: Asked, wanted: int) -> None:
    """Both gateways, asked in turn, say so."""
    for _ in (0, 1):
        while await asked.ask(caller, "readyz", "GET", "/readyz") != wanted:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def _ask_all(caller: Caller, asked: Asked, job_id: str) -> None:
    chat = "/v1/chat/completions"
    await asyncio.gather(
        asked.ask(caller, "livez", "GET", "/livez"),
        asked.ask(caller, "readyz", "GET", "/readyz"),
        asked.ask(caller, "a chat", "POST", chat, numbered(3)),
        asked.ask(caller, "a stream", "POST", chat, {**numbered(3), "stream": True}),
        asked.ask(caller, "a record", "GET", f"/v1/jobs/{job_id}"),
        asked.ask(caller, "events", "GET", f"/v1/jobs/{job_id}/events"),
    )
    await asyncio.sleep(0.1)


async def _until_served(caller: Caller, url: str) -> None:
    async with recovering():
        while True:
            answer = await caller.http.post(url + "/v1/chat/completions", json=numbered(3))
            if answer.is_success:
                break
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.02)


def _print(kind: str, asked: Asked, journals: list[Journal]) -> None:
    longest = ", ".join(f"{what} {took_s:.2f} s" for what, took_s in asked.took_s.items())
    ends = dict(Counter(journal.end for journal in journals))
    sys.stdout.write(f"{kind}: {asked.statuses.total()} requests, the longest: {longest}; streams ended {ends}\n")


# --- what goes wrong on the wire --------------------------------------------------------------------------------------


def _drawn(chance: random.Random) -> Fault:
    """One connection loses what the server says, from some byte on, or a request, or an answer."""
    ending = chance.choice([Ending.CLOSE, Ending.RESET])
    kind = chance.randrange(4)
    if kind == 0:
        return EndNow(ending)
    return DropReply(chance.randrange(1, 20), ending) if kind == 1 else CutAtByte(chance.randrange(1, 5_000), ending)


@dataclass
class Traffic:
    """Streams and jobs, one after the other until told to stop, and what became of them."""

    caller: Caller
    over: asyncio.Event = field(default_factory=asyncio.Event)
    journals: list[Journal] = field(default_factory=list[Journal])
    accepted: list[str] = field(default_factory=list[str])
    took_s: list[float] = field(default_factory=list[float])

    async def stream(self) -> None:
        while not self.over.is_set():
            journal = Journal(tokens=30)
            try:
                await self.caller.chat(numbered(30, token_ms=20), journal)
            except Refused as refused:
                assert refused.status == 503, refused
            else:
                self.journals.append(journal)

    async def submit(self) -> None:
        while not self.over.is_set():
            async with stopwatch() as served_s:
                try:
                    self.accepted.append(await self.caller.submit(numbered(3, token_ms=10)))
                except Refused as refused:
                    assert refused.status == 503, refused
                self.took_s.append(served_s())
            await asyncio.sleep(0.02)

    def problems(self) -> list[str]:
        """What a reader saw that can't have been."""
        return [problem for journal in self.journals for problem in journal.problems]

    def __str__(self) -> str:
        ends = dict(Counter(journal.end for journal in self.journals))
        longest_s = max(self.took_s)
        return f"streams ended {ends}; {len(self.accepted)} jobs; the longest submission took {longest_s:.2f} s"


async def test_connections_to_the_store_cut_at_random_bytes_lose_no_job_and_splice_no_stream(stage: Wired) -> None:
    chance = random.Random(drawn_seed())
    async with stage.caller() as caller:
        traffic = Traffic(caller)
        tasks = [asyncio.create_task(work) for work in (*(traffic.stream() for _ in range(6)), traffic.submit())]
        for _ in range(CUTS):
            fault = _drawn(chance)
            stage.proxy.put_in(fault)
            await until(fault.struck.is_set, "nothing was cut")
        stage.proxy.put_in(Fault())
        traffic.over.set()
        async with asyncio.timeout(40):
            await asyncio.gather(*tasks)
            records = await asyncio.gather(*(caller.ended(job_id) for job_id in traffic.accepted))
    sys.stdout.write(f"{CUTS} cuts: {traffic}, {dict(Counter(one['status'] for one in records))}\n")
    assert max(traffic.took_s) < HANG_LIMIT_S
    assert traffic.problems() == []
    assert {journal.end for journal in traffic.journals} <= {DONE, "upstream_interrupted"}
    assert {record["status"] for record in records} == {"succeeded"}
    stage.sound(*traffic.accepted, *(journal.job_id for journal in traffic.journals))
