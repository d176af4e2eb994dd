"""Valkey fills up while a hundred streams run: new work is refused in time, running work ends, nothing is evicted."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hiredis import ReplyError

from common.inspection import parse_info
from tests.support.fleet import ECHO, Fleet
from tests.support.history import DONE, Journal
from tests.support.reader import Caller, Refused, numbered, until
from tests.support.redis_server import RedisServer
from tests.support.stage import LEASE_S, RECOVERY_LIMIT_S, Stage, recovering, say

pytestmark = pytest.mark.timeout(90)

STREAMS: Final = 100
TOKENS: Final = 150
LIMIT_BYTES: Final = 64_000_000
PIECE_BYTES: Final = 250_000


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A fleet whose Valkey has a limit."""
    place = tmp_path_factory.mktemp("memory")
    fleet = Fleet(
        place,
        config=ECHO.replace("kind: echo", "kind: echo, concurrency: 999"),
        valkey=("--maxmemory", str(LIMIT_BYTES)),
        worker_concurrency=2 * STREAMS,
        lease_s=LEASE_S,
        keepalive_s=1,
    )
    try:
        yield Stage(fleet.start())
    finally:
        fleet.stop()


class Ballast:
    """Data that nobody needs, in the way of the data that are."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._pieces = 0

    @property
    def share(self) -> float:
        """How much of its limit the server uses."""
        said = self.info()
        return (int(said["used_memory"]) - int(said["mem_not_counted_for_evict"])) / int(said["maxmemory"])

    def info(self) -> dict[str, str]:
        """What the server says of itself."""
        return parse_info(self._server.command("INFO", "everything"))

    def fill(self, share: float) -> None:
        """Adds until so much is used, or the server takes no more."""
        while (missing := share - self.share) > 0:
            for _ in range(1 + int(missing * LIMIT_BYTES / PIECE_BYTES / 2)):
                try:
                    self._server.command("SET", f"ballast:{self._pieces}", b"x" * PIECE_BYTES)
                except ReplyError as error:
                    assert str(error).startswith("OOM"), error
                    return
                self._pieces += 1

    def drop(self) -> None:
        """Takes all of it away."""
        for number in range(self._pieces):
            self._server.command("DEL", f"ballast:{number}")
        self._pieces = 0


async def test_a_server_that_fills_up_during_a_hundred_streams_loses_none_of_them_and_takes_work_again_soon(
    stage: Stage,
) -> None:
    ballast = Ballast(stage.redis)
    async with stage.caller(0) as caller:
        journals, tasks = await _begin(caller)
        await asyncio.to_thread(ballast.fill, 0.77)
        accepted = await caller.submit(numbered(5), delay_ms=2_000)
        await asyncio.to_thread(ballast.fill, 0.81)
        refused = await _until_refused(caller)
        _say_share("new work was refused at", ballast)
        assert (refused.status, refused.code) == (503, "store_full")
        await _while_full(caller, min(journals, key=lambda one: one.seen).job_id)
        await asyncio.to_thread(ballast.fill, 1.1)
        _say_share("filled to", ballast)
        assert ballast.share > 0.97
        await asyncio.gather(*tasks)
        assert (await caller.ended(accepted))["status"] == "succeeded"
        assert (await _asked(caller)).status_code == 503
        info = ballast.info()
        freed_s = time.monotonic()
        await asyncio.to_thread(ballast.drop)
        back = Journal(tokens=5)
        await _until_taken(caller, back)
        say("memory free again: new work was taken and answered after (5 s promised)", freed_s)
        assert (await _json(caller, "/health"))["store"] == "ok"
    assert info["evicted_keys"] == "0"
    assert [problem for journal in (*journals, back) for problem in journal.problems] == []
    assert {journal.end for journal in (*journals, back)} == {DONE}
    stage.sound(accepted, back.job_id, *(journal.job_id for journal in journals))
    stage.check()


async def _begin(caller: Caller) -> tuple[list[Journal], list[asyncio.Task[None]]]:
    journals = [Journal(tokens=TOKENS) for _ in range(STREAMS)]
    body = numbered(TOKENS, token_ms=80)
    tasks = [asyncio.create_task(caller.chat(body, journal)) for journal in journals]
    await until(lambda: all(journal.seen >= 3 for journal in journals), "no tokens came")
    return journals, tasks


async def _until_refused(caller: Caller) -> Refused:
    """The first refusal; jobs that are taken until then are small."""
    async with asyncio.timeout(RECOVERY_LIMIT_S):
        while True:
            try:
                await caller.submit(numbered(1))
            except Refused as refused:
                return refused


async def _while_full(caller: Caller, running: str) -> None:
    """Everything but new work goes on: readers come, jobs are shown, and the gateway says how it stands."""
    answer = await _asked(caller)
    assert int(answer.headers["retry-after"]) >= 1
    ready = await caller.http.get(caller.next_url() + "/readyz")
    assert (ready.status_code, "full" in ready.text) == (200, True)
    health = await _json(caller, "/health")
    assert (health["status"], health["store"]) == ("degraded", "full")
    assert (await caller.job(running))["status"] == "running"
    late = Journal(job_id=running)
    async with caller.following(late, caller.next_url()) as pieces:
        await caller.read(pieces, late, lambda: late.seen >= 3)
    assert late.problems == []


async def _asked(caller: Caller) -> Any:
    return await caller.http.post(caller.next_url() + "/v1/chat/completions", json=numbered(1))


async def _json(caller: Caller, path: str) -> dict[str, Any]:
    return (await caller.http.get(caller.next_url() + path)).json()


async def _until_taken(caller: Caller, journal: Journal) -> None:
    async with recovering():
        while not journal.job_id:
            try:
                await caller.chat(numbered(5), journal)
            except Refused as refused:
                assert refused.code == "store_full", refused
                await asyncio.sleep(0.02)


def _say_share(what: str, ballast: Ballast) -> None:
    sys.stdout.write(f"{what} {ballast.share:.1%} of maxmemory\n")
