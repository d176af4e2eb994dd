"""The headers of a tenant's limit: their names, what they leave, and times as the clients write them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.queue import Admitted, Submitted
from gateway.limits import Room, TenantFull, as_last_left, format_duration, format_time, limit_headers
from tests.support.seeds import a_job

# 2026-11-21T16:00:00.500Z
NOW_MS = 1_795_276_800_500


def admitted(waiting: int | None = 3, wait_ms: int | None = 1_500) -> Admitted:
    """A job just taken, of a tenant that may have ten waiting."""
    return Admitted(Submitted.ACCEPTED, "j", NOW_MS, 2, wait_ms, None, waiting, 10)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (1, "1ms"),
        (17, "17ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (1_001, "2s"),
        (59_001, "1m0s"),
        (360_000, "6m0s"),
        (3_599_001, "1h0m0s"),
        (86_400_000, "24h0m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it_and_never_too_short(ms: int, text: str) -> None:
    assert format_duration(ms) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (NOW_MS - 500, "2026-11-21T16:00:00Z"),
        (NOW_MS, "2026-11-21T16:00:01Z"),
        (951_782_400_000, "2000-02-29T00:00:00Z"),
    ],
)
def test_a_time_is_written_by_rfc_3339_in_utc(ms: int, text: str) -> None:
    assert format_time(ms) == text


def test_openais_clients_read_the_limit_what_is_left_and_a_duration() -> None:
    assert limit_headers(admitted()) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "2s",
    }


def test_anthropics_clients_read_a_time_under_names_of_their_own() -> None:
    assert Room(admitted(), a_job(1, dialect="anthropic"), 100.0).headers(101.0) == {
        "anthropic-ratelimit-requests-limit": "10",
        "anthropic-ratelimit-requests-remaining": "7",
        "anthropic-ratelimit-requests-reset": "2026-11-21T16:00:02Z",
    }


def test_no_pace_no_reset_and_no_word_of_the_queue_no_headers() -> None:
    assert set(limit_headers(admitted(wait_ms=None))) == {
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
    }
    assert limit_headers(admitted(waiting=None)) == {}


def test_of_what_waits_beyond_the_limit_less_than_nothing_is_never_left() -> None:
    assert limit_headers(admitted(waiting=12))["x-ratelimit-remaining-requests"] == "0"


def test_time_that_passed_before_the_answer_began_is_no_part_of_its_reset() -> None:
    room = Room(admitted(), a_job(1), 100.0)
    resets = [room.headers(now_s)["x-ratelimit-reset-requests"] for now_s in (100.0, 101.0, 101.5, 200.0)]
    assert resets == ["2s", "500ms", "0s", "0s"]


def test_the_turn_of_a_delayed_job_comes_not_before_its_delay() -> None:
    assert Room(admitted(), a_job(1, delay_ms=60_000), 1.0).headers(1.0)["x-ratelimit-reset-requests"] == "1m0s"
    assert Room(admitted(), a_job(1, delay_ms=200), 1.0).headers(1.0)["x-ratelimit-reset-requests"] == "2s"


def test_a_refusal_resets_no_sooner_than_it_may_be_tried_again() -> None:
    full = Admitted(Submitted.TENANT_FULL, "j", NOW_MS, 10, 20_000, None, 10, 10)
    assert TenantFull(full, 2.0).headers() == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "20s",
    }
    late = TenantFull(full, 30.5)
    assert late.headers()["x-ratelimit-reset-requests"] == "31s"
    assert late.headers(anthropic=True)["anthropic-ratelimit-requests-reset"] == "2026-11-21T16:00:31Z"
    unknown = TenantFull(replace(full, wait_ms=0), 5.0)
    assert set(unknown.headers()) == {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"}
    assert (late.failure.code, late.failure.retry_after_s) == ("tenant_queue_full", 30.5)
    assert late.failure.message.startswith("10 of your jobs wait already")


def test_of_several_jobs_the_last_that_was_made_tells_the_limit() -> None:
    first, second = ({"x-ratelimit-remaining-requests": left, "x-headrace-job-id": left} for left in ("2", "1"))
    replayed = {"x-headrace-replayed": "true"}
    assert as_last_left([first, second, replayed]) == {"x-ratelimit-remaining-requests": "1"}
    assert as_last_left([replayed]) == {}
