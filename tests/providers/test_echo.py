"""The scripted fake: every word of its script, on a clock that only it moves."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import Chunk, JsonObject
from common.errors import UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.providers.stages import backend
from workers.answer import Answer
from workers.providers.base import Call
from workers.providers.echo import EchoProvider


class SleeplessClock:
    """A clock on which sleeping takes no time and is written down."""

    def __init__(self) -> None:
        self.time_s = 1_000.0
        self.slept_s: list[float] = []

    def now_ms(self) -> int:
        return int(self.time_s * 1_000)

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        if seconds:
            self.slept_s.append(round(seconds, 6))


def _call(text: str, *, stream: bool = True, options: JsonObject | None = None, **body: Any) -> Call:
    return Call(
        backend=backend("echo", options=options or {}),
        endpoint="/v1/chat/completions",
        model="m",
        body={"messages": [{"role": "user", "content": text}], **body},
        stream=stream,
        timeout_s=30,
        request_id="r",
    )


def _script(**words: Any) -> str:
    return "echo: " + orjson.dumps(words).decode()


async def _chunks(call: Call, clock: SleeplessClock | None = None) -> list[Chunk]:
    return [chunk async for chunk in EchoProvider(clock or SleeplessClock()).stream(call)]


async def _answer(call: Call) -> JsonObject:
    answer = Answer()
    for chunk in await _chunks(call):
        answer.add(chunk)
    return answer.result()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Hello there, friend.", "Hello there, friend."),
        ("", ""),
        (_script(text="a b"), "a b"),
        (_script(text="a b", tokens=3), "a ba"),
        (_script(tokens=3), " token token token"),
        (_script(tokens=0), ""),
        (_script(tokens=4, numbered=True), " 0 1 2 3"),
        ("  " + _script(text="x"), "x"),
    ],
)
async def test_the_answer_is_what_the_script_says_or_what_was_said(text: str, content: str) -> None:
    result = await _answer(_call(text))
    assert result["choices"][0]["message"]["content"] == content


async def test_words_are_counted_as_tokens() -> None:
    result = await _answer(_call("one two three"))
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert (await _answer(_call(_script(text="a", usage=False))))["usage"]["estimated"] is True


async def test_the_backends_options_are_a_script_that_a_message_changes() -> None:
    options = {"tokens": 2, "numbered": True}
    assert (await _answer(_call("hi", options=options)))["choices"][0]["message"]["content"] == " 0 1"
    assert (await _answer(_call(_script(tokens=3), options=options)))["choices"][0]["message"]["content"] == " 0 1 2"


async def test_delays_are_the_scripts() -> None:
    clock = SleeplessClock()
    await _chunks(_call(_script(tokens=3, first_token_ms=50, token_ms=10)), clock)
    assert clock.slept_s == [0.05, 0.01, 0.01]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_callers_limit_ends_the_answer(field: str) -> None:
    body: dict[str, Any] = {field: 2}
    choice = (await _answer(_call("a b c", **body)))["choices"][0]
    assert choice["message"]["content"] == "a b"
    assert choice["finish_reason"] == "length"


async def test_several_choices_say_the_same() -> None:
    choices = (await _answer(_call("a b", n=3)))["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in choices} == {"a b"}


async def test_reasoning_comes_before_the_answer() -> None:
    message = (await _answer(_call(_script(text="yes", reasoning="hm hm"))))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "refusal": None, "reasoning_content": "hm hm"}


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]


@pytest.mark.parametrize(
    ("text", "body", "called"),
    [
        (
            _script(tool_calls=[{"name": "w", "arguments": {"city": "Oslo", "days": 3}}]),
            {},
            ("w", '{"city":"Oslo","days":3}'),
        ),
        ("x", {"tools": TOOLS, "tool_choice": "required"}, ("f", "{}")),
        ("x", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, ("g", "{}")),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_tools_are_called(text: str, body: JsonObject, called: tuple[str, str], stream: bool) -> None:
    choice = (await _answer(_call(text, stream=stream, **body)))["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], function["arguments"]) == called
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


CUSTOM = {"type": "custom", "custom": {"name": "c"}}


@pytest.mark.parametrize(
    ("text", "body", "called"),
    [
        (_script(tool_calls=[{"name": "c", "input": "SELECT 1, 2"}]), {}, "SELECT 1, 2"),
        ("x y", {"tools": [CUSTOM], "tool_choice": "required"}, "x y"),
        ("x y", {"tools": [*TOOLS, CUSTOM], "tool_choice": CUSTOM}, "x y"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_custom_tools_are_called(text: str, body: JsonObject, called: str, stream: bool) -> None:
    choice = (await _answer(_call(text, stream=stream, **body)))["choices"][0]
    custom = {"name": "c", "input": called}
    assert choice["message"]["tool_calls"] == [{"id": "call_echo_0", "type": "custom", "custom": custom}]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_loop_ends_once_its_results_have_come(stream: bool) -> None:
    call = _call(_script(tool_calls=[{"name": "w"}], then="it is sunny"), stream=stream)
    assert (await _answer(call))["choices"][0]["finish_reason"] == "tool_calls"
    call.body["messages"].append({"role": "tool", "tool_call_id": "call_echo_0", "content": "sunny"})
    choice = (await _answer(call))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("it is sunny", "stop")


@pytest.mark.parametrize("stream", [True, False])
async def test_log_probabilities_come_with_each_token(stream: bool) -> None:
    choice = (await _answer(_call("é b", stream=stream, logprobs=True, top_logprobs=2)))["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["é", " b"]
    assert entries[0]["bytes"] == list("é".encode())
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2]


async def test_it_fails_as_often_as_the_script_wants_and_then_no_more() -> None:
    provider = EchoProvider(SleeplessClock())
    call = _call(_script(text="a b", attempts_failing=2, fail_at=1, error="upstream_unreachable"))
    for _ in range(2):
        with pytest.raises(UpstreamUnreachable):
            _ = [chunk async for chunk in provider.stream(call)]
    assert len([chunk async for chunk in provider.stream(call)]) == 4


async def test_it_hangs_until_a_limit() -> None:
    clock = SleeplessClock()
    with pytest.raises(UpstreamTimeout):
        await _chunks(_call(_script(text="a b", hang_at=1)), clock)
    assert clock.slept_s == [30]


@pytest.mark.parametrize("text", ["echo: {", "echo: []", "echo: 5", 'echo: {"unknown": 1}', 'echo: {"tokens": -1}'])
async def test_a_script_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        await _chunks(_call(text))
    assert caught.value.failure.param == "messages"
