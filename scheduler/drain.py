"""Pure: how fast a pool works off what waits for each model, by counters now and before; and the wait to expect."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

SETTLING_S: Final = 10.0
"""The time in which a new pace has had about two thirds of its effect."""

SLOWEST: Final = 1e-6
POOL_RATE: Final = "drain_jobs_per_s"
JOBS_RATE: Final = "drain_jobs_per_s:"
TOKENS_RATE: Final = "drain_tokens_per_s:"


@dataclass(frozen=True, slots=True)
class Sample:
    """A model's counters at a moment. `waiting`: whether something waited for a worker."""

    at_s: float
    jobs: float
    tokens: float
    waiting: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """How fast jobs are worked off, and their tokens; None where it isn't known yet."""

    jobs_per_s: float | None = None
    tokens_per_s: float | None = None

    def wait_s(self, tokens: float) -> float | None:
        """How long so many tokens take; None where that can't be told."""
        if tokens <= 0:
            return 0.0
        return tokens / self.tokens_per_s if self.tokens_per_s else None

    def as_rates(self, model: str) -> dict[str, float]:
        """As `Queue.note_rates` stores it."""
        rates = {JOBS_RATE: self.jobs_per_s, TOKENS_RATE: self.tokens_per_s}
        return {name + model: round(rate, 6) for name, rate in rates.items() if rate is not None}


def samples(stats: Mapping[str, float], *, at_s: float, waiting: Collection[str]) -> dict[str, Sample]:
    """The counters of `Queue.stats` by model; `waiting` names the models for which something waits."""
    models = {name.removeprefix("jobs:") for name in stats if name.startswith("jobs:")} | set(waiting)
    return {
        model: Sample(
            at_s,
            stats.get(f"jobs:{model}", 0),
            stats.get(f"tokens:{model}", 0),
            model in waiting,
        )
        for model in models
    }


def known(stats: Mapping[str, float]) -> dict[str, Drain]:
    """The drain by model that any scheduler noted last."""
    models = {name.partition(":")[2] for name in stats if name.startswith((JOBS_RATE, TOKENS_RATE))}
    return {model: Drain(stats.get(JOBS_RATE + model), stats.get(TOKENS_RATE + model)) for model in models}


def rates(drains: Mapping[str, Drain]) -> dict[str, float]:
    """What is noted for all: each model's pace, and the pool's in jobs."""
    noted = {name: rate for model, drain in drains.items() for name, rate in drain.as_rates(model).items()}
    paces = [drain.jobs_per_s for drain in drains.values() if drain.jobs_per_s is not None]
    return noted | ({POOL_RATE: round(sum(paces), 6)} if paces else {})


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
    share = 1 - math.exp(-passed_s / SETTLING_S)
    pace = jobs / passed_s
    full = before.waiting and now.waiting
    if not full and (jobs == 0 or pace <= (drain.jobs_per_s or 0)):
        return drain
    return Drain(_toward(drain.jobs_per_s, pace, share), _toward(drain.tokens_per_s, tokens / passed_s, share))


def _toward(old: float | None, seen: float, share: float) -> float | None:
    """A mean that moves toward what was seen; the first sight of anything is taken as it is."""
    if old is None:
        return seen or None
    moved = old + (seen - old) * share
    return moved if moved > SLOWEST else 0.0
