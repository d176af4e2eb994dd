"""What the fault journeys do to a fleet and ask of its store: who runs a job, what its stream holds, is all at rest."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from common import keys
from common.contracts import pool_of
from tests.support.clock import stopwatch
from tests.support.fleet import Fleet, Member, until
from tests.support.history import ENDED, Entry, count_problems, stream_problems
from tests.support.reader import Caller

LEASE_S: Final = 2
POOL: Final = "default"
# What is promised of a request, and of the time after the store's return; the rest is for a crowded machine, and less
# than what another wait for the store (1.5 s), or waiting for no end, would take.
HANG_LIMIT_S: Final = 2.0 + 0.9
RECOVERED_S: Final = 5.0 + 2.5
# What is not over by then will never be.
RECOVERY_LIMIT_S: Final = 15.0

Result = TypeVar("Result")


def say(what: str, since_s: float) -> float:
    """Prints a measured time, and gives it."""
    took_s = time.monotonic() - since_s
    sys.stdout.write(f"{what}: {took_s:.2f} s\n")
    return took_s


@asynccontextmanager
async def recovering() -> AsyncGenerator[None]:
    """Around what is promised to work again soon after the store's return. Raises TimeoutError, AssertionError."""
    async with asyncio.timeout(RECOVERY_LIMIT_S), stopwatch() as served_s:
        yield
        assert served_s() < RECOVERED_S


class Stage:
    """A fleet to do harm to."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.redis = fleet.redis
        self._miscounted: list[str] = []

    # --- callers ------------------------------------------------------------------------------------------------------

    def caller(self, *gateways: int) -> Caller:
        """A caller of these gateways, or of all."""
        return Caller([self.fleet.url(number) for number in gateways or (0, 1)])

    async def off(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """The work as a task that has begun."""
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        return task

    # --- what the store knows -----------------------------------------------------------------------------------------

    def field(self, job_id: str, name: str) -> str:
        """A field of the job's record; '' where there is none."""
        raw: bytes | None = self.redis.command("HGET", keys.job(pool_of(job_id) or "", job_id), name)
        return (raw or b"").decode()

    def holder(self, job_id: str) -> str:
        """The name of the member that runs the job."""
        pid = self.field(job_id, "worker").split(".")[1]
        (name,) = [name for name, member in self.fleet.members.items() if member.runs and str(member.pid) == pid]
        return name

    def entries(self, job_id: str) -> list[Entry]:
        """The job's stream."""
        raw: list[Any] = self.redis.command("XRANGE", keys.stream(pool_of(job_id) or "", job_id), "-", "+")
        return [(name.decode(), pair[0].decode(), pair[1].decode()) for name, pair in raw]

    def sound(self, *job_ids: str) -> None:
        """Raises AssertionError unless each of these has ended, once, and its stream is whole."""
        problems: list[str] = []
        for job_id in job_ids:
            state = self.field(job_id, "state")
            assert state in ENDED, f"{job_id} is {state!r}"
            problems += stream_problems(job_id, state, self.entries(job_id))
        assert problems == []

    # --- between tests ------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> list[Member]:
        """The workers that belong to the stage for good."""
        return [member for name, member in self.fleet.members.items() if name.startswith("worker-")]

    def mend(self, *, cancel: bool = False) -> None:
        """Thaws all, starts what does not run, and waits until the store is at rest.

        `cancel`: what an earlier test left, which failed, is cancelled.
        """
        self.redis.thaw()
        if self.redis.process is None or self.redis.process.poll() is not None:
            self.redis.start()
        for name in self.fleet.members:
            self.fleet.thaw(name)
        self.fleet.start_again(*(name for name, member in self.fleet.members.items() if not member.runs))
        if cancel:
            self.fleet.cancel_all(POOL)
        until(self.rests, 30, f"the store did not come to rest: {self.unrest()}")

    def rests(self) -> bool:
        """Whether no job waits or runs, and no worker but those that live is listed."""
        return not self.unrest()

    def unrest(self) -> str:
        """What keeps the store from being at rest; '' for nothing."""
        jobs: list[bytes] = self.redis.command("ZRANGE", keys.deadlines(POOL), 0, -1)
        listed: list[bytes] = self.redis.command("ZRANGE", keys.workers(POOL), 0, -1)
        pids = {str(member.pid) for member in self.workers if member.runs}
        if jobs:
            return f"not ended: {[(raw.decode(), self.field(raw.decode(), 'state')) for raw in jobs]}"
        if {raw.decode().split(".")[1] for raw in listed} != pids:
            return f"workers listed: {listed}, and there are {sorted(pids)}"
        held = [raw.decode() for raw in listed if self.redis.command("HLEN", keys.held(POOL, raw.decode()))]
        return f"still held by: {held}" if held else ""

    def check(self) -> None:
        """Raises AssertionError where a member logged a fault since the last time, or the store's counters don't come
        out, and did then."""
        for name, said in self.fleet.news().items():
            assert "Traceback" not in said, f"{name}:\n{said[-6000:]}"
        flat: list[bytes] = self.redis.command("HGETALL", keys.stats(POOL))
        stats = {key.decode(): int(float(value)) for key, value in zip(flat[::2], flat[1::2], strict=True)}
        before, self._miscounted = self._miscounted, count_problems(stats)
        assert self._miscounted in ([], before)
