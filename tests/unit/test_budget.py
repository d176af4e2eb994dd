"""Budgets: how many extra calls a share of the ordinary ones allows."""

from __future__ import annotations

from tests.support.clock import ManualClock
from workers.budget import Budget


def _spend(budget: Budget, most: int = 10_000) -> int:
    return next((count for count in range(most) if not budget.withdraw()), most)


def test_extra_calls_are_at_most_their_share_of_the_ordinary_ones_beside_the_reserve() -> None:
    budget, extra = Budget(0.1, ManualClock(), reserve=10), 0
    for _ in range(10_000):
        budget.deposit()
        extra += _spend(budget)
    assert 1_000 <= extra <= 1_010


def test_a_new_process_may_spend_its_reserve_and_no_more() -> None:
    assert _spend(Budget(0.1, ManualClock(), reserve=3)) == 3


def test_without_a_share_there_are_no_extra_calls_at_all() -> None:
    clock = ManualClock()
    budget = Budget(0, clock, reserve=10, regain_s=1)
    budget.deposit()
    clock.advance(1_000)
    assert _spend(budget) == 0


def test_a_quiet_process_regains_its_reserve_slowly_and_never_more() -> None:
    clock = ManualClock()
    budget = Budget(0.1, clock, reserve=3, regain_s=10)
    assert _spend(budget) == 3
    clock.advance(9)
    assert not budget.affords
    clock.advance(1)
    assert _spend(budget) == 1
    clock.advance(10_000)
    assert _spend(budget) == 3


def test_good_times_are_not_saved_up_without_end() -> None:
    budget = Budget(0.5, ManualClock(), reserve=1)
    for _ in range(10_000):
        budget.deposit()
    assert _spend(budget) == 50


def test_a_borrowed_call_is_paid_back_before_the_next_one() -> None:
    budget = Budget(0.25, ManualClock(), reserve=1)
    budget.borrow()
    budget.borrow()
    for _ in range(7):
        budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()


def test_what_was_paid_for_a_call_that_was_not_made_comes_back() -> None:
    budget = Budget(0.1, ManualClock(), reserve=1)
    assert budget.withdraw()
    budget.refund()
    assert budget.withdraw()
