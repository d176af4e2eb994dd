"""Under kills and freezes at random, every accepted job ends once, and every reader gets each event once."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import pytest

from common import keys
from tests.chaos.load import History, Load
from tests.chaos.plan import Plan
from tests.chaos.weather import Weather
from tests.support.fleet import Fleet
from tests.support.history import job_problems, stream_problems
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.runner import drawn_seed
from tests.support.stage import LEASE_S, POOL, Stage

RUN_LIMIT_S = 600


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two gateways, three workers, a scheduler."""
    place = tmp_path_factory.mktemp("chaos")
    fleet = Fleet(
        place,
        gateways=2,
        workers=3,
        valkey=EVERY_WRITE_KEPT,
        lease_s=LEASE_S,
        disconnect_grace_s=6,
        drain_s=3,
        max_attempts=4,
    )
    try:
        yield Stage(fleet.start())
    finally:
        fleet.stop()


@pytest.mark.timeout(RUN_LIMIT_S)
async def test_no_accepted_job_is_lost_ends_twice_or_shows_a_reader_a_gap_or_a_double(stage: Stage) -> None:
    plan = Plan.drawn(drawn_seed())
    weather = Weather(stage)
    began_s = time.monotonic()
    async with asyncio.timeout(RUN_LIMIT_S), stage.caller() as caller:
        load = Load(caller, plan.seed, lambda: weather.over and load.history.jobs >= plan.jobs)
        await asyncio.gather(load.run(plan.callers), weather.run(plan.faults(list(stage.fleet.members))))
    stage.mend()
    _tell(load.history, time.monotonic() - began_s)
    assert load.history.problems() == []
    assert _store_problems(stage) == []
    stage.check()


def _tell(history: History, took_s: float) -> None:
    ends: dict[str | None, int] = {}
    for journal in history.streams:
        ends[journal.end] = ends.get(journal.end, 0) + 1
    connections = sum(journal.connections for journal in history.streams)
    resets = sum(journal.resets for journal in history.streams)
    sys.stdout.write(
        f"{history.jobs} jobs in {took_s:.1f} s: {len(history.streams)} streams over {connections} connections "
        f"({ends}, {resets} resets), {len(history.polled)} polled, {history.wholes} whole; {history.refused} refusals\n"
    )


def _store_problems(stage: Stage) -> list[str]:
    """What is wrong with the jobs and streams that the store holds, those of unknown acceptance among them."""
    names: list[bytes] = stage.redis.command("KEYS", keys.job(POOL, "*"))
    ids = [name.decode().rpartition(":")[2] for name in names]
    states = [(job_id, stage.field(job_id, "state")) for job_id in ids]
    found = job_problems(states)
    for job_id, state in states:
        found += stream_problems(job_id, state, stage.entries(job_id))
    return found
