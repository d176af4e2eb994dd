"""What tests of shares do often: many jobs at once, and an end that took so many tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from common.contracts import Outcome, State, Usage
from common.queue import Claim
from tests.support.seeds import Rig, a_job, success


async def fill(r: Rig, first: int, count: int, **changes: Any) -> None:
    """Submits jobs `first`, `first + 1`, … in this order, in few trips to the store."""
    await asyncio.gather(*(r.queue.submit(a_job(first + n, **changes)) for n in range(count)))


async def spent(r: Rig, claim: Claim, tokens: int) -> None:
    """Ends a claimed job that took so many tokens."""
    outcome = Outcome(State.SUCCEEDED, usage=Usage(tokens, 0))
    assert (await r.settle(claim, end=replace(success(), outcome=outcome))).done
