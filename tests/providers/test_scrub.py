"""An upstream's own words, made safe; and what its headers say about coming back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.scrub import MAX_CHARACTERS, prompt_texts, safe
from workers.providers.upstream import MAX_RETRY_AFTER_S, retry_after_s


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Invalid 'temperature': must be at most 2.", "Invalid 'temperature': must be at most 2."),
        ("maximum context length is 1024 tokens", "maximum context length is 1024 tokens"),
        ("bad\nthing\x1b[31m\x00here", "bad thing [31m here"),
        ("see https://user:pw@host.example:80/a?key=b now", "see [address] now"),
        ("cannot reach 10.1.2.3:8000", "cannot reach [address]"),
        ("key sk-proj-abcdefghijkl is wrong", "key [key] is wrong"),
        ("Authorization: Bearer abc.def", "Authorization: [key]"),
        ("id 0123456789abcdef0123456789abcdef", "id [key]"),
        ("limit of organization `org_01abcdef23` in proj-9876fedc", "limit of organization `[account]` in [account]"),
        ("not json: 'a very long quotation of what somebody wrote in a prompt'", "not json: [text]"),
        (
            "messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
            "messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, you've requested 9000 tokens.",
            "This model's maximum context length is 8192 tokens. However, you've requested 9000 tokens.",
        ),
        (
            "input length and `max_tokens` exceed context limit, decrease input length or `max_tokens` and try again",
            "input length and `max_tokens` exceed context limit, decrease input length or `max_tokens` and try again",
        ),
        (
            "can't read \"it's a long text, 'with quotations' in it, that somebody wrote\" at 'line' 3",
            "can't read [text] at 'line' 3",
        ),
        ("'tis `what somebody wrote in a prompt, at some length`", "'tis [text]"),
        (
            "Input should be valid [type=x, input_value='my secret prompt', input_type=str]",
            "Input should be valid [type=x, [input]",
        ),
        ("the phrase my own secret is bad", "the phrase [removed] is bad"),
    ],
)
def test_messages_lose_what_nobody_should_see(text: str, kept: str) -> None:
    assert safe(text, ["my own secret", "bad"]) == kept


@given(st.text(max_size=2_000))
def test_messages_are_one_short_line(text: str) -> None:
    cleaned = safe(text)
    assert len(cleaned) <= MAX_CHARACTERS
    assert not set(cleaned) & set("\r\n\x00\x1b\u2028\u2029")


def test_a_long_message_costs_little() -> None:
    assert len(safe("'" * 5_000_000)) <= MAX_CHARACTERS
    assert len(safe("a " * 5_000_000)) == MAX_CHARACTERS
    assert len(safe("'a " * 5_000_000)) <= MAX_CHARACTERS


def test_every_text_of_a_prompt_is_known_whole_and_line_by_line() -> None:
    parts = [{"type": "text", "text": "one\ntwo"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    body = {"messages": [{"role": "user", "content": parts}, {"role": "user", "content": "three"}], "prompt": ["four"]}
    assert set(prompt_texts(body)) == {"one\ntwo", "one", "two", "data:,x", "three", "four"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e12"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "soon"}, None),
        ({"date": "Sat, 21 Nov 2026 04:10:00 GMT", "retry-after": "Sat, 21 Nov 2026 04:10:30 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 04:10:30 GMT"}, None),
    ],
)
def test_the_time_to_come_back_is_read_and_bounded(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds
