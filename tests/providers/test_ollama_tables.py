"""Ollama's native API as pure functions: recorded values in, values out."""

from __future__ import annotations

from typing import Any

import pytest

from common.contracts import Chunk, JsonObject, Usage
from common.errors import (
    ContextTooLong,
    UpstreamBusy,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamProtocolError,
    UpstreamRefused,
)
from tests.providers.stages import backend
from workers.providers import ollama
from workers.providers.base import Call

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def _call(body: JsonObject, *, stream: bool = True, **options: Any) -> Call:
    where = backend("ollama", "http://127.0.0.1:1", options=options)
    return Call(where, "/v1/chat/completions", "llama3.2:1b", body, stream=stream, timeout_s=1)


def _wire(body: JsonObject, *, stream: bool = True, **options: Any) -> JsonObject:
    return ollama.to_wire(_call(body, stream=stream, **options))


def test_a_bare_request_says_plainly_whether_to_stream() -> None:
    assert _wire({"messages": USER}, stream=False) == {
        "model": "llama3.2:1b",
        "messages": USER,
        "stream": False,
        "truncate": False,
        "shift": False,
        "options": {},
    }


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"num_predict": 7}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stop": None, "seed": None}, {}),
        ({"temperature": 0, "top_p": 0.5, "seed": 0}, {"temperature": 0, "top_p": 0.5, "seed": 0}),
        ({"top_k": 4, "min_p": 0.1, "frequency_penalty": 1}, {"top_k": 4, "min_p": 0.1, "frequency_penalty": 1}),
        ({"num_ctx": 10**9, "user": "u", "api_base": "x"}, {}),  # its memory is the operator's to give
    ],
)
def test_sampling_fields_become_options(body: JsonObject, options: JsonObject) -> None:
    assert _wire({"messages": USER, **body})["options"] == options


def test_the_backends_options_stand_below_the_callers() -> None:
    wire = _wire({"messages": USER, "temperature": 1}, num_ctx=8192, temperature=0, keep_alive="10m", think=False)
    assert wire["options"] == {"num_ctx": 8192, "temperature": 1}
    assert wire["keep_alive"] == "10m"
    assert wire["think"] is False


@pytest.mark.parametrize(
    ("body", "key", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "format", "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}}, "format", {"a": 1}),
        ({"response_format": {"type": "text"}}, "format", None),
        ({"reasoning_effort": "high"}, "think", "high"),
        ({"reasoning_effort": "none"}, "think", False),
        ({"reasoning_effort": "minimal"}, "think", "low"),
        ({"reasoning_effort": "xhigh"}, "think", "high"),
        ({"reasoning_effort": "max"}, "think", "max"),
        ({"think": True}, "think", True),
        ({"tools": TOOLS}, "tools", TOOLS),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tools", TOOLS),
        ({"tools": TOOLS, "tool_choice": "none"}, "tools", None),
    ],
)
def test_other_fields_have_their_own_places(body: JsonObject, key: str, value: Any) -> None:
    assert _wire({"messages": USER, **body}).get(key) == value


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "ab"},
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
            {"role": "user", "content": "", "images": ["QUJD"]},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
        ({"role": "function", "name": "f", "content": "1"}, {"role": "tool", "content": "1", "tool_name": "f"}),
    ],
)
def test_messages_are_turned_into_its_shape(message: JsonObject, wire: JsonObject) -> None:
    assert _wire({"messages": [message]})["messages"] == [wire]


def test_tool_calls_and_their_results_are_matched_by_name() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    assert _wire({"messages": messages})["messages"] == [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]},
        {"role": "tool", "content": "2", "tool_name": "f"},
    ]


def test_results_of_one_tool_stand_in_the_order_of_their_calls() -> None:
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": f"call_{number}", "type": "function", "function": function} for number in (1, 2)]
    results = [{"role": "tool", "tool_call_id": f"call_{number}", "content": f"of {number}"} for number in (2, 1)]
    by_name = {"role": "function", "name": "g", "content": "of g"}
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, by_name, *results, *USER]
    wire = _wire({"messages": messages})["messages"]
    assert [message["content"] for message in wire] == ["", "of 1", "of 2", "of g", "Hi"]


def test_a_message_is_named_by_its_place_in_the_request() -> None:
    called = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "input_audio"}]}
    other = {"role": "tool", "tool_call_id": "call_9", "content": "2"}
    with pytest.raises(UpstreamRefused) as caught:
        _wire({"messages": [{"role": "assistant", "tool_calls": [called]}, other, result]})
    assert caught.value.failure.param == "messages[2].content[0].type"


_PART = "messages[0].content[0]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, f"{_PART}.type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}
                ]
            },
            f"{_PART}.image_url",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(body: JsonObject, param: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        _wire({"messages": USER, **body})
    assert caught.value.failure.param == param


def _choice(delta: JsonObject, reason: str | None = None) -> JsonObject:
    return {"index": 0, "delta": delta, "finish_reason": reason}


@pytest.mark.parametrize(
    ("event", "chunk"),
    [
        ({"message": {"content": "a"}, "done": False}, Chunk([_choice({"content": "a"})])),
        ({"message": {"content": "", "thinking": "hm"}}, Chunk([_choice({"reasoning_content": "hm"})])),
        ({"message": {"content": ""}, "done": False}, None),
        (
            {"message": {"content": "a"}, "logprobs": [{"token": "a", "logprob": -0.5}], "done": False},
            Chunk(
                [
                    {
                        **_choice({"content": "a"}),
                        "logprobs": {
                            "content": [{"bytes": None, "top_logprobs": [], "token": "a", "logprob": -0.5}],
                            "refusal": None,
                        },
                    }
                ]
            ),
        ),
        ({"done": False}, None),
        (
            {"message": {"content": ""}, "done": True, "prompt_eval_count": 3, "eval_count": 2},
            Chunk([_choice({}, "stop")], Usage(3, 2)),
        ),
        # The prompt's count is missing when the prompt was in the cache: unknown, not 0.
        (
            {"done": True, "done_reason": "length", "eval_count": 2},
            Chunk([_choice({}, "length")], counted={"completion_tokens": 2}),
        ),
        ({"done": True, "done_reason": "load"}, Chunk([_choice({}, "stop")])),
        ({"done": True, "done_reason": "unload"}, Chunk([_choice({}, "stop")])),
        (
            {"done": True, "prompt_eval_count": -1, "eval_count": 2},
            Chunk([_choice({}, "stop")], counted={"completion_tokens": 2}),
        ),
    ],
)
def test_a_line_becomes_a_chunk(event: JsonObject, chunk: Chunk | None) -> None:
    assert ollama.from_wire(event) == chunk


def test_tool_calls_get_ids_and_go_on_counting_over_lines() -> None:
    progress = ollama.Progress()
    line = {"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, "done": False}
    first, second, last = (progress.next(event) for event in (line, line, {"done": True, "done_reason": "stop"}))
    assert first is not None
    assert second is not None
    assert last is not None
    calls = [chunk.choices[0]["delta"]["tool_calls"][0] for chunk in (first, second)]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["id"] != calls[1]["id"]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert last.choices[0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("told", [{}, {"top_logprobs": 5}, {"top_logprobs": [{"token": "a"}]}])
def test_a_log_probability_that_is_none_breaks_the_protocol(told: JsonObject) -> None:
    entry = {"token": "a", "logprob": -0.5, **told} if told else "a"
    with pytest.raises(UpstreamProtocolError):
        ollama.from_wire({"message": {"content": "a"}, "logprobs": [entry], "done": False})


@pytest.mark.parametrize("tool", ["f", {}, {"function": "f"}])
def test_a_tool_call_without_a_function_breaks_the_protocol(tool: Any) -> None:
    with pytest.raises(UpstreamProtocolError):
        ollama.from_wire({"message": {"tool_calls": [tool]}})


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"error":"\\"x\\" does not support tools"}', UpstreamRefused),
        (404, b'{"error":"model \'x\' not found"}', UpstreamModelMissing),
        (404, b"404 page not found", UpstreamRefused),
        (500, b'{"error":"model requires more system memory"}', UpstreamError),
        (400, b'{"error":"the input length exceeds the context length"}', ContextTooLong),
        (500, b'{"error":"the input length exceeds the context length"}', ContextTooLong),
        (503, b'{"error":"server busy, please try again. maximum pending requests exceeded"}', UpstreamBusy),
    ],
)
def test_the_status_decides_the_error(status: int, body: bytes, error: type[UpstreamError]) -> None:
    assert type(ollama.to_error(status, body, {})) is error


def test_a_refused_length_is_told_as_one_in_the_stream_too() -> None:
    lines = [b'{"error":"the input length exceeds the context length"}']
    with pytest.raises(ContextTooLong):
        list(ollama._chunks(lines, ollama.Progress(), _call({"messages": USER})))
