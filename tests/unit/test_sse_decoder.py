"""The client's decoder of server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sse import Decoder, Event

STREAM = (
    'retry: 1000\n\n: ping\n\nid: 7-1\ndata: {"a": "é€😀"}\n\nevent: reset\nid: 8-0\ndata: one\ndata: two\n\n'.encode()
)
EVENTS = [Event('{"a": "é€😀"}', "7-1"), Event("one\ntwo", "8-0", "reset")]


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=12))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    decoder = Decoder()
    pieces = (STREAM[start:end] for start, end in pairwise(edges))
    assert [event for piece in pieces for event in decoder.feed(piece)] == EVENTS


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending_of_the_standard_is_taken(ending: bytes) -> None:
    stream = ending.join([b"id: 1-1", b"data: x", b"", b"data: y", b"", b": end", b""])
    assert Decoder().feed(stream) == [Event("x", "1-1"), Event("y", "1-1")]


def test_a_carriage_return_at_the_end_of_a_piece_is_not_an_empty_line() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: x\r") == []
    assert decoder.feed(b"\ndata: y\r\n\r\n") == [Event("x\ny", "")]


def test_an_event_that_never_ended_is_not_given() -> None:
    assert Decoder().feed(b"id: 1-1\ndata: half") == []


def test_an_id_without_data_stands_for_the_events_after_it() -> None:
    assert Decoder().feed(b"id: 5-0\n\ndata: x\n\n") == [Event("x", "5-0")]


def test_an_id_with_a_nul_is_ignored() -> None:
    assert Decoder().feed(b"id: 1\nid: 2\0\ndata: x\n\n") == [Event("x", "1")]
