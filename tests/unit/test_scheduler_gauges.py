"""A pool's figures from its lanes and its pace."""

from __future__ import annotations

from common.contracts import Priority
from common.queue import LaneDepth
from scheduler.drain import Drain
from scheduler.gauges import ages_s, depths, tokens_by_lane, waits_s

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


def test_a_job_waits_behind_its_models_own_class_and_those_above_and_the_slowest_model_is_told() -> None:
    tokens = {(INTERACTIVE, "a"): 20, (INTERACTIVE, "b"): 30, (STANDARD, "a"): 40, (BATCH, "a"): 100}
    drains = {"a": Drain(2, 20), "b": Drain(1, 10)}
    assert waits_s(tokens, drains) == {"interactive": 3, "standard": 3, "batch": 8}


def test_a_wait_that_cant_be_told_is_left_out() -> None:
    tokens = {(INTERACTIVE, "a"): 0, (BATCH, "a"): 10}
    assert waits_s(tokens, {}) == {"interactive": 0, "standard": 0}


def test_tokens_are_those_of_the_lanes_and_nought_where_nothing_waits() -> None:
    lanes = [LaneDepth("default", BATCH, "a", 2, 0, 70)]
    assert tokens_by_lane(lanes, ["a"]) == {(INTERACTIVE, "a"): 0, (STANDARD, "a"): 0, (BATCH, "a"): 70}
