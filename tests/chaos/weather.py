"""The faults of a chaos run, done one after the other to a fleet that is under load."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from common import keys
from tests.chaos.plan import Fault, Kind
from tests.support.reader import until
from tests.support.stage import POOL, Stage


class Weather:
    """Does the faults, and tells what it does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._began_s = time.monotonic()
        self.over = False

    async def run(self, faults: Sequence[Fault]) -> None:
        """Returns when all faults were done and everything was started again."""
        for fault in faults:
            await asyncio.sleep(fault.rest_s)
            sys.stdout.write(f"{time.monotonic() - self._began_s:6.2f} s  {fault.kind.value} {fault.victim}\n")
            await self._do(fault)
        self.over = True

    async def _do(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                await asyncio.to_thread(self._stage.fleet.kill, fault.victim)
                await asyncio.sleep(fault.away_s)
                await asyncio.to_thread(self._stage.fleet.start_again, fault.victim)
            case Kind.KILL_STORE:
                await asyncio.to_thread(self._stage.redis.kill)
                await asyncio.sleep(fault.away_s)
                await asyncio.to_thread(self._stage.redis.start)
            case Kind.FREEZE:
                await self._freeze(fault.victim)
            case Kind.FREEZE_STORE:
                self._stage.redis.freeze()
                await asyncio.sleep(1.5 + 2 * fault.away_s)
                self._stage.redis.thaw()

    async def _freeze(self, victim: str) -> None:
        """Stops a worker until its lease has lapsed and others have what it held."""
        self._stage.fleet.freeze(victim)
        pid = str(self._stage.fleet.members[victim].pid)

        def reaped() -> bool:
            listed: list[bytes] = self._stage.redis.command("ZRANGE", keys.workers(POOL), 0, -1)
            return all(raw.decode().split(".")[1] != pid for raw in listed)

        await until(reaped, f"{victim} was not reaped")
        self._stage.fleet.thaw(victim)
