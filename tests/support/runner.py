"""Runs a test that is a coroutine, on the event loop that the processes use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import uvloop

Result = TypeVar("Result")

WAIT_LIMIT_S: Final = 8.0


def runner() -> asyncio.Runner:
    """A runner whose loop is uvloop's."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What the coroutine returns."""
    with runner() as one:
        return one.run(coroutine)


async def until(probe: Callable[[], Awaitable[Result]], *, limit_s: float = WAIT_LIMIT_S) -> Result:
    """The first true answer of `probe`, asked again and again. Raises TimeoutError after the limit."""
    async with asyncio.timeout(limit_s):
        while not (answer := await probe()):
            await asyncio.sleep(0.005)
    return answer
