"""Decoding upstream bytes, wherever they are cut."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import JsonObject
from common.errors import UpstreamProtocolError
from workers.providers.wire import (
    MAX_LINE_BYTES,
    MOST_LEVELS,
    JsonLineDecoder,
    LineDecoder,
    SseDecoder,
    json_object,
    value_in,
)


def _decoded(raw: bytes, cuts: list[int]) -> list[bytes]:
    decoder = SseDecoder()
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [event for start, end in itertools.pairwise(edges) for event in decoder.feed(raw[start:end])]


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a \n\n", [b"a"]),
        (b"data: [DONE] \n\n", [b"[DONE]"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data\n\n", []),
        (b"data:\n\ndata: \n\ndata: a\n\n", [b"a"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: \xef\xbb\xbfa\n\n", [b"\xef\xbb\xbfa"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"database: a\n\n", []),
        (b"data: not ended\n", []),
        (b"data: not ended", []),
        (b"", []),
    ],
)
def test_server_sent_events_are_read_as_the_standard_says_but_for_empty_ones(raw: bytes, events: list[bytes]) -> None:
    assert _decoded(raw, []) == events


_FIELDS = st.sampled_from([b"data: ", b"data:", b"data", b": ", b"event: x", b"id: 1", b"", b'data: {"a":"\xc3\xa9"}'])
_ENDS = st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\r", b"\r\n\r\n", b"\r\r"])


@given(
    st.lists(st.tuples(_FIELDS, st.sampled_from([b"", b"x", b"data: y", b"\xf0\x9f\x8c\x8a"]), _ENDS)),
    st.lists(st.integers(0, 10_000)),
)
def test_where_the_bytes_are_cut_changes_nothing(lines: list[tuple[bytes, bytes, bytes]], cuts: list[int]) -> None:
    raw = b"".join(part for line in lines for part in line)
    assert _decoded(raw, cuts) == _decoded(raw, list(range(len(raw))))


def test_a_line_of_the_longest_length_passes_and_one_more_byte_does_not() -> None:
    longest = b"data: " + b"x" * (MAX_LINE_BYTES - 6)
    assert SseDecoder().feed(longest + b"\n\n") == [longest[6:]]
    with pytest.raises(UpstreamProtocolError):
        SseDecoder().feed(longest + b"x\n\n")


def test_a_line_without_an_end_is_refused_as_soon_as_it_is_too_long() -> None:
    lines = LineDecoder()
    lines.feed(b"x" * MAX_LINE_BYTES)
    with pytest.raises(UpstreamProtocolError):
        lines.feed(b"x")


def test_an_event_of_many_lines_is_bounded_too() -> None:
    decoder = SseDecoder()
    with pytest.raises(UpstreamProtocolError):
        for _ in range(MAX_LINE_BYTES // 1_000 + 1):
            decoder.feed(b"data: " + b"x" * 1_000 + b"\n")


def test_json_lines_may_lack_the_last_end() -> None:
    decoder = JsonLineDecoder()
    assert decoder.feed(b'{"a":1}\n\n{"b"') == [b'{"a":1}']
    assert decoder.feed(b":2}\r\n") == [b'{"b":2}']
    assert decoder.feed(b'{"c":3}') == []
    assert decoder.finish() == [b'{"c":3}']
    assert decoder.finish() == []


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b' {"a": 1} ', {"a": 1}),
        (b'{"a":"\xe2\x82"}', {"a": "\ufffd"}),
        # Escapes of half a character, as a server sends them that cut it in two; next to whole ones and to backslashes.
        (rb'{"a":"\ud83d"}', {"a": "\ufffd"}),
        (rb'{"a":"\uDE00!\ud83d\ude00\ud83d"}', {"a": "\ufffd!\U0001f600\ufffd"}),
        (rb'{"a":"\\ud83d\\\ud83d\n\u00e9"}', {"a": "\\ud83d\\\ufffd\n\u00e9"}),
    ],
)
def test_bytes_that_are_not_utf_8_become_replacement_characters(raw: bytes, value: object) -> None:
    assert json_object(raw) == value


@pytest.mark.parametrize("raw", [b"", b"[1]", b'"a"', b"1", b"null", b"{", b'{"a":NaN}', b'{"a":"\\ud8"}', b"\xff"])
def test_what_is_not_a_json_object_breaks_the_protocol(raw: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        json_object(raw)


def _nested(levels: int) -> str:
    """An object in which so many levels of objects and arrays are one inside another."""
    begins, ends = '{"a":[1,' * (levels // 2) + '{"a":' * (levels % 2), "}" * (levels % 2) + "]}" * (levels // 2)
    return f"{begins}1{ends}"


def test_what_can_be_read_can_be_written_again_a_few_levels_further_in() -> None:
    document: JsonObject = json_object(_nested(MOST_LEVELS).encode())
    assert document == value_in(_nested(MOST_LEVELS))
    for _ in range(20):
        document = {"in": [document]}
    assert orjson.dumps(document)


@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 300, 5_000])
def test_what_is_nested_deeper_breaks_the_protocol(levels: int) -> None:
    assert value_in(_nested(levels)) is None
    with pytest.raises(UpstreamProtocolError):
        json_object(_nested(levels).encode())


def test_many_objects_side_by_side_are_not_deep() -> None:
    document = {"data": [{"embedding": [0.5] * 8, "index": at} for at in range(MOST_LEVELS)]}
    assert json_object(orjson.dumps(document)) == document
