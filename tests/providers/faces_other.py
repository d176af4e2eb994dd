"""Anthropic's and Ollama's dialects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome
from gateway.dialects import ollama
from gateway.dialects.anthropic_request import parse_message
from gateway.dialects.openai import ChatRequest
from gateway.dialects.surfaces import surface_of
from tests.providers.faces_openai import SAME, TOOL, USER
from tests.providers.said import CREATED_S, MODEL, PIXEL, SCHEMA, Ask, Face, Reads, Said, frames, refused, written

# --- Anthropic's messages --------------------------------------------------------------------------------------------

_ANTHROPIC_TOOL: Final[JsonObject] = {"name": "f", "description": "d", "input_schema": SCHEMA}
_ANTHROPIC_RESULTS: Final[list[JsonObject]] = [
    USER,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "2"}]},
]
_ANTHROPIC_PICTURE: Final[JsonObject] = {
    **{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
}


def _read_message_events(raw: bytes) -> Said:
    said = Said()
    blocks: list[JsonObject] = []
    for name, data in frames(raw):
        assert data is not None and data["type"] == name
        match name:
            case "content_block_start":
                assert data["index"] == len(blocks)
                blocks.append({**data["content_block"], "json": ""})
            case "content_block_delta":
                _message_delta(blocks[data["index"]], data["delta"])
            case "message_delta":
                _message_end(said, data["delta"], data["usage"])
            case "message_stop":
                said.ended = True
            case "error":
                said.error = data["error"]["message"]
            case _:
                pass
    _message_blocks(said, blocks)
    return said


def _message_delta(block: JsonObject, delta: JsonObject) -> None:
    kinds = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    name = kinds.get(delta["type"])
    if name is None:
        block["json"] += delta["partial_json"]
    else:
        block[name] += delta[name]


def _message_end(said: Said, end: JsonObject, usage: JsonObject) -> None:
    said.reason, said.stopped_by = end["stop_reason"], end["stop_sequence"] or ""
    said.usage = (usage["input_tokens"], usage["output_tokens"])


def _message_blocks(said: Said, blocks: list[JsonObject]) -> None:
    for block in blocks:
        if block["type"] == "tool_use":
            said.calls.append((block["name"], orjson.loads(block["json"]) if block.get("json") else block["input"]))
        said.thoughts += block.get("thinking", "")
        said.say(block.get("text"))


def _message_whole(job: Job, result: bytes, _outcome: Outcome) -> Said:
    return _read_message(orjson.loads(surface_of(job).whole(job, CREATED_S, result)))


def _read_message(document: JsonObject) -> Said:
    said = Said(ended=True)
    _message_end(said, document, document["usage"])
    _message_blocks(said, document["content"])
    return said


MESSAGES: Final = Face(
    "/v1/messages",
    {"model": MODEL, "max_tokens": 100, "messages": [USER], "stream": True},
    {
        "text": Ask({"messages": [USER]}),
        "pictures": Ask(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi you"}, _ANTHROPIC_PICTURE]}]}
        ),
        "tools": Ask({"tools": [_ANTHROPIC_TOOL]}),
        "forced tool": Ask({"tool_choice": {"type": "tool", "name": "f"}}, {"tools": [_ANTHROPIC_TOOL]}),
        "tool results": Ask({"messages": _ANTHROPIC_RESULTS}, {"tools": [_ANTHROPIC_TOOL]}),
        "JSON schema": Ask({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        "reasoning": Ask({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        "logprobs": Ask({"logprobs": True}),
        "n": Ask({"n": 2}),
        "stop": Ask({"stop_sequences": ["END"]}),
        "limit": Ask({"max_tokens": 1}),
    },
    lambda body: parse_message(orjson.dumps(body)),
    lambda job, events, end: _read_message_events(written(job, events, end)),
    _message_whole,
    refused,
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"},
    reads=Reads(_read_message_events, _read_message),
)

# --- Ollama's --------------------------------------------------------------------------------------------------------

_OLLAMA_RESULTS: Final[list[JsonObject]] = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    {"role": "tool", "tool_name": "f", "content": "2"},
]
_OLLAMA_ASKS: Final = {
    "JSON schema": Ask({"format": SCHEMA}),
    "reasoning": Ask({"think": "low"}),
    "logprobs": Ask({"logprobs": True, "top_logprobs": 1}),
    "stop": Ask({"options": {"stop": ["END"]}}),
    "limit": Ask({"options": {"num_predict": 1}}),
}


def _ollama_line(said: Said, line: JsonObject) -> None:
    if "error" in line:
        said.error = line["error"]
        return
    message: JsonObject = line.get("message") or {"content": line.get("response"), "thinking": line.get("thinking")}
    said.say(message["content"])
    said.thoughts += message.get("thinking") or ""
    said.calls += [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
    ]
    said.logprobs += [entry["token"] for entry in line.get("logprobs") or ()]
    if line["done"]:
        said.ended, said.reason = True, line["done_reason"]
        said.usage = (line["prompt_eval_count"], line["eval_count"])


def _read_lines(raw: bytes) -> Said:
    said = Said()
    for line in raw.splitlines():
        _ollama_line(said, orjson.loads(line))
    return said


def _read_line(document: JsonObject) -> Said:
    said = Said()
    _ollama_line(said, document)
    return said


_LINES: Final = Reads(_read_lines, _read_line)


def _ollama_stream(job: Job, events: list[bytes], end: Outcome | Failure) -> Said:
    return _read_lines(written(job, events, end))


def _ollama_whole(job: Job, result: bytes, outcome: Outcome) -> Said:
    surface = surface_of(job)
    assert surface.timed is not None
    return _read_line(orjson.loads(surface.timed(surface.whole(job, CREATED_S, result), outcome, CREATED_S * 1000)))


def _parse_ollama(parse: Callable[..., Any]) -> Callable[[JsonObject], ChatRequest]:
    return lambda body: parse(orjson.dumps(body), {MODEL})


_OLLAMA_REASONS: Final = {**SAME, "tool_calls": "stop", "content_filter": "stop"}

OLLAMA_CHAT: Final = Face(
    "/api/chat",
    {"model": MODEL, "messages": [USER]},
    {
        **_OLLAMA_ASKS,
        "text": Ask({"messages": [USER]}),
        "pictures": Ask({"messages": [{**USER, "images": [PIXEL]}]}),
        "tools": Ask({"tools": [TOOL]}),
        "tool results": Ask({"messages": _OLLAMA_RESULTS}, {"tools": [TOOL]}),
    },
    _parse_ollama(ollama.parse_chat),
    _ollama_stream,
    _ollama_whole,
    refused,
    _OLLAMA_REASONS,
    "Ollama's API can force no tool and has one answer",
    _LINES,
)
OLLAMA_GENERATE: Final = Face(
    "/api/generate",
    {"model": MODEL, "prompt": "Hi you"},
    {**_OLLAMA_ASKS, "text": Ask({"prompt": "Hi you"}), "pictures": Ask({"images": [PIXEL]})},
    _parse_ollama(ollama.parse_generate),
    _ollama_stream,
    _ollama_whole,
    refused,
    _OLLAMA_REASONS,
    "the same, and its prompt knows no tools",
    _LINES,
)
