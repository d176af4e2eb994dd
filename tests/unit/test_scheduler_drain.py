"""How fast a pool drains, and the wait that lets expect."""

from __future__ import annotations

import math

import pytest

from scheduler.drain import SETTLING_S, Drain, Sample, known, rates, samples, updated


def _at(seconds: float, jobs: float, tokens: float = 0, *, waiting: bool = True) -> Sample:
    return Sample(seconds, jobs, tokens, waiting)


def test_the_first_pace_seen_is_taken_as_it_is() -> None:
    assert updated(Drain(), _at(0, 0), _at(2, 10, 500)) == Drain(5, 250)


def test_under_load_the_pace_moves_toward_what_is_seen_both_ways() -> None:
    share = 1 - math.exp(-SETTLING_S / SETTLING_S)
    down = updated(Drain(10, 100), _at(0, 0), _at(SETTLING_S, 0))
    assert down.jobs_per_s == pytest.approx(10 - 10 * share)
    up = updated(Drain(10, 100), _at(0, 0), _at(SETTLING_S, 20 * SETTLING_S, 400 * SETTLING_S))
    assert up.jobs_per_s == pytest.approx(10 + 10 * share)
    assert up.tokens_per_s == pytest.approx(100 + 300 * share)


def test_many_short_looks_move_the_pace_as_far_as_one_long_look() -> None:
    once = updated(Drain(10, 100), _at(0, 0), _at(10, 40, 900))
    often = Drain(10, 100)
    for second in range(10):
        often = updated(often, _at(second, 4 * second, 90 * second), _at(second + 1, 4 * second + 4, 90 * second + 90))
    assert often.jobs_per_s == pytest.approx(once.jobs_per_s)
    assert often.tokens_per_s == pytest.approx(once.tokens_per_s)


@pytest.mark.parametrize(("before", "after"), [(False, False), (True, False), (False, True)])
def test_a_pace_below_the_known_one_counts_only_while_something_waited_throughout(before: bool, after: bool) -> None:
    slow = updated(Drain(10, 100), _at(0, 0, waiting=before), _at(2, 2, waiting=after))
    assert slow == Drain(10, 100)


def test_an_idle_pool_shows_what_it_can_do_when_it_does_more_than_was_known() -> None:
    fast = updated(Drain(1, 10), _at(0, 0, waiting=False), _at(2, 40, 400, waiting=False))
    assert fast.jobs_per_s is not None and fast.jobs_per_s > 1


def test_silence_tells_nothing_where_nothing_is_known() -> None:
    assert updated(Drain(), _at(0, 5, waiting=False), _at(2, 5, waiting=False)) == Drain()
    assert updated(Drain(), _at(0, 5), _at(2, 5)) == Drain()


@pytest.mark.parametrize("now", [_at(2, 4, 100), _at(2, 100, 4), _at(0, 20, 200)])
def test_counters_that_went_back_or_a_clock_that_stood_tell_nothing(now: Sample) -> None:
    assert updated(Drain(3, 30), _at(0, 10, 100), now) == Drain(3, 30)


def test_a_pool_that_stands_still_comes_to_no_pace_at_all() -> None:
    drain = updated(Drain(3, 30), _at(0, 0), _at(3_000, 0))
    assert drain == Drain(0.0, 0.0)
    assert drain.wait_s(1) is None


@pytest.mark.parametrize(
    ("drain", "tokens", "wait_s"),
    [(Drain(), 0, 0), (Drain(), 1, None), (Drain(4, 40), 0, 0), (Drain(4, 40), 100, 2.5), (Drain(0.0, 0.0), 5, None)],
)
def test_the_wait_is_the_tokens_ahead_over_the_pace(drain: Drain, tokens: int, wait_s: float | None) -> None:
    assert drain.wait_s(tokens) == wait_s


def test_counters_are_read_by_model_even_where_a_models_name_has_colons() -> None:
    stats = {
        "submitted": 9.0,
        "cancelled": 3.0,
        "jobs:llama3:8b": 5.0,
        "tokens:llama3:8b": 900.0,
    }
    assert samples(stats, at_s=1, waiting={"m"}) == {
        "llama3:8b": Sample(1, 5, 900, False),
        "m": Sample(1, 0, 0, True),
    }


def test_what_is_noted_is_what_is_read_back_and_the_unknown_is_not_noted() -> None:
    assert rates({"m": Drain()}) == {}
    drains = {"m": Drain(2.5, None), "llama3:8b": Drain(0.333333, 7)}
    noted = rates(drains)
    assert known(noted) == drains
    assert noted["drain_jobs_per_s"] == 2.833333
