"""The faults of a chaos run, done one after the other to a fleet that is under load."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from hiredis import ReplyError

from common import keys
from tests.chaos.plan import Fault, Kind
from tests.chaos.record import Recorder
from tests.support.stage import POOL, Stage

REAP_LIMIT_S = 30.0


class Weather:
    """Does the faults, and takes note of them and of the jobs that each victim held."""

    def __init__(self, stage: Stage, recorder: Recorder) -> None:
        self._stage = stage
        self._recorder = recorder
        self._began_s = time.monotonic()
        self.over = False

    async def run(self, faults: Sequence[Fault]) -> None:
        """Returns when all faults were done and everything was started again."""
        due_s = time.monotonic()
        for fault in faults:
            due_s = max(due_s, time.monotonic() - fault.rest_s) + fault.rest_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            sys.stdout.write(f"{time.monotonic() - self._began_s:7.2f} s  {fault.kind.value} {fault.victim}\n")
            await self._do(fault)
        self.over = True

    async def _do(self, fault: Fault) -> None:
        fleet, redis = self._stage.fleet, self._stage.redis
        match fault.kind:
            case Kind.KILL:
                await asyncio.to_thread(fleet.kill, fault.victim)
                await self._note(fault)
                await asyncio.sleep(fault.away_s)
                await asyncio.to_thread(fleet.start_again, fault.victim)
            case Kind.ROLL:
                self._recorder.note("fault", kind=fault.kind.value, victim=fault.victim, held=[])
                await asyncio.to_thread(fleet.terminate, fault.victim)
                await asyncio.to_thread(fleet.start_again, fault.victim)
            case Kind.KILL_STORE:
                self._recorder.note("fault", kind=fault.kind.value, victim=fault.victim, held=[])
                await asyncio.to_thread(redis.kill)
                await asyncio.sleep(fault.away_s)
                await asyncio.to_thread(redis.start)
            case Kind.FREEZE:
                fleet.freeze(fault.victim)
                await self._note(fault)
                await self._until_reaped(fault.victim)
                fleet.thaw(fault.victim)
            case Kind.FREEZE_STORE:
                self._recorder.note("fault", kind=fault.kind.value, victim=fault.victim, held=[])
                redis.freeze()
                await asyncio.sleep(1.5 + 2 * fault.away_s)
                redis.thaw()

    async def _note(self, fault: Fault) -> None:
        """Takes note of the fault with what its victim held."""
        pid = str(self._stage.fleet.members[fault.victim].pid)
        try:
            held = await asyncio.to_thread(self._held, pid)
        except (OSError, ReplyError):
            held = []  # the store is still loading after its own fault
        self._recorder.note("fault", kind=fault.kind.value, victim=fault.victim, held=held)

    def _held(self, pid: str) -> list[tuple[str, int]]:
        redis = self._stage.redis
        held: list[tuple[str, int]] = []
        for worker in self._listed():
            if worker.split(".")[1] == pid:
                flat: list[bytes] = redis.command("HGETALL", keys.held(POOL, worker))
                held += [(job.decode(), int(fence)) for job, fence in zip(flat[::2], flat[1::2], strict=True)]
        return held

    def _listed(self) -> list[str]:
        listed: list[bytes] = self._stage.redis.command("ZRANGE", keys.workers(POOL), 0, -1)
        return [raw.decode() for raw in listed]

    async def _until_reaped(self, victim: str) -> None:
        """Returns when a frozen worker's lease has lapsed and others have what it held."""
        pid = str(self._stage.fleet.members[victim].pid)
        limit_s = time.monotonic() + REAP_LIMIT_S
        while any(worker.split(".")[1] == pid for worker in self._listed()):
            assert time.monotonic() < limit_s, f"{victim} was not reaped"
            await asyncio.sleep(0.02)
