"""Gemini's API as pure functions: recorded values in, values out."""

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
    UpstreamUnsupported,
)
from tests.providers.stages import backend, replying, sse
from tests.support.upstream import Reply
from workers.answer import Answer
from workers.providers import gemini, gemini_request, wire
from workers.providers.base import Call

USER: JsonObject = {"role": "user", "content": "Hi"}
SAID: JsonObject = {"role": "user", "parts": [{"text": "Hi"}]}
FUNCTION: JsonObject = {"name": "f", "description": "d", "parameters": {"type": "object", "required": ["a"]}}
TOOLS: list[JsonObject] = [{"type": "function", "function": FUNCTION}]
DECLARED: JsonObject = {
    "tools": [
        {"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": FUNCTION["parameters"]}]}
    ]
}


def _wire(body: JsonObject, *, model: str = "gemini-2.5-flash", **options: Any) -> JsonObject:
    where = backend("gemini", "http://127.0.0.1:1", options=options)
    return gemini_request.to_wire(Call(where, "/v1/chat/completions", model, body, stream=True, timeout_s=1))


def _contents(*messages: JsonObject, model: str = "gemini-2.5-flash") -> list[JsonObject]:
    return _wire({"messages": list(messages)}, model=model)["contents"]


# --- to_wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "config"),
    [
        ({}, None),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"maxOutputTokens": 7}),
        ({"stop": "x"}, {"stopSequences": ["x"]}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 4}, {"temperature": 0, "topP": 0.5, "topK": 4}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presencePenalty": 1, "frequencyPenalty": -1}),
        ({"n": 2, "seed": 0}, {"candidateCount": 2, "seed": 0}),
        ({"response_format": {"type": "text"}, "user": "u", "store": True}, None),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"includeThoughts": False, "thinkingBudget": 0}}),
        ({"reasoning_effort": "medium"}, {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 8_192}}),
        ({"reasoning_effort": "strange"}, None),
    ],
)
def test_sampling_fields_become_the_configuration(body: JsonObject, config: JsonObject | None) -> None:
    wire = _wire({"messages": [USER], **body})
    assert wire == {"contents": [SAID], **({} if config is None else {"generationConfig": config})}


@pytest.mark.parametrize(
    ("model", "effort", "level"),
    [
        ("gemini-3-flash", "none", "minimal"),
        ("gemini-3-pro-preview", "minimal", "low"),
        ("gemini-3.1-pro", "medium", "medium"),
        ("models/gemini-4-x", "xhigh", "high"),
    ],
)
def test_newer_models_get_a_level_of_thinking(model: str, effort: str, level: str) -> None:
    config = _wire({"messages": [USER], "reasoning_effort": effort}, model=model)["generationConfig"]
    assert config["thinkingConfig"] == {"includeThoughts": effort != "none", "thinkingLevel": level}


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-2.5-flash", "none", {"includeThoughts": False, "thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"includeThoughts": False, "thinkingBudget": 128}),  # the least that it takes
        ("gemini-2.5-pro", "max", {"includeThoughts": True, "thinkingBudget": 24_576}),
        ("gemini-2.0-flash", "high", None),  # refuses to be told
        ("tunedModels/mine", "high", {"includeThoughts": True, "thinkingBudget": 24_576}),
    ],
)
def test_older_models_are_told_a_budget_that_they_take(model: str, effort: str, thinking: JsonObject | None) -> None:
    wire = _wire({"messages": [USER], "reasoning_effort": effort}, model=model)
    assert wire.get("generationConfig", {}).get("thinkingConfig") == thinking


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (None, None),
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tools_are_declared_and_chosen(choice: Any, config: JsonObject | None) -> None:
    wire = _wire({"messages": [USER], "tools": TOOLS, "tool_choice": choice})
    chosen = {} if config is None else {"toolConfig": {"functionCallingConfig": config}}
    assert wire == {"contents": [SAID], **DECLARED, **chosen}


def test_the_system_text_and_the_backends_safety_stand_beside_the_contents() -> None:
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    messages = [{"role": "developer", "content": "a"}, USER, {"role": "system", "content": ""}]
    wire = _wire({"messages": messages}, safety_settings=safety)
    assert wire == {"contents": [SAID], "systemInstruction": {"parts": [{"text": "a"}]}, "safetySettings": safety}


def _call(number: int, **more: Any) -> JsonObject:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": f"f{number}", "arguments": '{"a":1}'},
        **more,
    }


def _their_call(number: int, **more: Any) -> JsonObject:
    return {"functionCall": {"name": f"f{number}", "args": {"a": 1}, "id": f"call_{number}"}, **more}


def test_tool_results_have_their_calls_names_ids_and_order_and_stand_in_one_turn() -> None:
    contents = _contents(
        {"role": "assistant", "content": "so", "tool_calls": [_call(1), _call(2)]},
        {"role": "tool", "tool_call_id": "call_9", "content": "[1]"},
        {"role": "tool", "tool_call_id": "call_2", "content": "3 herons"},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"b": 2}'},
    )
    results = [("f1", {"b": 2}, "call_1"), ("f2", {"result": "3 herons"}, "call_2"), ("unknown", {"result": [1]}, "")]
    parts = [
        {"functionResponse": {"name": name, "response": response, **({"id": called} if called else {})}}
        for name, response, called in results
    ]
    assert contents == [
        {"role": "model", "parts": [{"text": "so"}, _their_call(1), _their_call(2)]},
        {"role": "user", "parts": parts},
    ]


def test_results_of_one_tool_keep_their_calls_apart() -> None:
    """Its calls have no other way to tell, where the server reads no ids."""
    same = {"name": "f", "arguments": "{}"}
    calls = [{"id": f"call_{number}", "type": "function", "function": same} for number in (1, 2)]
    results = [{"role": "tool", "tool_call_id": f"call_{number}", "content": f"of {number}"} for number in (2, 1)]
    turn = {"role": "assistant", "tool_calls": calls}
    # An earlier turn with the same ids, as of servers that number their calls anew in each.
    _, first, _, second = _contents(turn, *results[::-1], {**turn, "tool_calls": calls[::-1]}, *results[::-1])
    for contents, order in ((first, (1, 2)), (second, (2, 1))):
        answers = [part["functionResponse"] for part in contents["parts"]]
        assert [answer["response"]["result"] for answer in answers] == [f"of {number}" for number in order]
        assert [answer["id"] for answer in answers] == [f"call_{number}" for number in order]


def test_a_conversation_that_only_the_system_spoke_in_is_the_users() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Who are you?"}]
    parts = [{"text": "Be brief."}, {"text": "Who are you?"}]
    assert _wire({"messages": messages}) == {"contents": [{"role": "user", "parts": parts}]}


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_conversation_that_says_nothing_is_refused_before_a_call(role: str) -> None:
    with pytest.raises(UpstreamUnsupported, match="say something") as caught:
        _wire({"messages": [{"role": role, "content": ""}]})
    assert caught.value.failure.param == "messages"


def test_a_calls_signature_goes_back_where_its_caller_kept_it() -> None:
    kept = _call(1, extra_content={"google": {"thought_signature": "sig"}})
    [turn] = _contents({"role": "assistant", "tool_calls": [kept, _call(2)]}, model="gemini-3-pro")
    assert turn["parts"] == [_their_call(1, thoughtSignature="sig"), _their_call(2)]


def test_newer_models_are_told_of_a_signature_that_is_lost() -> None:
    message = {"role": "assistant", "tool_calls": [_call(1), _call(2)]}
    [turn] = _contents(message, model="gemini-3-pro")
    assert turn["parts"] == [_their_call(1, thoughtSignature="skip_thought_signature_validator"), _their_call(2)]
    [turn] = _contents(message)
    assert turn["parts"] == [_their_call(1), _their_call(2)]


@pytest.mark.parametrize(
    ("part", "theirs"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png?b=c"}},
            {"fileData": {"mimeType": "image/png", "fileUri": "https://x.example/a.png?b=c"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
            {"inlineData": {"mimeType": "audio/mp3", "data": "QUJD"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "QUJD"}},
        ),
    ],
)
def test_parts_become_theirs(part: JsonObject, theirs: JsonObject) -> None:
    assert _contents({"role": "user", "content": [part]}) == [{"role": "user", "parts": [theirs]}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": {}}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(body: JsonObject, param: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        _wire({"messages": [USER], **body})
    assert caught.value.failure.param == param


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "/v1beta/models/gemini-2.5-pro:m"),
        ("models/gemini-2.5-pro", "/v1beta/models/gemini-2.5-pro:m"),
        ("tunedModels/mine", "/v1beta/tunedModels/mine:m"),
        ("a?key=b#c", "/v1beta/models/a%3Fkey%3Db%23c:m"),
    ],
)
def test_a_models_name_is_only_ever_a_name_in_the_path(model: str, path: str) -> None:
    assert gemini_request.path_of(model, "m") == path


# --- events ----------------------------------------------------------------------------------------------------------


def _event(*parts: JsonObject, reason: str | None = None, index: int | None = None, **more: Any) -> JsonObject:
    candidate: JsonObject = {"content": {"parts": list(parts), "role": "model"}, "finishReason": reason}
    if index is not None:
        candidate["index"] = index
    return {"candidates": [candidate], **more}


def _answer(*events: JsonObject, wanted: int = 1) -> list[JsonObject]:
    progress = gemini.Progress(wanted)
    chunks = [chunk for event in events if (chunk := progress.next(event)) is not None]
    return [choice for chunk in [*chunks, progress.last()] for choice in chunk.choices]


def _choice(delta: JsonObject, reason: str | None = None, index: int = 0) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": reason}


def test_thoughts_are_reasoning_and_texts_are_content() -> None:
    events = [
        _event({"text": "h", "thought": True}, {"text": "m", "thought": True}),
        _event({"text": "a", "thoughtSignature": "s"}, {"executableCode": {}}, {"text": ""}),
        _event(reason="STOP"),
    ]
    assert _answer(*events) == [
        _choice({"role": "assistant", "reasoning_content": "hm"}),
        _choice({"content": "a"}),
        _choice({}, "stop"),
    ]


def test_an_early_finish_reason_ends_nothing() -> None:
    events = [_event({"text": name}, reason="STOP") for name in "ab"]  # older models: in each piece
    assert _answer(*events) == [
        _choice({"role": "assistant", "content": "a"}),
        _choice({"content": "b"}),
        _choice({}, "stop"),
    ]


def test_calls_are_whole_numbered_and_signed() -> None:
    first = {"functionCall": {"name": "f", "args": {"a": [1]}, "id": "x"}, "thoughtSignature": "sig"}
    choices = _answer(_event(first), _event({"functionCall": {"name": "g"}}), _event(reason="STOP"))
    one, two = (choice["delta"]["tool_calls"][0] for choice in choices[:2])
    assert one == {
        **{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}},
        "extra_content": {"google": {"thought_signature": "sig"}},
    }
    assert (two["index"], two["function"]) == (1, {"name": "g", "arguments": "{}"})
    assert two["id"].startswith("call_")
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_whole_answer_keeps_what_goes_back_with_a_call() -> None:
    answer = Answer()
    answer.add(gemini.from_body(_event({"functionCall": {"name": "f"}, "thoughtSignature": "sig"}, reason="STOP")))
    [call] = answer.result()["choices"][0]["message"]["tool_calls"]
    assert call["extra_content"] == {"google": {"thought_signature": "sig"}}


def test_candidates_end_each_for_itself() -> None:
    events = [
        _event({"text": "a"}, index=0, reason="MAX_TOKENS"),
        _event({"text": "b"}, index=1),
        _event(index=1, reason="STOP"),
    ]
    assert _answer(*events, wanted=2) == [
        _choice({"role": "assistant", "content": "a"}),
        _choice({"role": "assistant", "content": "b"}, index=1),
        _choice({}, "length"),
        _choice({}, "stop", index=1),
    ]
    with pytest.raises(UpstreamProtocolError):
        _answer(*events[:2], wanted=2)


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((name, "content_filter") for name in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")),
        *((name, "content_filter") for name in ("IMAGE_SAFETY", "IMAGE_OTHER", "MODEL_ARMOR")),
        ("FINISH_REASON_UNSPECIFIED", "stop"),
        ("A_NEW_ONE", "stop"),
    ],
)
def test_each_end_has_a_finish_reason(told: str, ours: str) -> None:
    assert _answer(_event(reason=told)) == [_choice({"role": "assistant"}, ours)]


@pytest.mark.parametrize("told", ["MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "OTHER"])
def test_an_end_that_is_a_fault_is_an_error(told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        _answer(_event({"text": "a"}, reason=told))


@pytest.mark.parametrize("reason", ["SAFETY", "OTHER", "PROHIBITED_CONTENT"])
def test_a_prompt_that_is_blocked_is_refused_as_such(reason: str) -> None:
    event = {"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 4}}
    with pytest.raises(ContentFiltered):
        gemini.Progress().next(event)
    with pytest.raises(ContentFiltered):
        gemini.from_body(event)


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}, Usage(5, 2)),
        ({"promptTokenCount": 5}, Usage(5, 0)),
        (
            {
                **{"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 30},
                **{"toolUsePromptTokenCount": 4, "cachedContentTokenCount": 3},
            },
            Usage(
                9,
                32,
                {
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {"reasoning_tokens": 30},
                },
            ),
        ),
        ({"candidatesTokenCount": 2}, None),
        ({"promptTokenCount": "5"}, None),
        ({"promptTokenCount": 5, "thoughtsTokenCount": -1}, None),
        (None, None),
    ],
)
def test_usage_counts_what_was_thought(told: Any, usage: Usage | None) -> None:
    assert gemini.to_counts(told).usage == usage


def test_the_last_usage_told_is_the_one() -> None:
    progress = gemini.Progress()
    for made in (1, 2, 9):
        progress.next(_event({"text": "a"}, usageMetadata={"promptTokenCount": 3, "candidatesTokenCount": made}))
    progress.next(_event(reason="STOP"))
    assert progress.last().usage == Usage(3, 9)


def test_a_whole_answer_becomes_one_chunk() -> None:
    event = _event({"text": "a"}, {"text": "b"}, reason="STOP", usageMetadata={"promptTokenCount": 3})
    assert gemini.from_body(event) == Chunk([_choice({"role": "assistant", "content": "ab"}, "stop")], Usage(3, 0))


@pytest.mark.parametrize(
    "event",
    [
        {"candidates": {}},
        {"candidates": ["a"]},
        {"candidates": [{"index": "0"}]},
        _event({"text": 5}),
        _event({"functionCall": "f"}),
        _event({"functionCall": {"args": {}}}),
        {"candidates": [{"content": {"parts": ["a"]}}]},
    ],
)
def test_an_event_that_is_none_breaks_the_protocol(event: JsonObject) -> None:
    with pytest.raises(UpstreamProtocolError):
        gemini.Progress().next(event)


@pytest.mark.parametrize(
    "event",
    [{}, {"candidates": []}, {"responseId": "r1", "modelVersion": "m"}, {"usageMetadata": {"trafficType": "X"}}],
)
def test_an_event_that_says_nothing_is_passed_over(event: JsonObject) -> None:
    progress = gemini.Progress()
    assert progress.next(event) is None
    with pytest.raises(UpstreamProtocolError):
        progress.last()
    assert progress.next(_event({"text": "a"})) is not None


# --- pictures --------------------------------------------------------------------------------------------------------

INLINE: JsonObject = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}


def _image(number: int, data: str = "QUJD") -> JsonObject:
    return {"type": "image_url", "index": number, "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_pictures_are_told_as_openrouter_tells_them() -> None:
    signed = {**INLINE, "thoughtSignature": "sig"}
    events = [_event({"text": "Here:"}, INLINE), _event({**INLINE, "thought": True}), _event(signed, reason="STOP")]
    second = {**_image(1), "extra_content": {"google": {"thought_signature": "sig"}}}
    assert _answer(*events) == [
        _choice({"role": "assistant", "content": "Here:", "images": [_image(0)]}),
        _choice({"images": [second]}),
        _choice({}, "stop"),
    ]


def test_an_answer_that_is_a_picture_is_no_empty_one() -> None:
    streamed, whole = Answer(), Answer()
    progress = gemini.Progress()
    for event in (_event(INLINE), _event(INLINE, reason="STOP")):
        streamed.add(progress.next(event) or Chunk([]))
    streamed.add(progress.last())
    whole.add(gemini.from_body(_event(INLINE, INLINE, reason="STOP")))
    message = {"role": "assistant", "content": "", "refusal": None, "images": [_image(0), _image(1)]}
    for answer in (streamed, whole):
        [choice] = answer.result()["choices"]
        assert (choice["message"], choice["finish_reason"]) == (message, "stop")
        assert answer.held_bytes > 2 * len("data:image/png;base64,QUJD") and answer.text_bytes == 0


def test_pictures_go_back_where_their_caller_kept_them() -> None:
    kept = {**_image(0), "extra_content": {"google": {"thought_signature": "sig"}}}
    far = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    [_, turn, _] = _contents(
        USER, {"role": "assistant", "content": "Here:", "images": [kept, far, "b"]}, {**USER, "images": [kept]}
    )
    assert turn == {"role": "model", "parts": [{"text": "Here:"}, {**INLINE, "thoughtSignature": "sig"}]}


@pytest.mark.parametrize(
    ("modalities", "theirs"), [(["text"], None), ([], None), (["image", "text"], ["IMAGE", "TEXT"])]
)
def test_pictures_may_be_asked_for(modalities: list[str], theirs: list[str] | None) -> None:
    config = _wire({"messages": [USER], "modalities": modalities}).get("generationConfig", {})
    assert config.get("responseModalities") == theirs


@pytest.mark.parametrize("inline", [{}, "QUJD", {"mimeType": "image/png"}, {"mimeType": 5, "data": "QUJD"}])
def test_data_that_is_none_breaks_the_protocol(inline: Any) -> None:
    with pytest.raises(UpstreamProtocolError):
        _answer(_event({"inlineData": inline}))


def test_an_answer_that_nothing_here_can_hold_is_an_error_and_not_an_empty_one() -> None:
    with pytest.raises(UpstreamRefused, match="audio/L16"):
        _answer(_event({"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "QUJD"}}, reason="STOP"))


async def test_a_picture_may_be_larger_than_any_other_line() -> None:
    data = "QUJD" * (wire.MAX_LINE_BYTES // 4)
    reply = Reply([sse(_event({"inlineData": {"mimeType": "image/png", "data": data}}, reason="STOP"))])
    async with replying("gemini", lambda _: reply) as played:
        chunks = [chunk async for chunk in played.provider.stream(played.call())]
    assert chunks[0].choices[0]["delta"]["images"] == [_image(0, data)]


# --- errors ----------------------------------------------------------------------------------------------------------


def _error(code: int, message: str = "no", **more: Any) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "status": "S", **more}})


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, _error(400), UpstreamRefused),
        (400, _error(400, "API key not valid.", details=[{"reason": "API_KEY_INVALID"}]), UpstreamCredentials),
        (
            400,
            _error(400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
            ContextTooLong,
        ),
        (401, _error(401), UpstreamCredentials),
        (403, _error(403), UpstreamCredentials),
        (404, _error(404), UpstreamRefused),
        (404, _error(404, "models/x is not found for API version v1beta."), UpstreamModelMissing),
        (429, _error(429), UpstreamBusy),
        (429, b"[" + _error(429) + b"\n]", UpstreamBusy),
        (500, _error(500), UpstreamError),
        (503, _error(503, "The model is overloaded. Please try again later."), UpstreamBusy),
        (504, _error(504), UpstreamTimeout),
    ],
)
def test_the_status_decides_the_error(status: int, body: bytes, error: type[UpstreamError]) -> None:
    assert type(gemini.to_error(status, body, {})) is error


@pytest.mark.parametrize(
    ("delay", "seconds"), [("34s", 34), ("0.5s", 0.5), ("0s", None), ("soon", None), (7, None), ("99999999s", 3_600)]
)
def test_a_quota_says_when_to_come_back(delay: Any, seconds: float | None) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, {"retryDelay": delay}]
    assert gemini.to_error(429, _error(429, details=details), {}).failure.retry_after_s == seconds


def test_more_stop_sequences_than_it_takes_are_refused_and_none_is_left_out() -> None:
    stops = ["a", "b", "c", "d", "e"]
    assert _wire({"messages": [USER], "stop": stops})["generationConfig"]["stopSequences"] == stops
    with pytest.raises(UpstreamRefused, match="at most 5 stop sequences") as caught:
        _wire({"messages": [USER], "stop": [*stops, "f"]})
    assert caught.value.failure.param == "stop"
