"""The checker of the fault journeys finds each fault planted in a history, and none in a good one."""

from __future__ import annotations

import json

import pytest

from deploy.local.sse import Event
from tests.support.history import Journal, count_problems, job_problems, stream_problems


def token(position: str, number: int) -> Event:
    body = {"choices": [{"index": 0, "delta": {"content": f" {number}"}}]}
    return Event(json.dumps(body), position)


def reset(position: str) -> Event:
    return Event(json.dumps({"choices": [{"index": 0, "delta": {}}]}), position, "reset")


def error(code: str, position: str) -> Event:
    return Event(json.dumps({"error": {"code": code, "message": "…"}}), position)


def done(position: str) -> Event:
    return Event("[DONE]", position)


def problems_of(*events: Event, tokens: int = 2) -> list[str]:
    journal = Journal(tokens=tokens, job_id="a job")
    for event in events:
        journal.take(event)
    return journal.problems


FIRST, SECOND = token("5-1", 0), token("5-2", 1)


def test_a_whole_answer_is_right() -> None:
    assert problems_of(FIRST, SECOND, done("5-3")) == []


def test_an_answer_begun_anew_after_a_reset_is_right() -> None:
    assert problems_of(FIRST, reset("9-0"), token("9-1", 0), token("9-2", 1), done("9-3")) == []


def test_an_attempt_that_ended_before_its_first_token_needs_no_reset() -> None:
    assert problems_of(FIRST, reset("9-0"), token("12-1", 0), token("12-2", 1), done("12-3")) == []


def test_an_answer_that_breaks_off_with_an_error_is_right() -> None:
    assert problems_of(FIRST, error("upstream_interrupted", "5-2")) == []


def test_a_reader_that_was_sent_away_may_go_on() -> None:
    assert problems_of(FIRST, error("slow_reader", "5-1"), SECOND, done("5-3")) == []


@pytest.mark.parametrize(
    ("fault", "events"),
    [
        ("5-3 came after 5-1", (FIRST, token("5-3", 1))),
        ("5-1 came after 5-1", (FIRST, FIRST)),
        ("5-1 came after 5-2", (FIRST, SECOND, FIRST)),
        ("token '1' came where 0 was due", (token("5-1", 1),)),
        ("token '0' came where 1 was due", (FIRST, token("5-2", 0))),
        ("no reset came between", (FIRST, token("9-1", 0))),
        ("no reset came between", (FIRST, reset("9-0"), token("7-1", 0))),
        ("12-2 came after", (FIRST, reset("9-0"), token("12-2", 0))),
        ("a reset to 4-0 came after", (FIRST, reset("4-0"))),
        ("complete with 1 of 2 tokens", (FIRST, done("5-2"))),
        ("came after the end", (FIRST, SECOND, done("5-3"), done("5-3"))),
        ("came after the end", (FIRST, error("upstream_interrupted", "5-2"), SECOND)),
        ("has no position", (token("", 0),)),
    ],
)
def test_what_a_reader_must_never_get_is_found(fault: str, events: tuple[Event, ...]) -> None:
    assert any(fault in problem for problem in problems_of(*events))


def test_a_finished_job_that_has_nothing_more_ends_the_journal_and_its_tokens_are_counted() -> None:
    journal = Journal(tokens=2, job_id="a job")
    journal.take(FIRST)
    journal.take_nothing_more()
    assert journal.end == "[DONE]"
    assert journal.problems == ["a job: it was complete with 1 of 2 tokens"]


GOOD = [("5-0", "s", "1"), ("5-2", "c", "{}\n{}"), ("7-0", "s", "2"), ("7-1", "c", "{}"), ("7-2", "o", "{}")]


def test_a_stream_of_two_attempts_and_one_end_is_right() -> None:
    assert stream_problems("a job", "succeeded", GOOD) == []


@pytest.mark.parametrize(
    ("state", "entries"),
    [
        ("succeeded", GOOD[:-1]),
        ("succeeded", [*GOOD, ("7-3", "o", "{}")]),
        ("failed", [*GOOD, ("8-0", "s", "3")]),
        ("running", [GOOD[0], ("5-3", "c", "{}\n{}")]),
        ("running", [*GOOD[:3], ("7-2", "c", "{}")]),
        ("running", [("5-0", "s", "1"), ("6-2", "c", "{}")]),
    ],
)
def test_what_a_stream_must_never_hold_is_found(state: str, entries: list[tuple[str, str, str]]) -> None:
    assert stream_problems("a job", state, entries) != []


def test_a_job_without_an_end_is_found() -> None:
    assert job_problems([("one", "succeeded"), ("two", "running")]) == ["two: still running"]


def test_ends_that_are_more_or_fewer_than_the_submissions_are_found() -> None:
    assert count_problems({"submitted": 3, "succeeded": 2, "failed": 1}) == []
    assert count_problems({"submitted": 3, "succeeded": 2}) != []
    assert count_problems({"submitted": 3, "succeeded": 4}) != []
