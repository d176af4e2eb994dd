"""A worker process whose jobs do nothing: the queue's own cost, for our engine and for arq as it comes.

It says `ready`, waits for a line, then works until SIGTERM. What it saw it leaves in a shared file of numbers.
"""

from __future__ import annotations

import argparse
import mmap
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvloop
from arq.connections import RedisSettings
from arq.worker import Worker, func

from common import keys
from common.clock import SystemClock
from common.contracts import Failure, Outcome, Priority, State
from common.queue import Claim, Queue, Settlement
from common.store import Store
from workers.engine import Duties, EngineOptions, PoolWorker
from workers.runs import Unseen

POOL: Final = "bench"
MODEL: Final = "noop"
SENT: Final = "sent_ns"
CONCURRENCY: Final = 100
MOST_STARTS: Final = 200_000
_NUMBER_BYTES: Final = 8
_BYTES: Final = _NUMBER_BYTES * (1 + 2 * MOST_STARTS)


class Starts:
    """When each job was sent and when it started, by the machine's monotonic clock, in a file that others may read."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("q")

    @classmethod
    def create(cls, path: Path) -> Starts:
        """An empty file of them."""
        with path.open("wb") as file:
            os.truncate(file.fileno(), _BYTES)
        return cls(path)

    def note(self, sent_ns: int) -> None:
        """A job starts now."""
        at = 1 + 2 * self._numbers[0]
        self._numbers[at], self._numbers[at + 1] = sent_ns, time.monotonic_ns()
        self._numbers[0] += 1

    def __len__(self) -> int:
        return self._numbers[0]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(1, 1 + 2 * len(self), 2):
            yield self._numbers[at], self._numbers[at + 1]


class NoopRun(Unseen):
    """One attempt at a job that does nothing."""

    def __init__(self, claim: Claim, starts: Starts) -> None:
        self.claim = claim
        self._starts = starts

    async def perform(self) -> Settlement:
        """Done."""
        self._starts.note(self.claim.job.metadata[SENT])
        return Settlement(Outcome(State.SUCCEEDED, finish_reason="stop"))

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """The end of a run that was stopped from outside."""
        return Settlement(Outcome(status, failure=failure))


def headrace(url: str, starts: Starts) -> PoolWorker:
    """Our engine around jobs that do nothing."""
    store = Store.from_url(url)
    lanes = [keys.lane_name(priority, MODEL) for priority in Priority]
    return PoolWorker(
        store,
        Queue(store),
        SystemClock(),
        Duties(
            new_id=lambda: f"bench.{os.getpid()}.{secrets.token_hex(4)}",
            lanes={POOL: lambda: lanes},
            begin=lambda claim: NoopRun(claim, starts),
            info=lambda: {"pid": os.getpid()},
        ),
        EngineOptions(concurrency=CONCURRENCY),
    )


def stock_arq(url: str, starts: Starts) -> Worker:
    """arq's own worker with the defaults it comes with, but for as many slots as ours has."""

    async def noop(ctx: dict[Any, Any], sent_ns: int) -> None:
        starts.note(sent_ns)

    return Worker(
        [func(noop, name=MODEL)],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=CONCURRENCY,
    )


ENGINES: Final = {"headrace": headrace, "arq": stock_arq}


async def _work(engine: str, url: str, starts: Starts) -> None:
    worker = ENGINES[engine](url, starts)
    await worker.async_run()


def main() -> None:
    """Runs the engine named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--starts", type=Path, required=True)
    asked = parser.parse_args()
    starts = Starts(asked.starts)
    print("ready", flush=True)
    sys.stdin.readline()
    uvloop.run(_work(asked.engine, asked.redis, starts))


if __name__ == "__main__":
    main()
