"""Cohere's v2 API as pure functions: recorded values in, values out."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import Chunk, JsonObject, Usage
from common.errors import (
    ContentFiltered,
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from tests.providers.stages import backend
from workers.providers import cohere
from workers.providers.base import Call

USER: JsonObject = {"role": "user", "content": "Hi"}
FUNCTION: JsonObject = {"name": "f", "description": "d", "parameters": {"type": "object", "required": ["a"]}}
TOOLS: list[JsonObject] = [{"type": "function", "function": FUNCTION}]
CALL: JsonObject = {"id": "f_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def _wire(body: JsonObject, **options: Any) -> JsonObject:
    where = backend("cohere", "http://127.0.0.1:1", options=options)
    return cohere.to_wire(Call(where, "/v1/chat/completions", "command-a", body, stream=True, timeout_s=1))


# --- to_wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        ({}, {}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 4, "seed": 0}, {"temperature": 0, "p": 0.5, "k": 4, "seed": 0}),
        # Its numbers do not go as far as OpenAI's: 1, which many clients send, is beyond.
        ({"top_p": 1, "top_k": -1}, {"p": 0.99, "k": 0}),
        ({"top_p": 0, "top_k": 501}, {"p": 0.01, "k": 500}),
        ({"frequency_penalty": -2, "presence_penalty": 2}, {"frequency_penalty": 0, "presence_penalty": 1}),
        (
            {"frequency_penalty": 0.5, "user": "u", "store": True, "parallel_tool_calls": True},
            {"frequency_penalty": 0.5},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
            {"response_format": {"type": "json_object", "json_schema": {"type": "object"}}},
        ),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "enabled"}}),
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"tools": TOOLS, "tool_choice": "auto"}, {"tools": TOOLS}),
        ({"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS, "tool_choice": "NONE"}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tools": TOOLS, "tool_choice": "REQUIRED"}),
        (
            {
                "tools": [*TOOLS, {"type": "function", "function": {"name": "g"}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
            {"tools": TOOLS, "tool_choice": "REQUIRED"},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "g", "strict": True}}]},
            {
                "tools": [
                    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}}
                ],
                "strict_tools": True,
            },
        ),
    ],
)
def test_each_field_has_its_own_place(body: JsonObject, wire: JsonObject) -> None:
    bare = {"model": "command-a", "messages": [USER], "stream": True}
    assert _wire({"messages": [USER], **body}) == {**bare, **wire}


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "ab"},
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://x"}}],
            },
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://x"}}],
            },
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I will ask f."},
            {"role": "assistant", "tool_calls": [CALL], "tool_plan": "I will ask f."},
        ),
        ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, {"role": "assistant", "content": "a"}),
        (
            {"role": "tool", "tool_call_id": "f_1", "content": [{"type": "text", "text": "2"}]},
            {"role": "tool", "tool_call_id": "f_1", "content": "2"},
        ),
    ],
)
def test_messages_are_turned_into_its_shape(message: JsonObject, wire: JsonObject) -> None:
    assert _wire({"messages": [message]})["messages"] == [wire]


def test_the_backends_own_words_are_added() -> None:
    wire = _wire({"messages": [USER], "seed": 3, "documents": ["no"]}, safety_mode="OFF", drop=["seed"])
    assert wire == {"model": "command-a", "messages": [USER], "stream": True, "safety_mode": "OFF"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "tool", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(body: JsonObject, param: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        _wire({"messages": [USER], **body})
    assert caught.value.failure.param == param


# --- events ----------------------------------------------------------------------------------------------------------


def _said(kind: str, **message: Any) -> JsonObject:
    return {"type": kind, "index": 0, "delta": {"message": message}}


def _end(reason: str, **more: Any) -> JsonObject:
    return {"type": "message-end", "delta": {"finish_reason": reason, **more}}


def _choices(*events: JsonObject) -> list[JsonObject]:
    progress = cohere.Progress()
    chunks = [chunk for event in events if (chunk := progress.next(event)) is not None]
    return [choice for chunk in chunks for choice in chunk.choices]


def _called(name: str, arguments: str = "") -> JsonObject:
    return {"id": f"{name}_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_plans_and_thoughts_are_reasoning_and_calls_come_in_pieces() -> None:
    choices = _choices(
        {"type": "message-start", "id": "x", "delta": {"message": {"role": "assistant"}}},
        _said("content-start", content={"type": "thinking", "thinking": ""}),
        _said("content-delta", content={"thinking": "hm"}),
        _said("tool-plan-delta", tool_plan="I will ask."),
        _said("tool-call-start", tool_calls=_called("f")),
        _said("tool-call-delta", tool_calls={"function": {"arguments": '{"a"'}}),
        _said("tool-call-delta", tool_calls={"function": {"arguments": ":1}"}}),
        {"type": "tool-call-end", "index": 0},
        _said("tool-call-start", tool_calls=_called("g")),
        {"type": "tool-call-end", "index": 1},
        {"type": "citation-start", "index": 0, "delta": {"message": {"citations": {}}}},
        _end("TOOL_CALL"),
    )
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "reasoning_content": "hm"},
        {"reasoning_content": "I will ask."},
        {"tool_calls": [{"index": 0, **_called("f")}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"tool_calls": [{"index": 1, **_called("g")}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},  # no text at all would be no JSON
        {},
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("NEW", "stop"),
    ],
)
def test_each_end_has_a_finish_reason(told: str, ours: str) -> None:
    assert _choices(_end(told))[-1]["finish_reason"] == ours
    assert cohere.from_body({"message": {}, "finish_reason": told}).choices[0]["finish_reason"] == ours


@pytest.mark.parametrize(("told", "error"), [("ERROR", UpstreamError), ("TIMEOUT", UpstreamTimeout)])
def test_an_end_that_is_a_fault_is_an_error(told: str, error: type[UpstreamError]) -> None:
    with pytest.raises(UpstreamError) as caught:
        _choices(_said("content-delta", content={"text": "a"}), _end(told, error="the engine died"))
    assert type(caught.value) is error
    with pytest.raises(error):
        cohere.from_body({"message": {}, "finish_reason": told})


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"tokens": {"input_tokens": 5.0, "output_tokens": 4.0}, "billed_units": {"input_tokens": 3.0}}, Usage(5, 4)),
        ({"billed_units": {"input_tokens": 3, "output_tokens": 4}}, Usage(3, 4)),
        (
            {"tokens": {"input_tokens": 5, "output_tokens": 4}, "cached_tokens": 2.0},
            Usage(5, 4, {"prompt_tokens_details": {"cached_tokens": 2}}),
        ),
        ({"tokens": {"input_tokens": 5}}, None),
        ({"tokens": {"input_tokens": 5, "output_tokens": -1}}, None),
        ({"tokens": {"input_tokens": 5, "output_tokens": 0.5}}, None),
        ({"tokens": 5}, None),
        (None, None),
    ],
)
def test_what_was_counted_goes_before_what_is_billed(told: Any, usage: Usage | None) -> None:
    assert cohere.to_counts(told).usage == usage


def test_a_whole_answer_becomes_one_chunk() -> None:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"content": content, "tool_plan": "I ask. ", "tool_calls": [_called("f", '{"a":1}'), _called("g")]}
    event = {
        "message": message,
        "finish_reason": "TOOL_CALL",
        "usage": {"tokens": {"input_tokens": 3, "output_tokens": 2}},
    }
    calls = [{"index": 0, **_called("f", '{"a":1}')}, {"index": 1, **_called("g", "{}")}]
    delta = {"role": "assistant", "reasoning_content": "I ask. hm", "content": "ab", "tool_calls": calls}
    assert cohere.from_body(event) == Chunk([{"index": 0, "delta": delta, "finish_reason": "tool_calls"}], Usage(3, 2))


@pytest.mark.parametrize(
    "event",
    [
        _said("content-delta", content=5),
        _said("content-delta", content={"text": 5}),
        _said("content-delta", content={"thinking": ["a"]}),
        _said("tool-call-start", tool_calls="f"),
        _said("tool-call-start", tool_calls={"function": "f"}),
        _said("tool-call-start", tool_calls={"function": {"arguments": {}, "name": "f"}}) | {"delta": {"message": {}}},
    ],
)
def test_an_event_that_is_none_breaks_the_protocol(event: JsonObject) -> None:
    with pytest.raises(UpstreamProtocolError):
        _choices(event)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": {}},
        {"message": 5, "finish_reason": "COMPLETE"},
        {"message": {"content": [5]}, "finish_reason": "COMPLETE"},
    ],
)
def test_a_whole_answer_that_is_none_breaks_the_protocol(body: JsonObject) -> None:
    with pytest.raises(UpstreamProtocolError):
        cohere.from_body(body)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "invalid request: message must be at least 1 token long", UpstreamRefused),
        (400, "too many tokens: total number of tokens in the prompt cannot exceed 128000", ContextTooLong),
        (401, "invalid api token", UpstreamCredentials),
        (404, "model 'x' not found", UpstreamModelMissing),
        (404, "no such route", UpstreamRefused),
        (422, "unsupported", UpstreamRefused),
        (498, "invalid token", ContentFiltered),
        (429, "trial key: 20 calls a minute", UpstreamBusy),
        (500, "internal server error", UpstreamError),
        (504, "timeout", UpstreamTimeout),
    ],
)
def test_the_status_decides_the_error(status: int, message: str, error: type[UpstreamError]) -> None:
    assert type(cohere.to_error(status, orjson.dumps({"id": "x", "message": message}), {})) is error


def test_more_stop_sequences_than_it_takes_are_refused_and_none_is_left_out() -> None:
    stops = ["a", "b", "c", "d", "e"]
    assert _wire({"messages": [USER], "stop": stops})["stop_sequences"] == stops
    with pytest.raises(UpstreamRefused, match="at most 5 stop sequences") as caught:
        _wire({"messages": [USER], "stop": [*stops, "f"]})
    assert caught.value.failure.param == "stop"
