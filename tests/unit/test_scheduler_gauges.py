"""A pool's figures from its lanes and its pace."""

from __future__ import annotations

import math

from common.contracts import Priority
from common.queue import LaneDepth
from scheduler.drain import Drain
from scheduler.gauges import ages_s, depths, tokens_waiting, waits_s

INTERACTIVE, STANDARD, BATCH = Priority


def _lane(priority: Priority, model: str, depth: int, oldest_ms: int | None = 0) -> LaneDepth:
    return LaneDepth("default", priority, model, depth, oldest_ms)


def test_every_class_of_a_configured_model_is_shown_and_strangers_only_while_they_wait() -> None:
    lanes = [_lane(BATCH, "known", 7), _lane(STANDARD, "old", 2), _lane(INTERACTIVE, "gone", 0, None)]
    assert depths(lanes, ["known"]) == {
        (INTERACTIVE, "known"): 0,
        (STANDARD, "known"): 0,
        (BATCH, "known"): 7,
        (STANDARD, "old"): 2,
    }


def test_a_classes_age_is_that_of_its_longest_waiting_lane() -> None:
    lanes = [_lane(BATCH, "a", 1, 4_000), _lane(BATCH, "b", 1, 1_000), _lane(STANDARD, "a", 1, 9_500)]
    assert ages_s(lanes, 10_000) == {"batch": 9.0, "standard": 0.5}


def test_an_entry_from_a_clock_ahead_is_new_and_not_older_than_now() -> None:
    assert ages_s([_lane(BATCH, "a", 1, 12_000)], 10_000) == {"batch": 0}


def test_a_job_waits_behind_its_own_class_and_those_above() -> None:
    depth = {(INTERACTIVE, "a"): 1, (INTERACTIVE, "b"): 1, (STANDARD, "a"): 4, (BATCH, "a"): 10}
    assert waits_s(depth, Drain(2, 20)) == {"interactive": 1, "standard": 3, "batch": 8}


def test_a_wait_that_cant_be_told_is_left_out() -> None:
    depth = {(INTERACTIVE, "a"): 0, (BATCH, "a"): 10}
    assert waits_s(depth, Drain()) == {"interactive": 0, "standard": 0}


def test_tokens_waiting_are_the_jobs_times_their_mean_size() -> None:
    depth = {(INTERACTIVE, "a"): 2, (BATCH, "a"): 3}
    assert tokens_waiting(depth, Drain(4, 400)) == 500
    assert tokens_waiting({(INTERACTIVE, "a"): 0}, Drain()) == 0
    assert math.isnan(tokens_waiting(depth, Drain()))
