"""The checker of histories: what could have happened in some order is let through, what could not is found."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.linear import NEVER, UNKNOWN, Call, History, Read, Swap, Write, linearize, reads, register


def history(*rows: tuple[Any, Any, int, int]) -> list[Call]:
    """Calls from rows of (what, answer, begun, ended)."""
    return [Call(what, begun, answer, ended) for what, answer, begun, ended in rows]


POSSIBLE = {
    "nothing": [],
    "one after another": [(Write(1), None, 0, 1), (Read(), 1, 2, 3)],
    "a read beside a write sees the old": [(Write(1), None, 0, 3), (Read(), 0, 1, 2)],
    "a read beside a write sees the new": [(Write(1), None, 0, 3), (Read(), 1, 1, 2)],
    "a write of unknown outcome happened late": [(Write(1), UNKNOWN, 0, NEVER), (Read(), 0, 1, 2), (Read(), 1, 3, 4)],
    "a write of unknown outcome never happened": [(Write(1), UNKNOWN, 0, NEVER), (Read(), 0, 1, 2)],
    "one of two swaps won": [(Swap(0, 1), True, 0, 3), (Swap(0, 2), False, 1, 2)],
    "an order that is not that of the ends": [(Write(1), None, 0, 9), (Write(2), None, 1, 2), (Read(), 1, 3, 4)],
}
IMPOSSIBLE = {
    "a stale read": [(Write(1), None, 0, 1), (Read(), 0, 2, 3)],
    "a value from nowhere": [(Write(1), None, 0, 3), (Read(), 7, 1, 2)],
    "a read that goes back": [(Write(1), None, 0, 9), (Read(), 1, 1, 2), (Read(), 0, 3, 4)],
    "two swaps that both won": [(Swap(0, 1), True, 0, 3), (Swap(0, 2), True, 1, 2)],
    "an effect before its call": [(Read(), 1, 0, 1), (Write(1), UNKNOWN, 2, NEVER)],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_could_have_happened_has_an_order(name: str) -> None:
    assert linearize(history(*POSSIBLE[name]), 0, register, reads) is not None


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_could_not_have_happened_has_none(name: str) -> None:
    assert linearize(history(*IMPOSSIBLE[name]), 0, register, reads) is None


def by_trial(calls: list[Call]) -> bool:
    """The same question, answered by trying every order; every call must have ended."""
    for order in permutations(calls):
        early = all(a.begun < b.ended for i, a in enumerate(order) for b in order[i + 1 :])
        state: Any = 0
        for call in order if early else ():
            state = None if state is None else register(state, call.what, call.answer)
        if early and state is not None:
            return True
    return False


WHATS = st.one_of(
    st.tuples(st.builds(Write, st.integers(0, 2)), st.none()),
    st.tuples(st.just(Read()), st.integers(0, 2)),
    st.tuples(st.builds(Swap, st.integers(0, 2), st.integers(0, 2)), st.booleans()),
)


@given(st.lists(WHATS, max_size=5), st.randoms(use_true_random=False))
def test_it_agrees_with_trying_every_order(rows: list[tuple[Any, Any]], random: Any) -> None:
    ticks = list(range(2 * len(rows)))
    random.shuffle(ticks)
    spans = [sorted(ticks[2 * i : 2 * i + 2]) for i in range(len(rows))]
    calls = [Call(what, begun, answer, ended) for (what, answer), (begun, ended) in zip(rows, spans, strict=True)]
    order = linearize(calls, 0, register, reads)
    assert (linearize(calls, 0, register) is None) == (order is None)
    assert (order is not None) == by_trial(calls)
    assert order is None or sorted(map(id, order)) == sorted(map(id, calls))


def test_the_first_calls_of_a_history_leave_open_how_those_under_way_end() -> None:
    seen = History()
    long, short = seen.begin(Write(1)), seen.begin(Read())
    seen.end(short, 0)
    seen.begin(Read())
    seen.end(long, None)
    first = seen.first(2)
    assert [call.answer for call in first] == [UNKNOWN, 0]
    assert linearize(first, 0, register) is not None


def test_two_hundred_calls_of_fifty_callers_are_checked_whether_right_or_wrong() -> None:
    seen = History()
    for value in range(4):
        calls = [seen.begin(Write(value + 1) if i == 0 else Read()) for i in range(50)]
        for i, call in enumerate(calls):
            seen.end(call, None if i == 0 else value + i % 2)
    assert linearize(seen.calls, 0, register, reads) is not None
    seen.calls[-1].answer = 99
    assert linearize(seen.calls, 0, register, reads) is None
