"""What follows what in a reader's stream, what a resume cuts off, and how much is read at once."""

from __future__ import annotations

import pytest

from common.contracts import Position
from common.stream import EVENTS, Entry
from gateway.readers import FIRST_PAGE, LARGEST_PAGE, cut, follows, next_page


def events(*numbers: int) -> bytes:
    return b"\n".join(b'{"choices":[%d]}' % number for number in numbers)


def test_an_entry_follows_only_without_a_gap() -> None:
    def entry(fence: int, last: int, count: int) -> Entry:
        return Entry(Position(fence, last), EVENTS, events(*range(last - count + 1, last + 1)))

    assert follows(entry(5, 3, 3), None)
    assert not follows(entry(5, 3, 2), None)
    assert follows(entry(5, 4, 1), Position(5, 3))
    assert not follows(entry(5, 5, 1), Position(5, 3))
    assert follows(entry(6, 1, 1), Position(5, 3))
    assert not follows(entry(6, 2, 1), Position(5, 3))


def test_a_cut_entry_holds_what_comes_after_the_position() -> None:
    entry = Entry(Position(5, 4), EVENTS, events(2, 3, 4))

    assert cut(entry, Position(5, 2)).body == events(3, 4)
    assert cut(entry, Position(5, 1)).body == events(2, 3, 4)
    assert cut(entry, Position(4, 9)).body == events(2, 3, 4)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([100] * 8, 10), ([1_000], 1), ([100_000], 1), ([1] * 8, LARGEST_PAGE), ([], FIRST_PAGE)],
)
def test_pages_hold_about_what_a_reader_may_hold(sizes: list[int], expected: int) -> None:
    entries = [Entry(Position(1, seq), EVENTS, b"x" * size) for seq, size in enumerate(sizes)]
    assert next_page(entries, 1_000) == expected
