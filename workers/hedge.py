"""A race of calls for one answer: the first to begin wins, and the others are cancelled upstream at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Overtaken(Exception):
    """Another call's answer has begun."""


def never_raced() -> None:
    """What a call that has no rival says when its answer begins."""


class Race(Generic[Result]):
    """Runners in the order in which they came; `winner` is the number of the one whose answer began first."""

    def __init__(self) -> None:
        self.winner: int | None = None
        self._runners: list[asyncio.Task[Result]] = []
        self._begun = asyncio.Event()

    def enter(self, run: Callable[[Callable[[], None]], Awaitable[Result]]) -> None:
        """Starts one more. It is given what to call when its answer begins; Overtaken means that it must give up."""
        number = len(self._runners)

        async def running() -> Result:
            return await run(lambda: self._begin(number))

        self._runners.append(asyncio.create_task(running(), name=f"upstream call {number}"))

    def _begin(self, number: int) -> None:
        if self.winner is None:
            self.winner = number
            self._begun.set()
            for other, runner in enumerate(self._runners):
                if other != number:
                    runner.cancel()
        if self.winner != number:
            raise Overtaken

    async def undecided(self, seconds: float) -> bool:
        """Whether after that long no answer has begun and no runner has ended."""
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            done, _ = await asyncio.wait({begun, *self._runners}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        return not done

    async def result(self) -> Result:
        """The winner's result; where none began, that of the first to succeed, or the first runner's error."""
        left = set(self._runners)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for runner in done:
                if not runner.cancelled() and runner.exception() is None:
                    self.winner = self._runners.index(runner)
                    return runner.result()
            if self.winner is not None and self._runners[self.winner] in done:
                break
        decisive = self._runners[self.winner or 0]
        return decisive.result()

    async def stop(self) -> None:
        """Cancels whoever still runs, and returns when all have ended."""
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
