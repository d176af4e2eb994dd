"""An upstream's own words, made safe; and what its headers say about coming back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.servers import Backend
from workers.providers.base import Call
from workers.providers.scrub import MAX_CHARACTERS, MOST_CANDIDATES, prompt_texts, safe
from workers.providers.upstream import MAX_RETRY_AFTER_S, retry_after_s, secrets_of


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Invalid 'temperature': must be at most 2.", "Invalid 'temperature': must be at most 2."),
        ("maximum context length is 1024 tokens", "maximum context length is 1024 tokens"),
        ("bad\nthing\x1b[31m\x00here", "bad thing [31m here"),
        ("see https://user:pw@host.example:80/a?key=b now", "see [address] now"),
        ("cannot reach 10.1.2.3:8000", "cannot reach [address]"),
        ("dial tcp [fd00::1]:8000: connect: refused", "dial tcp [address]: connect: refused"),
        ("dial tcp [fe80::1%eth0]:80", "dial tcp [address]"),
        ("to 2001:db8:0:0:0:0:0:1, ::1 or fd00::", "to [address], [address] or [address]"),
        ("no route to gpu-a.lan:8000", "no route to [address]"),
        ("no such host: gpu-a.models.svc.cluster.local", "no such host: [address]"),
        ("at 12:30:45 std::bad_alloc in messages.0.content", "at 12:30:45 std::bad_alloc in messages.0.content"),
        ("max_tokens:4096 of 2.5:1, e.g. in llama-3.1:8b", "max_tokens:4096 of 2.5:1, e.g. in llama-3.1:8b"),
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


def test_a_line_that_overlaps_another_leaves_nothing_of_either() -> None:
    assert safe("it was 'a night of herons and of storks'.", ["a night of herons", "herons and of storks"]) == (
        "it was '[removed]'."
    )


def test_a_line_in_whose_middle_the_message_ends_is_removed_too() -> None:
    assert safe("cannot read: Pretend that this gat", ["Pretend that this gateway"]) == "cannot read: [removed]"
    line = "a line as long as the longest prompt, " * 1_000
    assert safe(f"cannot read: {line}", [line]) == "cannot read: [removed]"


def test_a_message_that_may_hold_most_of_the_prompt_is_not_passed_on() -> None:
    lines = [f"line {number:08}" for number in range(MOST_CANDIDATES + 1)]
    assert safe("What is line 00", lines[:-1]) == "What is line 00"
    assert safe("What is line 00000001?", lines[:-1]) == "What is [removed]?"
    assert safe(f"What is {lines[1]}?", lines) == "What is [removed]?"
    assert safe(f"What is {' '.join(lines)}?", lines) == ""


def test_many_lines_that_begin_with_a_word_of_the_message_take_no_other_word_out_of_it() -> None:
    lines = [f"purchase {number} of the things that stand on this list" for number in range(MOST_CANDIDATES + 1)]
    assert safe("Go to purchase credits.", lines) == "Go to purchase credits."
    assert safe(f"Go to {lines[7]}.", lines) == "Go to [removed]."
    assert safe(f"Go to {lines[7][:14]}", lines) == "Go to [removed]"
    assert safe("Go to purchase purchase 7", lines) == "Go to purchase [removed]"


def _call(prompt: str, key: str | None = None, url: str = "http://gpu-a.example:8000/v1") -> Call:
    backend = Backend.model_validate({"name": "b", "kind": "openai", "base_url": url})
    messages = [{"role": "user", "content": prompt}]
    return Call(backend, "/v1/chat/completions", "m", {"messages": messages}, stream=True, timeout_s=1, api_key=key)


@pytest.mark.parametrize(
    ("url", "text", "kept"),
    [
        ("http://gpu-a.example:8000/v1", "key abc1234 is bad at gpu-a.example", "key [removed] is bad at [removed]"),
        ("http://gpu-a.example:8000/v1", "gpu-a.example:8000 refused", "[removed] refused"),
        (
            "http://vllm:8000",
            "vllm refused: vllm:8000 is not of key xabc1234",
            "vllm refused: [removed] is not of key xabc1234",
        ),
        ("http://me:pass-word@vllm", "me and pass-word at vllm", "me and [removed] at vllm"),
        ("http://[fd00::a]:80", "connect to fd00::a", "connect to [removed]"),
    ],
)
def test_a_calls_own_key_and_address_are_removed_however_short_they_are(url: str, text: str, kept: str) -> None:
    assert safe(text, secrets_of(_call("hello", "abc1234", url))) == kept


def _steps(lines: int, message: str) -> int:
    """How many steps it takes to make a message safe that refused so many lines."""
    return _steps_of(message, secrets_of(_call("\n".join(f"{number:08x}" for number in range(lines)))))


def _steps_of(message: str, secrets: Iterable[str]) -> int:
    """How many calls, of functions of any sort, it takes to make the message safe."""
    steps = 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    safe(message, secrets)  # fills what is kept from call to call
    sys.setprofile(count)
    try:
        safe(message, secrets)
    finally:
        sys.setprofile(None)
    return steps


@pytest.mark.parametrize("message", ["No more than 8 images.", "x" * 16_000, "what is 00000001? " * 900])
def test_a_prompt_of_many_lines_takes_no_more_steps_than_one_of_few(message: str) -> None:
    assert _steps(40_000, message) == _steps(4_000, message)


def test_a_message_that_repeats_a_beginning_takes_no_more_steps_the_longer_it_is() -> None:
    def steps(characters: int) -> int:
        return _steps_of("no: " + "a" * characters + "z", [f"{'a' * 20_000}{number}" for number in range(9)])

    assert steps(8_000) == steps(1_000)
    assert safe("no: " + "ab" * 90 + "c", ["ab" * 1_000]) == "no: [removed]"


def test_a_prompt_may_be_nested_to_any_depth_and_made_of_tokens() -> None:
    deep: Any = "far inside"
    for _ in range(3_000):
        deep = [{"content": deep}]
    assert list(prompt_texts({"messages": deep, "input": [[1, 2], [3, 4]]})) == ["far inside"] * 2


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
