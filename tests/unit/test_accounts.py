"""What ended jobs took, gathered by lane and tenant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.contracts import Priority
from common.queue.accounts import MOST_JOBS, Accounts
from tests.support.seeds import a_job


def test_jobs_of_a_lane_are_told_together_and_their_tenants_apart() -> None:
    accounts = Accounts()
    job = replace(a_job(1), cost_tokens=100)
    accounts.add(job, busy_ms=50, tokens=70, answer_tokens=40)
    accounts.add(replace(job, tenant="u", weight=4.0), busy_ms=10, tokens=300, answer_tokens=0)
    accounts.add(job, busy_ms=5, tokens=90, answer_tokens=0)
    accounts.add(replace(job, priority=Priority.BATCH), busy_ms=7, tokens=100, answer_tokens=9)
    assert accounts.take() == [
        *("0:m", 3, 300, 65, 1, 40, 2, "t", -40.0, "u", 50.0),
        *("2:m", 1, 100, 7, 1, 9, 0),
    ]


def test_what_was_taken_is_told_once() -> None:
    accounts = Accounts()
    accounts.add(a_job(1), busy_ms=1, tokens=1, answer_tokens=0)
    assert accounts.take()
    assert accounts.take() == []


@pytest.mark.parametrize("jobs", [MOST_JOBS - 1, MOST_JOBS])
def test_they_are_full_when_one_script_has_enough_to_do(jobs: int) -> None:
    accounts = Accounts()
    for _ in range(jobs):
        accounts.add(a_job(1), busy_ms=1, tokens=1, answer_tokens=0)
    assert accounts.full == (jobs == MOST_JOBS)
    accounts.take()
    assert not accounts.full
