"""OpenAI's dialect and its relatives, as pure functions: recorded values in, values out."""

from __future__ import annotations

from copy import deepcopy
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
from tests.providers.stages import backend
from workers.providers import llamacpp, openai, openai_request
from workers.providers.base import Call


def _call(body: JsonObject, *, stream: bool = True) -> Call:
    where = backend("openai", "http://127.0.0.1:1")
    return Call(where, "/v1/chat/completions", "their-model", body, stream=stream, timeout_s=1)


def _choice(delta: JsonObject, finish_reason: str | None = None, index: int = 0) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


# --- to_wire ---------------------------------------------------------------------------------------------------------

EVERYTHING: JsonObject = {
    "model": "our-model",
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "temperature": 0.5,
    "max_completion_tokens": 9,
    "metadata": {"api_base": "opaque to us"},
    "stream_options": {"include_usage": False, "include_obfuscation": False},
    "top_k": 40,
    "chat_template_kwargs": {"enable_thinking": False},
    "api_base": "http://169.254.169.254",
    "extra_headers": {"authorization": "x"},
    "fallbacks": ["other"],
    "headrace_priority": "batch",
    "x-headrace-deadline-ms": 5,
}


def test_a_strict_server_gets_known_fields_only() -> None:
    assert openai.to_wire(_call(EVERYTHING)) == {
        "model": "their-model",
        "messages": EVERYTHING["messages"],
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "metadata": {"api_base": "opaque to us"},
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }


def test_a_self_hosted_server_gets_unknown_fields_but_none_that_chooses_a_destination() -> None:
    assert openai_request.to_open_wire(_call(EVERYTHING)) == {
        "model": "their-model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "metadata": {"api_base": "opaque to us"},
        "top_k": 40,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }


@pytest.mark.parametrize("to_wire", [openai.to_wire, openai_request.to_open_wire])
def test_an_answer_in_one_piece_is_asked_for_without_stream_options(to_wire: Any) -> None:
    wire = to_wire(_call(EVERYTHING, stream=False))
    assert wire["stream"] is False
    assert "stream_options" not in wire


@pytest.mark.parametrize("to_wire", [openai.to_wire, openai_request.to_open_wire])
def test_the_public_request_stays_as_it_was(to_wire: Any) -> None:
    before = orjson.dumps(EVERYTHING)
    to_wire(_call(EVERYTHING))
    assert orjson.dumps(EVERYTHING) == before


# --- from_wire -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "chunk"),
    [
        (
            {
                "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}],
                "usage": None,
            },
            Chunk([{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}]),
        ),
        (  # what servers leave out
            {"choices": [{"delta": None}]},
            Chunk([_choice({})]),
        ),
        (  # several choices in one event
            {"choices": [_choice({"content": "a"}), _choice({"content": "b"}, index=1)]},
            Chunk([_choice({"content": "a"}), _choice({"content": "b"}, index=1)]),
        ),
        (  # usage alone
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
            Chunk([], Usage(3, 2)),
        ),
        (
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 2,
                    "prompt_tokens_details": {"cached_tokens": 1},
                    "completion_tokens_details": None,
                },
            },
            Chunk([], Usage(3, 2, {"prompt_tokens_details": {"cached_tokens": 1}})),
        ),
        (  # half of it
            {"choices": [_choice({})], "usage": {"prompt_tokens": 3, "total_tokens": 3}},
            Chunk([_choice({})], counted={"prompt_tokens": 3}),
        ),
        ({"choices": [], "prompt_filter_results": []}, None),
        ({"choices": None}, None),
        (  # and what can't be true is as good as not told
            {"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 2}},
            Chunk([], counted={"completion_tokens": 2}),
        ),
        ({"choices": [], "usage": {"prompt_tokens": "3", "completion_tokens": 2**60}}, None),
        ({"choices": [], "usage": "many"}, None),
        (
            {"choices": [_choice({"content": "a"})], "system_fingerprint": "fp", "service_tier": "flex", "timings": {}},
            Chunk([_choice({"content": "a"})], None, {"system_fingerprint": "fp", "service_tier": "flex"}),
        ),
        (  # vLLM's newer name for reasoning, and its older
            {"choices": [_choice({"reasoning": "hm"})]},
            Chunk([_choice({"reasoning_content": "hm"})]),
        ),
        (
            {"choices": [_choice({"reasoning": "hm", "reasoning_content": "hm"})]},
            Chunk([_choice({"reasoning_content": "hm"})]),
        ),
        ({"choices": [_choice({"reasoning": None, "content": "a"})]}, Chunk([_choice({"content": "a"})])),
        (  # tool calls without an index, which they get where their number is known, and an empty list of them
            {"choices": [_choice({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}}]})]},
            Chunk([_choice({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}}]})]),
        ),
        ({"choices": [_choice({"content": "a", "tool_calls": []})]}, Chunk([_choice({"content": "a"})])),
        ({"choices": [_choice({}, "length")]}, Chunk([_choice({}, "length")])),
        ({"choices": [{**_choice({}), "logprobs": "x"}]}, Chunk([{**_choice({}), "logprobs": None}])),
        ({"choices": [_choice({}, "a new one")]}, Chunk([_choice({}, "stop")])),
        ({"choices": [_choice({}, "")]}, Chunk([_choice({}, None)])),
        ({"choices": [{**_choice({}), "finish_reason": {"type": "stop"}}]}, Chunk([_choice({}, "stop")])),
        ({"choices": [_choice({}, "model_length")]}, Chunk([_choice({}, "length")])),
        ({"choices": [{**_choice({}), "logprobs": {"content": 5}}]}, Chunk([{**_choice({}), "logprobs": None}])),
        ({"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Chunk([], Usage(3, 2))),
        (  # Groq's usage, which comes unasked too
            {"choices": [_choice({}, "stop")], "x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}},
            Chunk([_choice({}, "stop")], Usage(3, 2)),
        ),
        ({"choices": [_choice({"content": "a"})], "x_groq": {"id": "req"}}, Chunk([_choice({"content": "a"})])),
        ({"choices": [_choice({"content": "a"})], "x_groq": "req"}, Chunk([_choice({"content": "a"})])),
    ],
)
def test_a_streamed_event_becomes_a_chunk(event: JsonObject, chunk: Chunk | None) -> None:
    assert openai.from_wire(event) == chunk


ENTRY: JsonObject = {"token": "a", "logprob": -0.5, "bytes": None}


@pytest.mark.parametrize("field", ["content", "refusal"])
@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        (ENTRY, True),
        ({"token": "a", "logprob": -1, "top_logprobs": [ENTRY]}, True),
        ({**ENTRY, "top_logprobs": None}, True),
        ({"token": "a"}, False),
        ({"logprob": -0.5}, False),
        ("a", False),
        ({**ENTRY, "token": 5}, False),
        ({**ENTRY, "logprob": None}, False),
        ({**ENTRY, "logprob": True}, False),
        ({**ENTRY, "top_logprobs": {"a": -0.5}}, False),
        ({**ENTRY, "top_logprobs": [{"token": "a"}]}, False),
        ({**ENTRY, "top_logprobs": ["a"]}, False),
    ],
)
def test_log_probabilities_that_are_none_are_dropped(field: str, entry: Any, kept: bool) -> None:
    told = {field: [ENTRY, entry]}
    chunk = openai.from_wire({"choices": [{**_choice({"content": "aa"}), "logprobs": told}]})
    assert chunk is not None
    assert chunk.choices[0]["logprobs"] == (told if kept else None)


def test_extras_of_another_type_than_theirs_are_dropped() -> None:
    sound = {"annotations": [{}], "reasoning_blocks": [{}], "reasoning_signature": "s"}
    for extras in (sound, dict.fromkeys(sound)):
        chunk = openai.from_wire({"choices": [_choice({"content": "a", **extras})]})
        assert chunk == Chunk([_choice({"content": "a", **extras})])
    wrong = {"annotations": {"0": {}}, "reasoning_blocks": 5, "reasoning_signature": {"a": 1}}
    assert openai.from_wire({"choices": [_choice({"content": "a", **wrong})]}) == Chunk([_choice({"content": "a"})])


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({}, UpstreamProtocolError),
        ({"choices": {}}, UpstreamProtocolError),
        ({"choices": ["a"]}, UpstreamProtocolError),
        ({"choices": [_choice({"content": 5})]}, UpstreamProtocolError),
        ({"choices": [_choice({"content": ["a"]})]}, UpstreamProtocolError),
        ({"choices": [_choice({"tool_calls": ["f"]})]}, UpstreamProtocolError),
        ({"choices": [_choice({"tool_calls": [{"function": "f"}]})]}, UpstreamProtocolError),
        *(
            ({"choices": [_choice({"tool_calls": [call]})]}, UpstreamProtocolError)
            for call in (
                {"id": 7, "function": {"name": "f"}},
                {"type": ["function"], "function": {"name": "f"}},
                {"function": {"name": 7}},
                {"function": {"name": "f", "arguments": [1]}},
                {"index": 0, "function": {"arguments": 7}},
            )
        ),
        ({"choices": [_choice({"function_call": "f"})]}, UpstreamProtocolError),
        ({"choices": [_choice({"function_call": {"arguments": 7}})]}, UpstreamProtocolError),
        ({"choices": [_choice({"content": [{"type": "text", "text": 5}]})]}, UpstreamProtocolError),
        ({"choices": [_choice({"content": [{"type": "thinking", "thinking": [5]}]})]}, UpstreamProtocolError),
        *(
            ({"choices": [_choice({}, reason)]}, UpstreamError)
            for reason in ("error", "abort", "insufficient_system_resource")
        ),
        ({"error": {"message": "down", "code": 503}}, UpstreamError),
    ],
)
def test_an_event_that_is_none_is_an_error(event: JsonObject, error: type[UpstreamError]) -> None:
    with pytest.raises(UpstreamError) as caught:
        openai.from_wire(event)
    assert type(caught.value) is error


def test_a_whole_answer_becomes_one_chunk() -> None:
    function = {"name": "f", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    logprobs = {"content": [], "refusal": None}
    event = {
        "id": "x",
        "choices": [{"index": 1, "message": message, "logprobs": logprobs, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "service_tier": "default",
    }
    called = {"index": 0, "id": "call_1", "type": "function", "function": function}
    delta = {"role": "assistant", "reasoning_content": "hm", "tool_calls": [called]}
    choice = {"index": 1, "delta": delta, "logprobs": logprobs, "finish_reason": "tool_calls"}
    assert openai.from_body(event) == Chunk([choice], Usage(3, 2), {"service_tier": "default"})


@pytest.mark.parametrize(
    "event", [{"choices": []}, {"choices": [{}]}, {"choices": ["a"]}, {"choices": [{"message": 1}]}]
)
def test_a_whole_answer_without_a_message_breaks_the_protocol(event: JsonObject) -> None:
    with pytest.raises(UpstreamProtocolError):
        openai.from_body(event)


def test_llama_cpps_timings_count_where_usage_does_not() -> None:
    timings = {"prompt_n": 4, "cache_n": 3, "predicted_n": 2}
    chunk = llamacpp.from_wire({"choices": [_choice({}, "stop")], "timings": timings})
    assert chunk is not None
    assert chunk.usage == Usage(7, 2)
    told = llamacpp.from_wire(
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "timings": timings}
    )
    assert told is not None
    assert told.usage == Usage(1, 1)
    assert llamacpp.from_wire({"choices": [_choice({}, "stop")], "timings": {"prompt_n": None}}) is not None


# --- over several events ---------------------------------------------------------------------------------------------


def test_a_choice_that_the_server_never_finished_is_finished_after_its_mark() -> None:
    progress = openai.Progress()
    progress.streamed(
        Chunk([_choice({"content": "a"}), _choice({"tool_calls": []}, index=1), _choice({}, "stop", index=2)])
    )
    with pytest.raises(UpstreamProtocolError):
        progress.last()
    progress.done = True
    assert progress.last() == Chunk([_choice({}, "stop"), _choice({}, "tool_calls", index=1), _choice({}, "stop", 2)])


COUNTED: JsonObject = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
ALONE: JsonObject = {"choices": [], **COUNTED}


@pytest.mark.parametrize(
    ("wanted", "events", "settled"),
    [
        (1, [{"choices": [_choice({"content": "a"})]}, {"choices": [_choice({}, "stop")]}, ALONE], True),
        (1, [{"choices": [_choice({"content": "a"})]}, {"choices": [_choice({}, "length")], **COUNTED}], True),
        (1, [{"choices": [_choice({"content": "a"}, "stop")]}, ALONE], True),
        # Its usage may still come, its end, or its second answer.
        (1, [{"choices": [_choice({"content": "a"})]}, {"choices": [_choice({}, "stop")]}], False),
        (1, [{"choices": [_choice({"content": "a"})]}, ALONE], False),
        (2, [{"choices": [_choice({"content": "a"}, "stop")]}, ALONE], False),
        (1, [{"choices": [_choice({"content": "a"}, "stop"), _choice({"content": "b"}, index=1)]}, ALONE], False),
        # Servers that end and count in every event.
        (1, [{"choices": [_choice({"content": "a"}, "stop")], **COUNTED}] * 3, False),
        (1, [{"choices": [_choice({"content": "a"}, end)], **COUNTED} for end in (None, "stop")], False),
    ],
)
def test_an_answer_misses_nothing_once_it_ended_and_was_counted(
    wanted: int, events: list[JsonObject], settled: bool
) -> None:
    progress = openai.Progress(wanted)
    for event in deepcopy(events):
        if (chunk := openai.from_wire(event)) is not None:
            progress.streamed(chunk)
    assert progress.settled is settled


def test_extra_keys_are_told_once_and_again_when_they_change() -> None:
    progress = openai.Progress()
    told = [progress.noted(Chunk([], None, {"system_fingerprint": name})).extra for name in ("a", "a", "b", "b")]
    assert told == [{"system_fingerprint": "a"}, None, {"system_fingerprint": "b"}, None]


# --- to_error --------------------------------------------------------------------------------------------------------


def _error(message: str = "no", **more: Any) -> bytes:
    return orjson.dumps({"error": {"message": message, **more}})


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, _error(), UpstreamRefused),
        (400, _error(code="context_length_exceeded"), ContextTooLong),
        (
            400,
            _error("This model's maximum context length is 1024 tokens. However, you requested 2000"),
            ContextTooLong,
        ),
        (400, _error("the request exceeds the available context size (512 tokens)", code=400), ContextTooLong),
        (400, _error("x", type="exceed_context_size_error", code=400), ContextTooLong),
        (401, _error(), UpstreamCredentials),
        (402, _error(), UpstreamCredentials),
        (403, _error(), UpstreamCredentials),
        (403, _error(code="model_not_found"), UpstreamModelMissing),
        (404, _error(code="model_not_found"), UpstreamModelMissing),
        (400, _error(code="model_not_found"), UpstreamModelMissing),
        (404, _error("There is no such path."), UpstreamRefused),
        (400, _error("This model takes no pictures."), UpstreamRefused),
        (405, b"", UpstreamRefused),
        (408, b"", UpstreamTimeout),
        (413, b"", UpstreamRefused),
        (422, b'{"detail":[{"loc":["body","messages",0],"msg":"bad","input":"secret"}]}', UpstreamRefused),
        (429, _error(code="rate_limit_exceeded"), UpstreamBusy),
        (429, _error(code="insufficient_quota"), UpstreamCredentials),
        (500, _error("maximum context length"), UpstreamError),  # the status decides
        (501, b"", UpstreamRefused),
        (502, b"<html>", UpstreamError),
        (503, _error(), UpstreamError),
        (504, b"", UpstreamTimeout),
        (529, b"", UpstreamBusy),
        (204, b"", UpstreamProtocolError),
        (301, b"", UpstreamProtocolError),
    ],
)
def test_the_status_decides_the_error(status: int, body: bytes, error: type[UpstreamError]) -> None:
    assert type(openai.to_error(status, body, {})) is error


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            500,
            _error("image input is not supported - hint: you may need to provide the mmproj", code=500),
            UpstreamRefused,
        ),
        (500, _error("Failed to parse the output", code=500), UpstreamError),
        (503, _error("Loading model", type="unavailable_error", code=503), UpstreamBusy),
        (501, _error("This server does not support embeddings", code=501), UpstreamRefused),
    ],
)
def test_llama_cpps_statuses_are_set_right(status: int, body: bytes, error: type[UpstreamError]) -> None:
    assert type(llamacpp.to_error(status, body, {})) is error


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, _error("Invalid image", code="invalid_image_format"), "invalid_image_format"),
        (422, _error("No", code="a.b_2"), "a.b_2"),
        # What says more than a name, is another error's of ours, or tells of the gateway's own account, stays inside.
        *((400, _error("No", code=code), None) for code in (None, 400, "", "400", "Bad Code", "x" * 65, ["a"])),
        (400, _error("No", code="context_length_exceeded"), None),
        (400, _error("No", code="model_not_found"), None),
        (401, _error("No", code="invalid_api_key"), None),
        (500, _error("No", code="server_error"), None),
    ],
)
def test_a_refusals_own_code_is_kept(status: int, body: bytes, code: str | None) -> None:
    assert openai.to_error(status, body, {}).failure.upstream_code == code


def test_a_refusal_keeps_what_the_caller_can_act_on() -> None:
    body = _error("Invalid 'temperature': must be at most 2.", param="temperature", type="invalid_request_error")
    failure = openai.to_error(400, body, {}).failure
    assert failure.message == "Invalid 'temperature': must be at most 2."
    assert failure.param == "temperature"
    detail = b'{"detail":[{"loc":["body","messages",0],"msg":"Field required","input":"secret"}]}'
    failure = openai.to_error(422, detail, {}).failure
    assert (failure.message, failure.param) == ("Field required", "messages.0")


def test_credentials_are_refused_without_the_providers_words() -> None:
    error = openai.to_error(401, _error("Incorrect API key provided: sk-abc*def of org-123."), {})
    assert str(error) == UpstreamCredentials.__doc__


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 400, "message": "x"}, UpstreamRefused),
        ({"code": "429", "message": "x"}, UpstreamBusy),
        ({"type": "rate_limit_error"}, UpstreamBusy),
        ({"type": "overloaded_error"}, UpstreamBusy),
        ({"code": "context_length_exceeded"}, ContextTooLong),
        ({"code": 7, "type": "server_error"}, UpstreamError),
        ({"code": ["x"], "type": None}, UpstreamError),
        ("it broke", UpstreamError),
        (["x"], UpstreamError),
        (True, UpstreamError),
    ],
)
def test_an_error_inside_an_answer_is_sorted_by_its_own_names(error: Any, expected: type[UpstreamError]) -> None:
    assert type(openai.to_event_error(error)) is expected
