"""Routing: in which order targets are tried, and what becomes of a job that none of them answered."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Fallback, Model, Target
from common.errors import (
    AnswerTooLong,
    ContentFiltered,
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamModelMissing,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamUnreachable,
    UpstreamUnsupported,
)
from workers.routing import (
    Again,
    Missed,
    Prospects,
    Standing,
    backoff_ms,
    by_room,
    in_order,
    instead,
    next_try,
    worth_trying,
)

A, B, C = (Target(backend=name, model="m") for name in "abc")
EQUAL = [Target(backend=name, model="m", weight=1) for name in "abc"]
DOWN, OPEN = Standing(healthy=False, free=9), Standing(refused=True, free=9)

CASES: list[tuple[str, list[Target], dict[str, Standing], str]] = [
    ("as configured where nothing is known", [A, B, C], {}, "abc"),
    ("the unhealthy later, and not left out", [A, B, C], {"a": DOWN}, "bca"),
    ("the open last of all", [A, B, C], {"a": OPEN, "b": DOWN}, "cba"),
    ("the only one, however it is", [A], {"a": OPEN}, "a"),
    ("a full one keeps its place in a chain", [A, B], {"a": Standing(free=0)}, "ab"),
]


@pytest.mark.parametrize(("targets", "standings", "order"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("turn", [0, 1, 17])
def test_a_chain_is_tried(targets: list[Target], standings: dict[str, Standing], order: str, turn: int) -> None:
    assert "".join(target.backend for target in in_order(targets, standings, turn=turn)) == order


def _first(standings: dict[str, Standing], *, turns: int = 1_000, warm: str = "") -> dict[str, int]:
    counted = Counter(in_order(EQUAL, standings, turn=turn, warm=warm)[0].backend for turn in range(turns))
    return dict(counted)


def test_neighbours_of_one_weight_take_turns() -> None:
    counted = _first({name: Standing(free=8) for name in "abc"})
    assert all(abs(count - 1_000 / 3) < 10 for count in counted.values()) and len(counted) == 3


def test_neighbours_are_first_as_often_as_their_free_slots_are_many() -> None:
    counted = _first({"a": Standing(free=60), "b": Standing(free=30), "c": Standing(free=10)})
    assert abs(counted["a"] - 600) < 10 and abs(counted["b"] - 300) < 10 and abs(counted["c"] - 100) < 10


@pytest.mark.parametrize("standing", [Standing(free=0), Standing(free=-3), DOWN, OPEN])
def test_a_neighbour_that_can_take_nothing_is_first_for_nobody(standing: Standing) -> None:
    counted = _first({"a": standing, "b": Standing(free=1), "c": Standing(free=1)})
    assert "a" not in counted


@pytest.mark.parametrize("standing", [Standing(free=0), DOWN, OPEN])
def test_where_none_can_take_any_they_still_take_turns(standing: Standing) -> None:
    assert len(_first(dict.fromkeys("abc", standing))) == 3


def weighted(**weights: float | None) -> list[Target]:
    return [Target(backend=name, model="m", weight=weight) for name, weight in weights.items()]


def _parts(targets: list[Target], standings: dict[str, Standing], *, warm: str = "") -> dict[str, int]:
    """How often each is first, in a hundred turns."""
    turns = (in_order(targets, standings, turn=turn, warm=warm)[0].backend for turn in range(1_000))
    return {name: round(count / 10) for name, count in Counter(turns).items()}


@pytest.mark.parametrize(
    ("free", "parts"),
    [
        ({}, {"a": 90, "b": 10}),
        ({"a": 10, "b": 10}, {"a": 90, "b": 10}),
        ({"a": 10, "b": 30}, {"a": 75, "b": 25}),
        ({"a": 0, "b": 30}, {"b": 100}),
        ({"a": 0, "b": 0}, {"a": 90, "b": 10}),
    ],
)
def test_neighbours_are_first_by_their_weights_and_free_slots(free: dict[str, int], parts: dict[str, int]) -> None:
    standings = {name: Standing(free=slots) for name, slots in free.items()}
    assert _parts(weighted(a=9, b=1), standings) == parts


def test_nine_of_any_ten_turns_in_a_row_or_so_fall_to_a_weight_of_nine() -> None:
    for begin in range(0, 1_000, 7):
        first = [in_order(weighted(a=9, b=1), {}, turn=turn)[0].backend for turn in range(begin, begin + 20)]
        assert 1 <= first.count("b") <= 3


def test_whoever_has_no_weight_stands_alone_and_in_order() -> None:
    targets = weighted(a=None, b=1, c=3, d=None, e=1)
    for turn in range(20):
        order = "".join(target.backend for target in in_order(targets, {}, turn=turn))
        assert order in ("abcde", "acbde")


def test_a_weight_does_not_make_up_for_bad_health() -> None:
    assert [one.backend for one in in_order(weighted(a=9, b=1), {"a": DOWN}, turn=0)] == ["b", "a"]


def test_of_unequal_weights_none_is_first_more_often_for_a_prefix_that_it_served() -> None:
    assert _parts(weighted(a=9, b=1), {}, warm="b") == {"a": 90, "b": 10}
    assert _parts(weighted(a=4, b=4, c=2), {}, warm="b") == {"b": 80, "c": 20}


def test_the_neighbour_that_served_the_prefix_is_first_while_it_has_a_free_slot() -> None:
    free = {name: Standing(free=5) for name in "abc"}
    assert _first(free, warm="b") == {"b": 1_000}
    assert "b" not in _first({**free, "b": Standing(free=0)}, warm="b")
    assert "b" not in _first({**free, "b": DOWN}, warm="b")


def test_a_warm_fallback_does_not_go_before_the_first_choice() -> None:
    assert in_order([A, B], {}, turn=0, warm="b") == [A, B]


standings = st.dictionaries(
    st.sampled_from("abc"), st.builds(Standing, st.booleans(), st.booleans(), st.integers(-5, 100))
)


@given(standings, st.integers(0, 10**9), st.sampled_from(["", "a", "b", "c", "other"]))
def test_no_target_is_ever_left_out_or_doubled(known: dict[str, Standing], turn: int, warm: str) -> None:
    ordered = in_order(EQUAL, known, turn=turn, warm=warm)
    assert sorted(target.backend for target in ordered) == ["a", "b", "c"]


# --- later tries -----------------------------------------------------------------------------------------------------

FAILED = Missed(called=True, may_recur=True)
CLOSED = Missed(called=False, may_recur=True, soonest_ms=4_000)


def prospects(
    *, failures: int = 0, left_ms: int = 600_000, waited_for: bool = True, affordable: bool = True
) -> Prospects:
    return Prospects(failures, left_ms, waited_for, affordable)


def test_a_failed_attempt_comes_back_after_a_jittered_wait_and_counts() -> None:
    assert next_try(FAILED, prospects(failures=1), jitter=0.5) == Again(500, counts=True)


def test_where_no_backend_could_be_asked_the_job_rests_until_one_may_be_and_nothing_counts() -> None:
    again = next_try(CLOSED, prospects(), jitter=0.5)
    assert again is not None
    assert 4_000 < again.delay_ms < 4_300 and not again.counts


def test_what_a_later_try_cannot_mend_ends_at_once() -> None:
    assert next_try(Missed(called=True, may_recur=False), prospects(), jitter=0) is None


@pytest.mark.parametrize("missed", [FAILED, CLOSED])
def test_what_could_only_come_back_after_its_deadline_ends_at_once(missed: Missed) -> None:
    assert next_try(missed, prospects(left_ms=200), jitter=0.9) is None


def test_without_a_budget_a_caller_who_waits_hears_of_it_and_other_work_rests_for_long() -> None:
    assert next_try(FAILED, prospects(affordable=False), jitter=0.5) is None
    again = next_try(FAILED, prospects(affordable=False, waited_for=False), jitter=0.5)
    assert again is not None
    assert again.delay_ms >= 10_000 and again.counts


@given(st.integers(0, 100), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1e6)))
def test_a_wait_is_bounded_positive_and_never_shorter_than_what_was_asked(
    failures: int, jitter: float, asked_s: float | None
) -> None:
    wait_ms = backoff_ms(failures, jitter=jitter, retry_after_s=asked_s)
    assert 1 <= wait_ms <= 120_000
    assert wait_ms >= int(min(asked_s or 0, 60) * 1000)


def test_waits_grow_with_the_failures_and_are_spread_over_all_of_their_range() -> None:
    assert [backoff_ms(n, jitter=1) for n in range(8)] == [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000]
    assert backoff_ms(3, jitter=0) == 1
    assert backoff_ms(3, jitter=0.25) == 1_000


def test_those_refused_at_one_moment_do_not_return_at_one_moment() -> None:
    assert backoff_ms(2, jitter=0.1, retry_after_s=1) != backoff_ms(2, jitter=0.3, retry_after_s=1)


# --- lengths ---------------------------------------------------------------------------------------------------------

SMALL = Target(backend="s", model="m", context_tokens=1_000)
LARGE = Target(backend="l", model="m", context_tokens=10_000)
UNTOLD = Target(backend="u", model="m")


@pytest.mark.parametrize(
    ("prompt_tokens", "limit", "roomy", "tight"),
    [
        (0, None, "slu", ""),
        (999, None, "slu", ""),
        (1_000, None, "lu", "s"),
        (1_999, None, "lu", "s"),
        (2_000, None, "lu", ""),
        (500, 500, "slu", ""),
        (500, 501, "lu", "s"),
        (500, 751, "lu", ""),
        (15_000, None, "u", "l"),
        (10**9, 10**9, "u", ""),
    ],
)
def test_targets_go_apart_by_whether_a_request_is_likely_to_fit_may_or_surely_does_not(
    prompt_tokens: int, limit: int | None, roomy: str, tight: str
) -> None:
    targets = (SMALL, LARGE, UNTOLD)
    found = by_room(Model(targets=targets), targets, prompt_tokens, limit)
    assert ["".join(target.backend for target in group) for group in found] == [roomy, tight]


def test_where_it_surely_fits_nowhere_no_target_is_left_out() -> None:
    targets = [SMALL, LARGE]
    assert by_room(Model(targets=(SMALL, LARGE)), targets, 10**9, None) == (targets, [])


def test_a_models_own_context_counts_where_a_target_names_none() -> None:
    row = Model(targets=(UNTOLD, LARGE), context_tokens=100)
    assert by_room(row, row.targets, 5_000, None) == ([LARGE], [])


# --- after a failure -------------------------------------------------------------------------------------------------

SHORT = Target(backend="s", model="m", context_tokens=10)
LONG = Target(backend="l", model="m", context_tokens=20)
OTHER = Target(backend="o", model="m")
ALL = Fallback(context_length_exceeded="long", rate_limit="spare", unavailable="other")


@pytest.mark.parametrize(
    ("error", "left", "fallback"),
    [
        (ContextTooLong(), "l", "long"),
        (UpstreamRefused(), "", None),
        (UpstreamModelMissing(), "slo", None),
        (UpstreamUnsupported(), "o", None),
        (ContentFiltered(), "", None),
        (UpstreamInterrupted(), "", None),
        (UpstreamBusy(), "slo", "spare"),
        (UpstreamUnreachable(), "slo", "other"),
        (UpstreamTimeout(), "slo", "other"),
        (UpstreamUnavailable(), "slo", "other"),
        (UpstreamCredentials(), "slo", "other"),
        (UpstreamError(), "slo", "other"),
        (AnswerTooLong(), "slo", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, UpstreamError) else None,
)
def test_what_may_be_asked_next_goes_by_the_kind_of_failure(
    error: UpstreamError, left: str, fallback: str | None
) -> None:
    row = Model(targets=(SHORT, LONG, OTHER))
    rest = worth_trying(error, SHORT, [SHORT, LONG, OTHER], row, kind_of=_kind_of)
    assert "".join(target.backend for target in rest) == left
    assert instead(error, ALL) == fallback
    assert instead(error, Fallback()) is None


def _kind_of(target: Target) -> str:
    return "another" if target is OTHER else "kind"


def test_where_nobody_said_how_long_a_context_is_none_is_known_to_be_longer() -> None:
    row = Model(targets=(OTHER, SHORT, LONG))
    assert worth_trying(ContextTooLong(), OTHER, [SHORT, LONG], row, kind_of=_kind_of) == []
    shown = Model(targets=(OTHER, LONG), context_tokens=5)
    assert worth_trying(ContextTooLong(), OTHER, [LONG], shown, kind_of=_kind_of) == [LONG]
