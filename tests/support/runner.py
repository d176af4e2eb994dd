"""Runs a test that is a coroutine on the event loop that the processes use, waits for states, and draws seeds."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import uvloop

Result = TypeVar("Result")

WAIT_LIMIT_S: Final = 15.0


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
        while not (answer := await probe()):  # noqa: ASYNC110 (the state is another process's)
            await asyncio.sleep(0.005)
    return answer


def drawn_seed() -> int:
    """A seed for a test's random choices, printed; HEADRACE_TEST_SEED repeats one."""
    seed = int(os.environ.get("HEADRACE_TEST_SEED") or random.randrange(2**32))
    sys.stdout.write(f"HEADRACE_TEST_SEED={seed}\n")
    return seed
