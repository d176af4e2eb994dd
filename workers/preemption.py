"""Pure: whether urgent work may push running work out, how much of it to claim, and which run gives way.

A worker is full for a model when its own slots are taken, or those of the model's backends (its cap).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from common.contracts import Priority
from common.queue import Cap
from workers.runs import Attempt

MOST_PREEMPTIONS: Final = 3
URGENT: Final = f"{int(Priority.INTERACTIVE)}:"


@dataclass(frozen=True, slots=True)
class Overdraft:
    """What to claim beyond what is free: from which lanes, and how many at most."""

    most: int
    lanes: tuple[str, ...]
    caps: tuple[Cap, ...]


def yielding(attempts: Iterable[Attempt], classes: frozenset[Priority]) -> list[Attempt]:
    """The runs that may give way, the one that loses least (begun last) first.

    A job that went back without a failure so many times already (it gave way, or its worker was drained) is left alone.
    """
    able = [one for one in attempts if one.claim.job.priority in classes and one.stop is None and one.end is None]
    able = [one for one in able if given_back(one) < MOST_PREEMPTIONS and one.run.may_restart]
    return sorted(able, key=lambda one: one.began_s, reverse=True)


def given_back(attempt: Attempt) -> int:
    """How often the job was put back though nothing had failed: never less than the times it gave way."""
    return attempt.claim.attempt - 1 - attempt.claim.failures


def overdraft(
    free: int, lanes: Sequence[str], caps: Sequence[Cap], able: Sequence[Attempt], pool: str
) -> Overdraft | None:
    """What to claim in the pool though it is full; None where urgent work finds room, or nobody can give way."""
    urgent = [lane for lane in lanes if lane.startswith(URGENT)]
    if free > 0:
        shut = {lane for cap in caps if cap.most <= 0 for lane in cap.lanes}
        urgent = [lane for lane in urgent if lane in shut]
    if not urgent or not able:
        return None
    widened = tuple(replace(cap, most=max(0, cap.most) + len(_within(cap, able, pool))) for cap in caps)
    return Overdraft(max(0, free) + len(able), tuple(urgent), widened)


def who_gives_way(lane: str, *, free: int, caps: Sequence[Cap], able: Sequence[Attempt], pool: str) -> Attempt | None:
    """The run to stop for a job just claimed from this lane; None where it has room, or nobody can give way."""
    cap = next((one for one in caps if lane in one.lanes), None)
    beside = _within(cap, able, pool) if cap is not None else []
    if cap is not None and cap.most <= 0:
        return beside[0] if beside else None
    if free > 0:
        return None
    # One at the same backends frees a slot there too.
    return next(iter(beside), next(iter(able), None))


def moved(caps: Sequence[Cap], lane: str, by: int) -> list[Cap]:
    """The caps after a job of this lane came (-1) or went (+1)."""
    return [replace(cap, most=cap.most + by) if lane in cap.lanes else cap for cap in caps]


def _within(cap: Cap, able: Sequence[Attempt], pool: str) -> list[Attempt]:
    return [one for one in able if one.claim.job.pool == pool and one.lane in cap.lanes]
