"""What engine and runs agree on: an attempt at a job, how it may end, and what a worker is asked to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from common import keys
from common.contracts import Failure, JsonObject, Priority, State
from common.queue import Cap, Claim, Settlement


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The job is to run again after a delay; `failure` is its end if it may not.

    `counts`: it was a failed attempt, of which a job has only so many; `backend` is where it failed.
    """

    failure: Failure
    delay_ms: int = 0
    counts: bool = True
    backend: str = ""


class Run(Protocol):
    """One attempt at one job."""

    claim: Claim

    async def perform(self) -> Settlement | GiveBack:
        """Works the job to its end, or says that it should run again."""
        ...

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        """How the job ends when it was stopped from outside: with what was produced so far."""
        ...

    @property
    def may_restart(self) -> bool:
        """Whether it may begin anew: no reader can have seen anything of it, or the caller allows that."""
        ...

    def mute(self) -> None:
        """From now on it begins no write to its readers."""
        ...

    async def landed(self) -> None:
        """Returns once nothing of it is on its way to readers any more."""
        ...


@contextmanager
def costing_only_this() -> Generator[None]:
    """Around what an answer that is already there can do without: an order to stop that comes now ends only that."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()


class Unseen:
    """What a run is like that shows its readers nothing before its end."""

    @property
    def may_restart(self) -> bool:
        """True: there is nothing to take back."""
        return True

    def mute(self) -> None:
        """Nothing to do: it says nothing anyway."""

    async def landed(self) -> None:
        """At once: nothing is on its way."""


class Stop(Enum):
    """Why an attempt was stopped from outside."""

    CANCELLED = auto()
    EXPIRED = auto()
    STREAM_LOST = auto()
    PREEMPTED = auto()
    FENCED = auto()


@dataclass(slots=True)
class Attempt:
    """A run of this worker, and what has become of it so far. `began_s` is monotonic."""

    run: Run
    began_s: float
    stop: Stop | None = None
    end: Settlement | GiveBack | None = None

    @property
    def claim(self) -> Claim:
        return self.run.claim

    @property
    def lane(self) -> str:
        """The lane that its job came from."""
        job = self.run.claim.job
        return keys.lane_name(job.priority, job.model)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits and times of one worker process.

    Jobs of the `preemptible` classes give way to interactive ones that have waited for `preempt_after_ms`. Without a
    ring for `bell_wait_s` a worker looks for work all the same.
    """

    concurrency: int = 64
    lease_s: float = 15
    drain_s: float = 20
    preemptible: frozenset[Priority] = frozenset()
    preempt_after_ms: int = 100
    bell_wait_s: float = 1


def nothing_more(_: Claim) -> None:
    """What a worker does about a preempted job beyond putting it back, where nobody counts them."""


@dataclass(frozen=True, slots=True)
class Duties:
    """What a worker is asked to do, and who it is.

    `new_id` makes a worker id that nobody had before. `lanes` tells for each pool which of its lanes can be served now,
    `caps` how many jobs its backends have room for. `begin` makes a claimed job's run. `info` is shown by `/workers`.
    `preempted` is told of each job that gave way.
    """

    new_id: Callable[[], str]
    lanes: Mapping[str, Callable[[], Sequence[str]]]
    begin: Callable[[Claim], Run]
    info: Callable[[], JsonObject]
    caps: Mapping[str, Callable[[], Sequence[Cap]]] = field(default_factory=dict[str, Callable[[], Sequence[Cap]]])
    preempted: Callable[[Claim], None] = nothing_more
