"""Keeps children running: starts them anew when they die, gives up on one that can't live, ends all in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from typing import Final

from common.clock import Clock, SystemClock
from deploy.local.child import Child, Command, describe_exit
from deploy.local.trouble import Exit, Trouble

QUICK_S: Final = 10.0
MOST_QUICK_ENDS: Final = 5
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0

Report = Callable[[str], None]


def pause_s(quick_ends: int) -> float:
    """How long to wait before starting a child again that has ended this many times in quick succession."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (quick_ends - 1))


class Supervisor:
    """The children of one stack, by name."""

    def __init__(self, report: Report, clock: Clock | None = None) -> None:
        self.running: dict[str, Child] = {}
        self.hurry = asyncio.Event()
        self._report = report
        self._clock = clock or SystemClock()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._lost: asyncio.Future[Trouble] = asyncio.get_running_loop().create_future()

    async def start(self, commands: Iterable[Command]) -> None:
        """Returns when each command has a process; from then on each is kept running."""
        for command in commands:
            child = await Child.start(command, self._clock)
            self.running[command.name] = child
            self._keepers[command.name] = asyncio.create_task(self._keep(child), name=f"keep {command.name}")

    async def give_up(self) -> Trouble:
        """Why one of the children is beyond help; waits until that is so."""
        return await asyncio.shield(self._lost)

    async def stop(self) -> None:
        """Ends every child, the highest stage first; within a stage all at once."""
        self._stopping = True
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for stage in sorted({child.command.stage for child in self.running.values()}, reverse=True):
            children = [child for child in self.running.values() if child.command.stage == stage]
            await asyncio.gather(*(self._end(child) for child in children))

    async def _end(self, child: Child) -> None:
        if child.ended:
            return
        code = await child.stop(self.hurry)
        if code not in (0, -signal.SIGTERM):
            self._report(f"{child.command.name} ended with {describe_exit(code)}")

    async def _keep(self, child: Child) -> None:
        quick_ends = 0
        while True:
            code = await child.wait()
            if code == 0 and child.command.may_leave:
                self._report(f"{child.command.name} was drained and has left; it is not started again")
                return
            quick_ends = quick_ends + 1 if child.age_s < QUICK_S else 1
            if quick_ends >= MOST_QUICK_ENDS:
                self._lose(child, code)
                return
            wait_s = pause_s(quick_ends)
            self._report(f"{child.command.name} ended with {describe_exit(code)}; starting it again in {wait_s:g} s")
            await self._clock.sleep(wait_s)
            child = await Child.start(child.command, self._clock)
            self.running[child.command.name] = child

    def _lose(self, child: Child, code: int) -> None:
        name, log = child.command.name, child.command.log
        self._report(f"{name} ended {MOST_QUICK_ENDS} times in a row, last with {describe_exit(code)}; giving up")
        text = f"{name} can't be kept running. The end of {log}:\n{child.last_lines()}"
        if not self._lost.done():
            self._lost.set_result(Trouble(text, Exit.FAILED))
