"""A batch's input as pure functions: lines out of bytes in any pieces, and what makes them no valid input."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.lines import (
    MOST_ERRORS,
    MOST_ID_CHARACTERS,
    MOST_INPUTS,
    MOST_LINES,
    InputCheck,
    InvalidLine,
    LineTooLong,
    RawLine,
    Splitter,
    request_in,
)

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


def line(number: int = 1, /, **changes: Any) -> bytes:
    """A good line, but for the changes."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return orjson.dumps({"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} | changes)


def split(data: bytes, *cuts: int, **words: Any) -> list[RawLine]:
    """The lines of these bytes, given in pieces that end at these places."""
    splitter = Splitter(**words)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found = [one for begin, end in pairwise(places) for one in splitter.feed(data[begin:end])]
    return found + splitter.end()


def check(*lines: bytes, endpoint: str = CHAT) -> InputCheck:
    """A check that has seen these lines."""
    seen = InputCheck(endpoint)
    for raw in split(b"\n".join(lines)):
        seen.add(raw)
    return seen


def faults(*lines: bytes, endpoint: str = CHAT) -> list[tuple[str, str | None, int | None]]:
    """(code, param, line) of what is wrong with these lines."""
    return [(fault.code, fault.param, fault.line) for fault in check(*lines, endpoint=endpoint).end()]


# --- lines ------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200).map(lambda raw: raw.replace(b"a", b"\n")), st.lists(st.integers(0, 200), max_size=6))
def test_lines_are_the_same_in_whatever_pieces_they_come(data: bytes, cuts: list[int]) -> None:
    assert split(data, *cuts) == split(data)


@given(st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")), max_size=8))
def test_each_line_can_be_found_again_from_where_it_stands(texts: list[bytes]) -> None:
    data = b"\n".join(texts)
    for found in split(data):
        again = split(data[found.first_byte : found.next_byte], first_byte=found.first_byte, first_line=found.number)
        assert again == [found]
        rest = split(data[found.next_byte :], first_byte=found.next_byte, first_line=found.number + 1)
        assert rest == [one for one in split(data) if one.number > found.number]


def test_blank_lines_are_counted_and_left_out_and_the_last_needs_no_end() -> None:
    found = split(b"\xef\xbb\xbf{1}\r\n\n  \t\r\n{2}")
    assert [(one.number, one.data) for one in found] == [(1, b"{1}"), (4, b"{2}")]


def test_a_line_that_goes_on_for_too_long_is_told_before_it_is_all_there() -> None:
    splitter = Splitter(most_bytes=10)
    assert [one.data for one in splitter.feed(b"0123456789\n0123")] == [b"0123456789"]
    with pytest.raises(LineTooLong) as told:
        splitter.feed(b"4567890")
    assert told.value.number == 2
    with pytest.raises(LineTooLong):
        split(b"01234567890\n", most_bytes=10)


# --- one line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (line(custom_id=None), "missing_required_parameter", "custom_id"),
        (line(method=None), "missing_required_parameter", "method"),
        (line(url=None), "missing_required_parameter", "url"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id=7), "invalid_custom_id", "custom_id"),
        (line(custom_id="x" * (MOST_ID_CHARACTERS + 1)), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/completions"), "mismatched_url", "url"),
        (line(body=[]), "invalid_request", "body"),
        (line(body={"model": "m", "stream": True}), "unsupported_parameter", "body.stream"),
    ],
)
def test_a_line_that_is_no_request_is_told_with_its_fault(data: bytes, code: str, param: str | None) -> None:
    with pytest.raises(InvalidLine) as told:
        request_in(data, CHAT)
    assert (told.value.code, told.value.param) == (code, param)


def test_what_is_wrong_inside_a_request_is_left_to_the_request_itself() -> None:
    assert request_in(line(body={"stream": False, "temperature": "hot"}), CHAT)["custom_id"] == "c1"


# --- all of them ------------------------------------------------------------------------------------------------------


def test_a_valid_input_has_its_number_of_lines_and_the_model_that_all_name() -> None:
    seen = check(line(1), b"", line(2))
    assert (seen.end(), seen.total, seen.model) == ([], 2, "m")
    assert check(line(1), line(2, body={"model": "other"})).model is None
    assert check(line(1, body={})).model is None


@pytest.mark.parametrize("model", ["a\0b", "x" * 257, 5])
def test_what_no_model_can_be_called_is_not_told_as_the_batchs_model(model: Any) -> None:
    seen = check(line(1, body={"model": model}))
    assert (seen.end(), seen.model) == ([], None)


def test_every_fault_is_told_with_its_line_and_a_custom_id_that_comes_twice() -> None:
    assert faults(line(1), b"no", b"", line(1), line(2, method="PUT")) == [
        ("invalid_json_line", None, 2),
        ("duplicate_custom_id", "custom_id", 4),
        ("invalid_method", "method", 5),
    ]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_input_without_a_line_is_no_input(data: bytes) -> None:
    assert faults(data) == [("empty_file", None, None)]


def test_faults_are_told_up_to_a_number_of_them() -> None:
    seen = check(*[b"no"] * MOST_ERRORS)
    assert seen.full and len(seen.end()) == MOST_ERRORS


def test_too_many_lines_are_refused_and_not_one_fewer() -> None:
    seen = InputCheck(CHAT)
    for number in range(MOST_LINES):
        seen.add(RawLine(number + 1, line(number), 0, 0))
    assert not seen.full and seen.end() == []
    seen.add(RawLine(MOST_LINES + 1, line(MOST_LINES), 0, 0))
    assert seen.full and [fault.code for fault in seen.end()] == ["too_many_tasks"]


@pytest.mark.parametrize(
    ("given_input", "number"), [("text", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1], [2], [3]], 3), ([], 1), (None, 1)]
)
def test_what_is_to_be_embedded_is_counted_over_all_lines(given_input: Any, number: int) -> None:
    lines = MOST_INPUTS // 2_000
    filler = [line(i, url=EMBEDDINGS, body={"model": "m", "input": ["x"] * 2_000}) for i in range(lines - 1)]
    last = [line(lines, url=EMBEDDINGS, body={"model": "m", "input": ["x"] * (2_000 - number)})]
    more = line(lines + 1, url=EMBEDDINGS, body={"model": "m", "input": given_input})
    assert faults(*filler, *last, more, endpoint=EMBEDDINGS) == []
    over = line(lines + 2, url=EMBEDDINGS, body={"model": "m", "input": "x"})
    assert faults(*filler, *last, more, over, endpoint=EMBEDDINGS) == [("too_many_inputs", None, None)]
