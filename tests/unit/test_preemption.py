"""Which run gives way to an urgent job, and how much is claimed beyond what is free: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common import keys
from common.contracts import Failure, Priority, State
from common.queue import Cap, Claim, Settlement
from tests.support.seeds import POOL, a_job, number_of, success
from workers.preemption import moved, overdraft, who_gives_way, yielding
from workers.runs import Attempt, GiveBack, Stop, Unseen

BATCH = frozenset({Priority.BATCH})
LANES = ("0:a", "2:a", "0:b", "1:b", "2:b")


class Still(Unseen):
    """A run of which only what it tells of itself matters."""

    def __init__(self, claim: Claim, *, may_restart: bool = True) -> None:
        self.claim = claim
        self._may_restart = may_restart

    @property
    def may_restart(self) -> bool:
        return self._may_restart

    async def perform(self) -> Settlement:
        return success()

    async def break_off(self, status: State, failure: Failure) -> Settlement:
        return success()


def an_attempt(
    number: int, *, lane: str = "2:a", attempt: int = 1, failures: int = 0, pool: str = POOL, may_restart: bool = True
) -> Attempt:
    """A run of job `number`, begun that many seconds after the first."""
    priority, _, model = lane.partition(":")
    job = a_job(number, pool=pool, priority=Priority(int(priority)), model=model)
    claim = Claim(job, fence=1, attempt=attempt, failures=failures, created_ms=0, deadline_ms=9, claimed_ms=1)
    return Attempt(Still(claim, may_restart=may_restart), began_s=float(number))


def numbers(attempts: Sequence[Attempt]) -> list[int]:
    return [number_of(attempt.claim.job.id) for attempt in attempts]


def cap(most: int, model: str) -> Cap:
    return Cap(most, frozenset(keys.lane_name(priority, model) for priority in Priority))


# --- who may give way -------------------------------------------------------------------------------------------------


def test_those_of_the_classes_that_may_the_one_begun_last_first() -> None:
    attempts = [an_attempt(1), an_attempt(3), an_attempt(2), an_attempt(4, lane="1:b"), an_attempt(5, lane="0:b")]
    assert numbers(yielding(attempts, BATCH)) == [3, 2, 1]
    assert numbers(yielding(attempts, BATCH | {Priority.STANDARD})) == [4, 3, 2, 1]
    assert yielding(attempts, frozenset()) == []


def test_one_whose_end_is_settled_or_on_its_way_is_left_alone() -> None:
    stopped, ended = an_attempt(1), an_attempt(2)
    stopped.stop = Stop.CANCELLED
    ended.end = GiveBack(Failure("upstream_busy", "x"))
    assert numbers(yielding([stopped, ended, an_attempt(3, may_restart=False)], BATCH)) == []


@pytest.mark.parametrize(
    ("attempt", "failures", "may"),
    [(1, 0, True), (3, 0, True), (4, 0, False), (4, 1, True), (6, 2, False), (6, 5, True)],
)
def test_attempts_that_went_back_without_a_failure_are_counted_and_failed_ones_not(
    attempt: int, failures: int, may: bool
) -> None:
    assert bool(yielding([an_attempt(1, attempt=attempt, failures=failures)], BATCH)) is may


# --- how much is claimed ----------------------------------------------------------------------------------------------


def test_a_full_worker_claims_urgent_lanes_only_and_no_more_than_could_give_way() -> None:
    draft = overdraft(0, LANES, [], [an_attempt(1), an_attempt(2)], POOL)
    assert draft is not None
    assert (draft.most, draft.lanes, draft.caps) == (2, ("0:a", "0:b"), ())


@pytest.mark.parametrize("free", [1, 5])
def test_with_a_slot_free_and_room_at_the_backends_nothing_need_give_way(free: int) -> None:
    assert overdraft(free, LANES, [cap(1, "a"), cap(3, "b")], [an_attempt(1)], POOL) is None


def test_nobody_who_could_give_way_means_that_nothing_is_claimed() -> None:
    assert overdraft(0, LANES, [], [], POOL) is None
    assert overdraft(0, ("1:b", "2:a"), [], [an_attempt(1)], POOL) is None


def test_where_only_one_models_backends_are_full_only_its_urgent_lane_is_claimed() -> None:
    draft = overdraft(3, LANES, [cap(0, "a"), cap(2, "b")], [an_attempt(1), an_attempt(2, lane="2:b")], POOL)
    assert draft is not None
    assert (draft.most, draft.lanes) == (5, ("0:a",))
    # What gives way to a model's job must have run at its backends.
    assert {one.most for one in draft.caps if "0:a" in one.lanes} == {1}


def test_runs_of_another_pool_free_no_slot_at_this_pools_backends() -> None:
    draft = overdraft(0, LANES, [cap(0, "a")], [an_attempt(1, pool="other")], POOL)
    assert draft is not None
    assert [one.most for one in draft.caps] == [0]


# --- which one gives way ----------------------------------------------------------------------------------------------


def test_a_job_that_finds_room_pushes_nobody_out() -> None:
    assert who_gives_way("0:a", free=1, caps=[cap(1, "a")], able=[an_attempt(1)], pool=POOL) is None


def test_of_a_full_worker_one_at_the_same_backends_gives_way_before_another() -> None:
    able = [an_attempt(3, lane="2:b"), an_attempt(2), an_attempt(1)]
    chosen = who_gives_way("0:a", free=0, caps=[cap(4, "a"), cap(4, "b")], able=able, pool=POOL)
    assert chosen is able[1]
    assert who_gives_way("0:c", free=0, caps=[cap(4, "a")], able=able, pool=POOL) is able[0]
    assert who_gives_way("0:a", free=0, caps=[], able=[], pool=POOL) is None


def test_where_the_backends_are_full_only_a_run_of_theirs_is_of_use() -> None:
    able = [an_attempt(3, lane="2:b"), an_attempt(2)]
    assert who_gives_way("0:a", free=5, caps=[cap(0, "a")], able=able, pool=POOL) is able[1]
    assert who_gives_way("0:a", free=0, caps=[cap(0, "a")], able=able[:1], pool=POOL) is None


def test_caps_move_with_the_jobs_that_come_and_go() -> None:
    assert [one.most for one in moved([cap(2, "a"), cap(3, "b")], "0:a", -1)] == [1, 3]
    assert [one.most for one in moved([cap(2, "a"), cap(3, "b")], "2:b", +1)] == [2, 4]
