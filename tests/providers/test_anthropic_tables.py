"""Anthropic's answers and refusals as pure functions: recorded values in, values out."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import Chunk, JsonObject, Usage
from common.errors import (
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from workers.providers import anthropic

# --- events ----------------------------------------------------------------------------------------------------------


def _start(index: int, **block: Any) -> JsonObject:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _more(index: int, **delta: Any) -> JsonObject:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _stop(index: int) -> JsonObject:
    return {"type": "content_block_stop", "index": index}


def _end(reason: str | None = "end_turn", **usage: int) -> list[JsonObject]:
    delta = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage or {"output_tokens": 2}}
    return [delta, {"type": "message_stop"}]


BEGIN: JsonObject = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}


def _deltas(*events: JsonObject) -> list[JsonObject]:
    return [choice["delta"] for chunk in _chunks(*events) for choice in chunk.choices]


def _chunks(*events: JsonObject) -> list[Chunk]:
    progress = anthropic.Progress()
    return [chunk for event in events if (chunk := progress.next(event)) is not None]


def test_tool_calls_are_numbered_apart_from_other_blocks() -> None:
    deltas = _deltas(
        BEGIN,
        _start(0, type="text", text=""),
        _more(0, type="text_delta", text="Let me see."),
        _stop(0),
        _start(1, type="tool_use", id="toolu_1", name="f", input={}),
        _more(1, type="input_json_delta", partial_json=""),
        _more(1, type="input_json_delta", partial_json='{"a"'),
        _more(1, type="input_json_delta", partial_json=": 1}"),
        _stop(1),
        _start(2, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        _more(2, type="input_json_delta", partial_json='{"query": 1}'),
        _stop(2),
        _start(3, type="tool_use", id="toolu_2", name="g", input={}),
        _stop(3),
        *_end("tool_use"),
    )
    assert deltas == [
        {"role": "assistant", "content": "Let me see."},
        {"tool_calls": [_called_delta(0, "toolu_1", "f")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"tool_calls": [_called_delta(1, "toolu_2", "g")]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},  # no text at all would be no JSON
        {},
    ]


def _called_delta(index: int, call_id: str, name: str) -> JsonObject:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}


def test_thoughts_are_reasoning_and_their_signature_comes_with_their_end() -> None:
    thought = [
        _start(0, type="thinking", thinking="", signature=""),
        _more(0, type="thinking_delta", thinking="hm"),
        _more(0, type="signature_delta", signature="sig"),
        _stop(0),
    ]
    answer = [_start(1, type="text", text=""), _more(1, type="text_delta", text="a"), _stop(1), *_end()]
    assert _deltas(BEGIN, *thought, *answer) == [
        {"role": "assistant", "reasoning_content": "hm"},
        {"reasoning_signature": "sig"},
        {"content": "a"},
        {},
    ]


def test_the_signature_of_one_of_several_thoughts_is_taken_back_and_each_told_with_its_block() -> None:
    progress = anthropic.Progress()
    told: list[JsonObject] = []
    for n in (0, 1, 2):
        progress.begun(n, {"type": "thinking", "thinking": "a", "signature": f"s{n}"})
        told.append(progress.ended(n))
    blocks = [{"type": "thinking", "characters": 1, "signature": f"s{n}"} for n in (0, 1, 2)]
    assert told[0] == {"reasoning_signature": "s0"}
    assert told[1] == {"reasoning_signature": "", "reasoning_blocks": blocks[:2]}
    assert told[2] == {"reasoning_signature": "", "reasoning_blocks": blocks[2:]}
    body = [{"type": "thinking", "thinking": name, "signature": name} for name in "ab"]
    whole = anthropic.from_body({"content": body, "stop_reason": "end_turn"})
    delta = whole.choices[0]["delta"]
    assert (delta["reasoning_content"], delta["reasoning_signature"]) == ("ab", "")
    assert [block["signature"] for block in delta["reasoning_blocks"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("a new one", "stop"),
    ],
)
def test_each_end_has_a_finish_reason(told: str, ours: str) -> None:
    assert _chunks(BEGIN, *_end(told))[-1].choices[0]["finish_reason"] == ours
    assert anthropic.from_body({"content": [], "stop_reason": told}).choices[0]["finish_reason"] == ours


def test_the_stop_sequence_that_was_met_goes_on() -> None:
    delta = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    events = [BEGIN, {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}}, {"type": "message_stop"}]
    assert _chunks(*events)[-1].choices[0]["stop_reason"] == "END"
    assert anthropic.from_body({"content": [], **delta}).choices[0]["stop_reason"] == "END"
    assert "stop_reason" not in anthropic.from_body({"content": [], "stop_reason": "end_turn"}).choices[0]


def test_usage_is_cumulative_and_counts_what_the_cache_held() -> None:
    begin = {"input_tokens": 3, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100, "output_tokens": 1}
    events = [{"type": "message_start", "message": {"usage": begin}}, *_end(output_tokens=7)]
    details = {"prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 10}}
    assert _chunks(*events)[-1].usage == Usage(113, 7, details)


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"input_tokens": 3, "output_tokens": 2}, Usage(3, 2)),
        ({"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": None}, Usage(3, 2)),
        (
            {"input_tokens": 3, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 5}},
            Usage(3, 9, {"completion_tokens_details": {"reasoning_tokens": 5}}),
        ),
        ({"output_tokens": 2}, None),
        ({"input_tokens": 3}, None),
        ({"input_tokens": -3, "output_tokens": 2}, None),
        ({"input_tokens": "3", "output_tokens": 2}, None),
        (None, None),
    ],
)
def test_usage_that_cannot_be_is_none(told: Any, usage: Usage | None) -> None:
    assert anthropic.to_counts(told).usage == usage


def test_a_whole_answer_becomes_one_chunk() -> None:
    event = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            {"type": "web_search_tool_result", "content": []},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    first, second = _called_delta(0, "toolu_1", "f"), _called_delta(1, "toolu_2", "g")
    first["function"]["arguments"], second["function"]["arguments"] = '{"a":[1]}', "{}"
    delta = {"role": "assistant", "reasoning_content": "hm", "reasoning_signature": "s", "content": "ab"}
    choice = {"index": 0, "delta": {**delta, "tool_calls": [first, second]}, "finish_reason": "tool_calls"}
    assert anthropic.from_body(event) == Chunk([choice], Usage(3, 2))


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "message_start"}],
        [{"type": "message_delta", "delta": "x"}],
        [{"type": "content_block_start", "index": 0}],
        [{"type": "content_block_delta", "index": 0, "delta": None}],
        [_more(0, type="text_delta", text=5)],
        [_more(0, type="thinking_delta")],
        [_start(0, type="tool_use"), _more(0, type="input_json_delta", partial_json={})],
        [{"type": "message_stop"}],
        _end(None),
    ],
)
def test_an_event_that_is_none_breaks_the_protocol(events: list[JsonObject]) -> None:
    with pytest.raises(UpstreamProtocolError):
        _chunks(*events)


@pytest.mark.parametrize("body", [{"content": "a"}, {"content": []}, {"content": [5], "stop_reason": "end_turn"}, {}])
def test_a_whole_answer_that_is_none_breaks_the_protocol(body: JsonObject) -> None:
    with pytest.raises(UpstreamProtocolError):
        anthropic.from_body(body)


def test_events_of_a_kind_not_known_yet_say_nothing() -> None:
    assert _chunks({"type": "ping"}, {"type": "news"}, {}, _more(0, type="citations_delta", citation={})) == []


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "message", "error"),
    [
        (400, "invalid_request_error", "messages: at least one message is required", UpstreamRefused),
        (400, "invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum", ContextTooLong),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 2", ContextTooLong),
        (
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API.",
            UpstreamCredentials,
        ),
        (401, "authentication_error", "invalid x-api-key", UpstreamCredentials),
        (403, "permission_error", "no", UpstreamCredentials),
        (404, "not_found_error", "model: x", UpstreamModelMissing),
        (404, "not_found_error", "Not found", UpstreamRefused),
        (413, "request_too_large", "Request exceeds the maximum size", UpstreamRefused),
        (429, "rate_limit_error", "slow down", UpstreamBusy),
        (500, "api_error", "Internal server error", UpstreamError),
        (504, "timeout_error", "no", UpstreamTimeout),
        (529, "overloaded_error", "Overloaded", UpstreamBusy),
    ],
)
def test_the_status_decides_the_error(status: int, kind: str, message: str, error: type[UpstreamError]) -> None:
    told = {"type": kind, "message": message}
    body = orjson.dumps({"type": "error", "error": told, "request_id": "req_1"})
    assert type(anthropic.to_error(status, body, {})) is error
    if error is not UpstreamCredentials or status != 400:  # in a stream the name says what the status would
        assert type(anthropic.to_event_error(told)) is error


def test_an_error_without_a_name_is_the_servers_own() -> None:
    assert type(anthropic.to_event_error("it broke")) is UpstreamError
