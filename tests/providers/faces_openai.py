"""OpenAI's dialects and ours that are shaped like them: chat, jobs, older completions, the plain prompt, responses."""

from __future__ import annotations

from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, State
from gateway.dialects import completions
from gateway.dialects.native import job_record, parse_job_submission, parse_prompt
from gateway.dialects.openai import ChatRequest, ChunkShape, parse_chat
from gateway.dialects.responses_input import read_response_request, response_request
from gateway.dialects.surfaces import surface_of
from tests.providers.said import (
    CREATED_S,
    MODEL,
    PIXEL,
    SCHEMA,
    Ask,
    Face,
    Reads,
    Said,
    frames,
    record_of,
    refused,
    rendered,
    written,
)

# --- OpenAI's chat completions, and what is shaped like them ---------------------------------------------------------

USER: Final[JsonObject] = {"role": "user", "content": "Hi you"}
FUNCTION: Final[JsonObject] = {"name": "f", "description": "d", "parameters": SCHEMA}
TOOL: Final[JsonObject] = {"type": "function", "function": FUNCTION}
_CALL: Final[JsonObject] = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
_RESULTS: Final[list[JsonObject]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "2"},
]
_PICTURE: Final[JsonObject] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
_PARTS: Final[list[JsonObject]] = [{"type": "text", "text": "Hi you"}, _PICTURE]
_JSON_SCHEMA: Final[JsonObject] = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
_NAMED: Final[JsonObject] = {"type": "function", "function": {"name": "f"}}

OPENAI_ASKS: Final = {
    "text": Ask({"messages": [USER]}),
    "pictures": Ask({"messages": [{"role": "user", "content": _PARTS}]}),
    "tools": Ask({"tools": [TOOL]}),
    "forced tool": Ask({"tool_choice": _NAMED}, {"tools": [TOOL]}),
    "tool results": Ask({"messages": _RESULTS}, {"tools": [TOOL]}),
    "JSON schema": Ask({"response_format": _JSON_SCHEMA}),
    "reasoning": Ask({"reasoning_effort": "low"}),
    "logprobs": Ask({"logprobs": True, "top_logprobs": 1}),
    "n": Ask({"n": 2}),
    "stop": Ask({"stop": ["END"]}),
    "limit": Ask({"max_tokens": 1}),
}
SAME: Final = {reason: reason for reason in ("stop", "length", "tool_calls", "content_filter")}


def chat_choice(said: Said, choice: JsonObject, spoken: JsonObject, calls: dict[int, list[str]]) -> None:
    index: int = choice["index"]
    said.say(spoken.get("content"), index)
    if index:
        return
    said.refusal += spoken.get("refusal") or ""
    said.thoughts += spoken.get("reasoning_content") or ""
    said.pictures += [image["image_url"]["url"] for image in spoken.get("images") or ()]
    for number, call in enumerate(spoken.get("tool_calls") or ()):
        pieces = calls.setdefault(call.get("index", number), ["", ""])
        pieces[0] += call["function"].get("name") or ""
        pieces[1] += call["function"].get("arguments") or ""
    said.logprobs += [entry["token"] for entry in (choice.get("logprobs") or {}).get("content") or ()]
    said.reason = choice.get("finish_reason") or said.reason
    said.stopped_by = choice.get("stop_reason") or said.stopped_by


def called(calls: dict[int, list[str]]) -> list[tuple[str, Any]]:
    return [(name, orjson.loads(arguments)) for name, arguments in calls.values()]


def _openai_usage(usage: JsonObject | None) -> tuple[int, int] | None:
    return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


def _read_chunks(raw: bytes) -> Said:
    said, calls = Said(), dict[int, list[str]]()
    for name, data in frames(raw):
        if data is None:
            said.ended = True
        elif "error" in data:
            said.error = data["error"]["message"]
        elif name != "queue":
            for choice in data["choices"]:
                chat_choice(said, choice, choice["delta"], calls)
            said.usage = _openai_usage(data.get("usage")) or said.usage
    said.calls = called(calls) if said.ended else []
    return said


def _read_completion(document: JsonObject) -> Said:
    said, calls = Said(ended=True, usage=_openai_usage(document["usage"])), dict[int, list[str]]()
    for choice in document["choices"]:
        chat_choice(said, choice, choice["message"], calls)
    said.calls = called(calls)
    return said


def _chat_stream(job: Job, events: list[bytes], end: Outcome | Failure) -> Said:
    return _read_chunks(written(job, events, end))


def _chat_whole(job: Job, result: bytes, _outcome: Outcome) -> Said:
    return _read_completion(orjson.loads(surface_of(job).whole(job, CREATED_S, result)))


_CHAT_READS: Final = Reads(_read_chunks, _read_completion)
STREAMED: Final[JsonObject] = {"stream": True, "stream_options": {"include_usage": True}}

CHAT: Final = Face(
    "/v1/chat/completions",
    {"model": MODEL, "messages": [USER], **STREAMED},
    OPENAI_ASKS,
    lambda body: parse_chat(orjson.dumps(body)),
    _chat_stream,
    _chat_whole,
    refused,
    SAME,
    reads=_CHAT_READS,
)


# --- jobs ------------------------------------------------------------------------------------------------------------


def _parse_job(body: JsonObject) -> ChatRequest:
    submission = parse_job_submission(orjson.dumps({"endpoint": "/v1/chat/completions", "body": body}))
    assert isinstance(submission.asked, ChatRequest)
    return submission.asked


def _job_stream(job: Job, events: list[bytes], end: Outcome | Failure) -> Said:
    shape = ChunkShape(job.id, CREATED_S, job.model, job.include_usage, queue_events=True)
    return _read_chunks(rendered(shape, events, end))


def _record(job: Job, outcome: Outcome, result: bytes) -> JsonObject:
    return orjson.loads(orjson.dumps(job_record(record_of(job, outcome, result))))


def _job_whole(job: Job, result: bytes, outcome: Outcome) -> Said:
    shown = _record(job, outcome, result)
    said = _read_completion(shown["result"])
    assert _openai_usage(shown["usage"]) == said.usage
    return said


def _job_refused(job: Job, failure: Failure) -> tuple[str, str]:
    shown = _record(job, Outcome(State.FAILED, failure=failure), b"")
    return f"`{shown['status']}`", shown["error"]["message"]


JOBS: Final = Face(
    "/v1/jobs",
    {"model": MODEL, "messages": [USER], **STREAMED},
    OPENAI_ASKS,
    _parse_job,
    _job_stream,
    _job_whole,
    _job_refused,
    SAME,
)

# --- completions and the plain prompt --------------------------------------------------------------------------------

# What the others ask for in OpenAI's words, to be refused where there is no such thing.
_ELSEWHERE: Final = {
    name: ask
    for name, ask in OPENAI_ASKS.items()
    if name in ("tools", "forced tool", "JSON schema", "reasoning", "logprobs", "n", "stop", "limit")
}


def _read_text_chunks(raw: bytes) -> Said:
    said = Said()
    for _, data in frames(raw):
        if data is None:
            said.ended = True
        elif "error" in data:
            said.error = data["error"]["message"]
        else:
            _text_choices(said, data)
    return said


def _text_choices(said: Said, document: JsonObject) -> None:
    for choice in document["choices"]:
        said.say(choice["text"], choice["index"])
        if not choice["index"]:
            said.logprobs += (choice["logprobs"] or {}).get("tokens") or []
            said.reason = choice["finish_reason"] or said.reason
    said.usage = _openai_usage(document.get("usage")) or said.usage


def _read_text(document: JsonObject) -> Said:
    said = Said(ended=True)
    _text_choices(said, document)
    return said


def _text_whole(job: Job, result: bytes, _outcome: Outcome) -> Said:
    return _read_text(orjson.loads(surface_of(job).whole(job, CREATED_S, result)))


COMPLETIONS: Final = Face(
    "/v1/completions",
    {"model": MODEL, "prompt": "Hi you", **STREAMED},
    {**_ELSEWHERE, "text": Ask({"prompt": "Hi you"}), "logprobs": Ask({"logprobs": 1})},
    lambda body: completions.parse_completions(orjson.dumps(body))[0],
    lambda job, events, end: _read_text_chunks(written(job, events, end)),
    _text_whole,
    refused,
    {**SAME, "tool_calls": "stop"},
    "one text in, and texts out",
    Reads(_read_text_chunks, _read_text),
)
PROMPT: Final = Face(
    "/prompt",
    {"model": MODEL, "prompt": "Hi you", "stream": True},
    {**_ELSEWHERE, "text": Ask({"prompt": "Hi you"})},
    lambda body: parse_prompt(orjson.dumps(body), default_model=None),
    _chat_stream,
    _chat_whole,
    refused,
    SAME,
    "one text in, and little to set: whoever wants more asks for a chat completion",
    _CHAT_READS,
)

# --- Responses -------------------------------------------------------------------------------------------------------


def _responses_part(part: JsonObject) -> JsonObject:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}


_RESPONSES_TOOL: Final[JsonObject] = {"type": "function", "strict": None, **FUNCTION}
_RESPONSES_RESULTS: Final[list[JsonObject]] = [
    USER,
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "2"},
]


def _read_response_events(raw: bytes) -> Said:
    said = Said()
    streamed: list[str] = []
    declined: list[str] = []
    for number, (name, data) in enumerate(frames(raw)):
        assert data is not None and (data["type"], data["sequence_number"]) == (name, number)
        if name == "response.output_text.delta":
            streamed.append(data["delta"])
        if name == "response.refusal.delta":
            declined.append(data["delta"])
        if name in ("response.completed", "response.incomplete", "response.failed"):
            said = _read_response(data["response"])
    said.say(None if said.ended else "".join(streamed))
    assert (said.text, said.refusal) == ("".join(streamed), "".join(declined))
    return said


def _read_response(response: JsonObject) -> Said:
    said = Said(ended=response["status"] in ("completed", "incomplete"))
    for item in response["output"] if said.ended else ():
        _response_item(said, item)
    why: JsonObject = response["incomplete_details"] or {}
    said.reason = why.get("reason") or response["status"]
    usage = response["usage"]
    said.usage = (usage["input_tokens"], usage["output_tokens"]) if usage else None
    said.error = (response["error"] or {}).get("message", "")
    return said


def _response_item(said: Said, item: JsonObject) -> None:
    if item["type"] == "function_call":
        said.calls.append((item["name"], orjson.loads(item["arguments"])))
    for part in item.get("content") or ():
        if item["type"] == "reasoning":
            said.thoughts += part["text"]
        elif part["type"] == "refusal":
            said.refusal += part["refusal"]
        else:
            said.say(part["text"])
            said.logprobs += [entry["token"] for entry in part["logprobs"]]


RESPONSES: Final = Face(
    "/v1/responses",
    {"model": MODEL, "input": [USER], "stream": True},
    {
        "text": Ask({"input": [USER]}),
        "pictures": Ask({"input": [{"role": "user", "content": [_responses_part(part) for part in _PARTS]}]}),
        "tools": Ask({"tools": [_RESPONSES_TOOL]}),
        "forced tool": Ask({"tool_choice": {"type": "function", "name": "f"}}, {"tools": [_RESPONSES_TOOL]}),
        "tool results": Ask({"input": _RESPONSES_RESULTS}, {"tools": [_RESPONSES_TOOL]}),
        "JSON schema": Ask({"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}}),
        "reasoning": Ask({"reasoning": {"effort": "low"}}),
        "logprobs": Ask({"include": ["message.output_text.logprobs"], "top_logprobs": 1}),
        "n": Ask({"n": 2}),
        "stop": Ask({"stop": ["END"]}),
        "limit": Ask({"max_output_tokens": 1}),
    },
    lambda body: response_request(read_response_request(orjson.dumps(body))),
    lambda job, events, end: _read_response_events(written(job, events, end)),
    lambda job, result, _: _read_response(orjson.loads(surface_of(job).whole(job, CREATED_S, result))),
    refused,
    {
        **{"stop": "completed", "tool_calls": "completed"},
        **{"length": "max_output_tokens", "content_filter": "content_filter"},
    },
    reads=Reads(_read_response_events, _read_response),
)
