"""An uploaded form as bytes: its file comes out as it went in, whatever the pieces; what is no such form is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadRequest
from gateway.dialects.files import LONGEST_LIFE_S, SHORTEST_LIFE_S, check_fields, life_s, shown_name
from gateway.uploads import MOST_FIELD_BYTES, MOST_FIELDS, Form

BOUNDARY = b"xyz"


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    """A part of a form."""
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{named}\r\nContent-Type: text/plain\r\n\r\n'
    return head.encode() + value + b"\r\n"


def a_form(content: bytes, *others: bytes) -> bytes:
    """A form with a file, a purpose, and others before them."""
    return b"".join([*others, part("purpose", b"batch"), part("file", content, "in.jsonl"), b"--xyz--\r\n"])


def read(data: bytes, *cuts: int) -> tuple[Form, bytes]:
    """The form that came in pieces which end at these places, and its file's bytes."""
    form = Form(BOUNDARY)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [form.feed(data[begin:end]) for begin, end in pairwise(places)]
    return form, b"".join(pieces)


# Bytes that look like the end of a part are the hard ones.
CONTENT = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--xy", b"xyz", b"\r\n--", b"a", b"\0"])).map(
    b"".join
)


@given(CONTENT.filter(lambda raw: b"\r\n--xyz" not in b"\r\n" + raw), st.lists(st.integers(0, 400), max_size=8))
def test_a_file_comes_out_as_it_went_in_whatever_the_pieces(content: bytes, cuts: list[int]) -> None:
    form, found = read(a_form(content), *cuts)
    assert (found, form.fields, form.filename, form.ended) == (content, {"purpose": "batch"}, "in.jsonl", True)


def test_fields_may_come_after_the_file() -> None:
    form, found = read(part("file", b"x", "a") + part("purpose", b"vision") + b"--xyz--")
    assert (found, form.fields) == (b"x", {"purpose": "vision"})


@pytest.mark.parametrize(
    "data",
    [
        b"no form at all",
        a_form(b"x", part("purpose", b"batch")),
        a_form(b"x", part("file", b"y", "b")),
        a_form(b"x", part("other", b"y" * (MOST_FIELD_BYTES + 1))),
        a_form(b"x", *[part(f"f{number}", b"y") for number in range(MOST_FIELDS)]),
        a_form(b"x", part("", b"y")),
        part("file", b"x") + b"--xyz--\r\n",
        a_form(b"x").replace(b"Content-Type: text/plain", b"X: " + b"y" * 10_000),
    ],
)
def test_a_form_that_is_no_upload_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read(data)


def test_a_form_that_broke_off_has_not_ended() -> None:
    for cut in range(1, len(a_form(b"x")) - 4):
        form, _ = read(a_form(b"x")[:cut])
        assert not form.ended


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "more": "x"}, "more"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after.seconds",
        ),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "-1"},
            "expires_after.seconds",
        ),
    ],
)
def test_fields_that_say_nothing_are_refused_by_name(fields: dict[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_fields(fields)
    assert refused.value.failure.param == param


def test_a_file_is_kept_as_it_says_and_a_batch_for_thirty_days() -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(SHORTEST_LIFE_S)}
    assert life_s({"purpose": "vision", **expiry}) == SHORTEST_LIFE_S
    assert life_s({"purpose": "batch"}) == LONGEST_LIFE_S
    assert life_s({"purpose": "user_data"}) is None


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.txt", "y.txt"),
        ("a\0b\nc", "a_b_c"),
        ("", "upload"),
        ("é" * 300, "é" * 255),
    ],
)
def test_a_name_is_kept_without_folders_and_what_no_name_has(given_name: str, kept: str) -> None:
    assert shown_name(given_name) == kept
