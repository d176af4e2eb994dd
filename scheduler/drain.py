"""Pure: how fast a pool works its queue off, from counters seen now and before; and the wait that lets expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common.contracts import State

SETTLING_S: Final = 30.0
"""The time in which a new pace has had about two thirds of its effect."""

SLOWEST: Final = 1e-6
WORKED_OFF: Final = (State.SUCCEEDED, State.FAILED)
"""Not cancelled and expired ones: a thousand that expire in a second don't make the next thousand any faster."""

JOBS_RATE: Final = "drain_jobs_per_s"
TOKENS_RATE: Final = "drain_tokens_per_s"


@dataclass(frozen=True, slots=True)
class Sample:
    """A pool's counters at a moment. `waiting`: whether something waited for a worker."""

    at_s: float
    jobs: float
    tokens: float
    waiting: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """How fast jobs are worked off, and their tokens; None where it isn't known yet."""

    jobs_per_s: float | None = None
    tokens_per_s: float | None = None

    @property
    def tokens_a_job(self) -> float | None:
        """What a job takes on average."""
        if not self.jobs_per_s or self.tokens_per_s is None:
            return None
        return self.tokens_per_s / self.jobs_per_s

    def wait_s(self, ahead: int) -> float | None:
        """How long so many jobs take; None where that can't be told."""
        if ahead == 0:
            return 0.0
        return ahead / self.jobs_per_s if self.jobs_per_s else None

    def as_rates(self) -> dict[str, float]:
        """As `Queue.note_rates` stores it."""
        rates = {JOBS_RATE: self.jobs_per_s, TOKENS_RATE: self.tokens_per_s}
        return {name: round(rate, 6) for name, rate in rates.items() if rate is not None}


def sample(stats: Mapping[str, float], *, at_s: float, waiting: bool) -> Sample:
    """The counters of `Queue.stats` as a sample."""
    jobs = sum(stats.get(state.value, 0) for state in WORKED_OFF)
    return Sample(at_s, jobs, stats.get("settled_tokens", 0), waiting)


def known(stats: Mapping[str, float]) -> Drain:
    """The drain that any scheduler noted last."""
    return Drain(stats.get(JOBS_RATE), stats.get(TOKENS_RATE))


def updated(drain: Drain, before: Sample, now: Sample) -> Drain:
    """The drain with what happened between two samples.

    With something waiting all the while, the pace is what the pool can do. With the queue empty it is only what was
    asked of it: it may raise the figure, and never lowers it, so that a quiet night doesn't promise a slow morning.
    """
    passed_s = now.at_s - before.at_s
    jobs, tokens = now.jobs - before.jobs, now.tokens - before.tokens
    # Counters only go back where the store lost its data.
    if passed_s <= 0 or jobs < 0 or tokens < 0:
        return drain
    pace = jobs / passed_s
    full = before.waiting and now.waiting
    if not full and (jobs == 0 or pace <= (drain.jobs_per_s or 0)):
        return drain
    share = 1 - math.exp(-passed_s / SETTLING_S)
    return Drain(_toward(drain.jobs_per_s, pace, share), _toward(drain.tokens_per_s, tokens / passed_s, share))


def _toward(old: float | None, seen: float, share: float) -> float | None:
    """A mean that moves toward what was seen; the first sight of anything is taken as it is."""
    if old is None:
        return seen or None
    moved = old + (seen - old) * share
    return moved if moved > SLOWEST else 0.0
