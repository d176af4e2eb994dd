"""What each kind of upstream sends for one and the same answer, in its own bytes: as a stream, and whole.

The shapes are those of real servers (see `stages.py`, whose plain texts these answers go beyond).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from common.contracts import JsonObject
from tests.providers.stages import DONE, named, sse
from tests.support.upstream import Reply, Step

PROMPT_TOKENS: Final = 5
MADE_TOKENS: Final = 4
CALL_ID: Final = "call_1"
STOP: Final = "END"


@dataclass(frozen=True)
class Script:
    """What the model says. `arguments` are the pieces in which a call of `f` comes; `stopped_by` ends the text.

    `declines`: the words say that it will not, which OpenAI's servers tell in a field apart from an answer's.
    `pictures`: made after the words, in base64.
    """

    thoughts: tuple[str, ...] = ()
    words: tuple[str, ...] = ("Once", " upon", " a", " time")
    arguments: tuple[str, ...] = ()
    reason: str = "stop"
    answers: int = 1
    logprobs: bool = False
    stopped_by: str = ""
    declines: bool = False
    pictures: tuple[str, ...] = ()


TEXT: Final = Script()
SCRIPTS: Final = {
    "text": TEXT,
    "tools": Script(words=(), arguments=('{"a"', ": 1}"), reason="tool_calls"),
    "thoughts": replace(TEXT, thoughts=("Let me", " see.")),
    "length": replace(TEXT, reason="length"),
    "stop": replace(TEXT, stopped_by=STOP),
    "several": replace(TEXT, answers=2),
    "logprobs": replace(TEXT, logprobs=True),
    "declined": replace(TEXT, words=("I will not", " say that."), declines=True),
    "drawn": replace(TEXT, pictures=("QUJD", "REVG")),
    "filtered": replace(TEXT, words=("I",), reason="content_filter"),
}


def reply(kind: str, script: Script, *, stream: bool, cut: bool = False) -> Reply:
    """The reply that says this. `cut`: but for its end."""
    wire = WIRES[kind]
    if not stream:
        return Reply([wire.whole(script)], content_type="application/json")
    steps: list[Step] = list(wire.pieces(script))
    if not cut:
        steps += wire.ends(script)
    return Reply(steps, content_type=wire.content_type)


@dataclass(frozen=True)
class Wire:
    """One kind's way to write an answer."""

    pieces: Callable[[Script], Iterator[bytes]]
    ends: Callable[[Script], Iterator[bytes]]
    whole: Callable[[Script], bytes]
    content_type: str = "text/event-stream"


# --- OpenAI's, vLLM's and llama.cpp's --------------------------------------------------------------------------------

_NAMES: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "theirs"}
_USAGE: Final = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": MADE_TOKENS, "total_tokens": 9}


def _openai(thoughts: str, met: str = "", refuses: str = "content", draws: str = "") -> Wire:
    """The fields that hold thoughts, the stop sequence met, the words of one that declines, and pictures.

    There may be none for the stop sequence and for pictures.
    """

    def choice(index: int, reason: str | None, script: Script, **said: Any) -> JsonObject:
        told = {met: script.stopped_by or None} if met and reason else {}
        return {"index": index, "logprobs": None, "finish_reason": reason, **said, **told}

    def pieces(script: Script) -> Iterator[bytes]:
        deltas: list[JsonObject] = [{"role": "assistant", "content": ""}, *({thoughts: t} for t in script.thoughts)]
        said = refuses if script.declines else "content"
        deltas += [*({said: word} for word in script.words), *_call_deltas(script)]
        deltas += [{draws: [image]} for image in _images(script, draws).get(draws, ())]
        for index in range(script.answers):
            for delta in deltas:
                logprobs = _logprobs([delta["content"]]) if script.logprobs and delta.get("content") else None
                one = choice(index, None, script, delta=delta, logprobs=logprobs)
                yield sse({**_NAMES, "choices": [one]})

    def ends(script: Script) -> Iterator[bytes]:
        for index in range(script.answers):
            yield sse({**_NAMES, "choices": [choice(index, script.reason, script, delta={})]})
        yield sse({**_NAMES, "choices": [], "usage": _USAGE})
        yield DONE

    def whole(script: Script) -> bytes:
        message = _openai_message(script, thoughts, refuses if script.declines else "content")
        message |= _images(script, draws)
        logprobs = _logprobs(list(script.words)) if script.logprobs else None
        choices = [
            choice(index, script.reason, script, message=message, logprobs=logprobs) for index in range(script.answers)
        ]
        return orjson.dumps({**_NAMES, "object": "chat.completion", "choices": choices, "usage": _USAGE})

    return Wire(pieces, ends, whole)


def _openai_message(script: Script, thoughts: str, said: str) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": None, said: "".join(script.words) or None}
    if script.thoughts:
        message[thoughts] = "".join(script.thoughts)
    if script.arguments:
        function = {"name": "f", "arguments": "".join(script.arguments)}
        message["tool_calls"] = [{"id": CALL_ID, "type": "function", "function": function}]
    return message


def _images(script: Script, draws: str) -> JsonObject:
    """Pictures as OpenRouter tells them, in the field that holds them."""
    urls = [{"url": f"data:image/png;base64,{data}"} for data in script.pictures]
    return {draws: [{"type": "image_url", "image_url": url} for url in urls]} if draws and urls else {}


def _call_deltas(script: Script) -> Iterator[JsonObject]:
    if script.arguments:
        first = {"id": CALL_ID, "type": "function", "function": {"name": "f", "arguments": ""}}
        yield {"tool_calls": [{"index": 0, **first}]}
    for piece in script.arguments:
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _logprobs(words: list[str]) -> JsonObject:
    entries = [{"token": word, "logprob": -0.5, "bytes": None} for word in words]
    return {"content": [{**entry, "top_logprobs": [entry]} for entry in entries], "refusal": None}


# --- Ollama's --------------------------------------------------------------------------------------------------------

_OLLAMA_NAMES: Final = {"model": "theirs", "created_at": "2026-11-21T04:10:00.1Z"}


def _ollama_line(said: JsonObject, **more: Any) -> bytes:
    message = {"role": "assistant", "content": "", **said}
    return orjson.dumps({**_OLLAMA_NAMES, "message": message, "done": False, **more}) + b"\n"


def _ollama_called(script: Script) -> JsonObject:
    if not script.arguments:
        return {}
    return {"tool_calls": [{"function": {"name": "f", "arguments": orjson.loads("".join(script.arguments))}}]}


def _ollama_logprobs(script: Script, words: tuple[str, ...]) -> JsonObject:
    return {"logprobs": _logprobs(list(words))["content"]} if script.logprobs else {}


def _ollama_pieces(script: Script) -> Iterator[bytes]:
    for text in script.thoughts:
        yield _ollama_line({"thinking": text})
    for word in script.words:
        yield _ollama_line({"content": word}, **_ollama_logprobs(script, (word,)))
    if script.arguments:
        yield _ollama_line(_ollama_called(script))


def _ollama_end(script: Script) -> JsonObject:
    reason = "length" if script.reason == "length" else "stop"
    return {
        **{"done": True, "done_reason": reason, "total_duration": 9, "eval_duration": 3},
        **{"prompt_eval_count": PROMPT_TOKENS, "eval_count": MADE_TOKENS},
    }


def _ollama_whole(script: Script) -> bytes:
    thinking = {"thinking": "".join(script.thoughts)} if script.thoughts else {}
    said = {"content": "".join(script.words), **thinking, **_ollama_called(script)}
    return _ollama_line(said, **_ollama_end(script), **_ollama_logprobs(script, script.words))


# --- Anthropic's -----------------------------------------------------------------------------------------------------

_ANTHROPIC_REASONS: Final = {
    **{"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
}
_ANTHROPIC_NAMES: Final = {"id": "msg_1", "type": "message", "role": "assistant", "model": "theirs"}
SIGNATURE: Final = "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"


def _anthropic_pieces(script: Script) -> Iterator[bytes]:
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    message = {**_ANTHROPIC_NAMES, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield named({"type": "message_start", "message": message})
    for index, (block, deltas) in enumerate(_anthropic_blocks(script)):
        yield named({"type": "content_block_start", "index": index, "content_block": block})
        for delta in deltas:
            yield named({"type": "content_block_delta", "index": index, "delta": delta})
        yield named({"type": "content_block_stop", "index": index})


def _anthropic_blocks(script: Script) -> Iterator[tuple[JsonObject, list[JsonObject]]]:
    if script.thoughts:
        deltas: list[JsonObject] = [{"type": "thinking_delta", "thinking": text} for text in script.thoughts]
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        yield {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
    if script.words:
        yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in script.words]
    if script.arguments:
        pieces: list[JsonObject] = [
            {"type": "input_json_delta", "partial_json": piece} for piece in ("", *script.arguments)
        ]
        yield {"type": "tool_use", "id": CALL_ID, "name": "f", "input": {}}, pieces


def _anthropic_stop(script: Script) -> JsonObject:
    if script.stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": script.stopped_by}
    return {"stop_reason": _ANTHROPIC_REASONS[script.reason], "stop_sequence": None}


def _anthropic_ends(script: Script) -> Iterator[bytes]:
    usage = {"output_tokens": MADE_TOKENS}
    yield named({"type": "message_delta", "delta": _anthropic_stop(script), "usage": usage})
    yield named({"type": "message_stop"})


def _anthropic_whole(script: Script) -> bytes:
    content: list[JsonObject] = []
    if script.thoughts:
        content.append({"type": "thinking", "thinking": "".join(script.thoughts), "signature": SIGNATURE})
    if script.words:
        content.append({"type": "text", "text": "".join(script.words)})
    if script.arguments:
        given = orjson.loads("".join(script.arguments))
        content.append({"type": "tool_use", "id": CALL_ID, "name": "f", "input": given})
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": MADE_TOKENS}
    return orjson.dumps({**_ANTHROPIC_NAMES, "content": content, **_anthropic_stop(script), "usage": usage})


# --- Gemini's --------------------------------------------------------------------------------------------------------

_GEMINI_REASONS: Final = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}


def _gemini_event(script: Script, parts: list[JsonObject], made: int, reason: str | None = None) -> JsonObject:
    counts = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": made, "totalTokenCount": PROMPT_TOKENS + made}
    ended = {"finishReason": reason} if reason else {}
    content = {"parts": parts, "role": "model"}
    candidates = [{"content": content, "index": index, **ended} for index in range(script.answers)]
    return {"candidates": candidates, "usageMetadata": counts, "modelVersion": "theirs", "responseId": "r1"}


def _gemini_parts(script: Script) -> Iterator[JsonObject]:
    for text in script.thoughts:
        yield {"text": text, "thought": True}
    for word in script.words:
        yield {"text": word}
    for data in script.pictures:
        yield {"inlineData": {"mimeType": "image/png", "data": data}}
    if script.arguments:
        yield {"functionCall": {"name": "f", "args": orjson.loads("".join(script.arguments))}}


def _gemini_pieces(script: Script) -> Iterator[bytes]:
    for number, part in enumerate(_gemini_parts(script), 1):
        yield sse(_gemini_event(script, [part], number))


def _gemini_ends(script: Script) -> Iterator[bytes]:
    yield sse(_gemini_event(script, [{"text": ""}], MADE_TOKENS, _GEMINI_REASONS[script.reason]))


def _gemini_whole(script: Script) -> bytes:
    parts = list(_gemini_parts(script))
    return orjson.dumps(_gemini_event(script, parts, MADE_TOKENS, _GEMINI_REASONS[script.reason]))


# --- Cohere's --------------------------------------------------------------------------------------------------------

_COHERE_REASONS: Final = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL"}
_COHERE_USAGE: Final = {"tokens": {"input_tokens": float(PROMPT_TOKENS), "output_tokens": float(MADE_TOKENS)}}


def _cohere_event(kind: str, **message: Any) -> bytes:
    return named({"type": kind, "index": 0, "delta": {"message": message}})


def _cohere_pieces(script: Script) -> Iterator[bytes]:
    yield named({"id": "m1", "type": "message-start", "delta": {"message": {"role": "assistant", "content": []}}})
    for name, texts in (("thinking", script.thoughts), ("text", script.words)):
        if texts:
            yield _cohere_event("content-start", content={"type": name, name: ""})
            for text in texts:
                yield _cohere_event("content-delta", content={name: text})
            yield named({"type": "content-end", "index": 0})
    if script.arguments:
        first = {"id": CALL_ID, "type": "function", "function": {"name": "f", "arguments": ""}}
        yield _cohere_event("tool-call-start", tool_calls=first)
        for piece in script.arguments:
            yield _cohere_event("tool-call-delta", tool_calls={"function": {"arguments": piece}})
        yield named({"type": "tool-call-end", "index": 0})


def _cohere_reason(script: Script) -> str:
    return "STOP_SEQUENCE" if script.stopped_by else _COHERE_REASONS.get(script.reason, "COMPLETE")


def _cohere_ends(script: Script) -> Iterator[bytes]:
    told = {"finish_reason": _cohere_reason(script), "usage": _COHERE_USAGE}
    yield named({"type": "message-end", "delta": told})
    yield DONE


def _cohere_whole(script: Script) -> bytes:
    content: list[JsonObject] = []
    if script.thoughts:
        content.append({"type": "thinking", "thinking": "".join(script.thoughts)})
    if script.words:
        content.append({"type": "text", "text": "".join(script.words)})
    message: JsonObject = {"role": "assistant", "content": content}
    if script.arguments:
        function = {"name": "f", "arguments": "".join(script.arguments)}
        message["tool_calls"] = [{"id": CALL_ID, "type": "function", "function": function}]
    told = {"finish_reason": _cohere_reason(script), "usage": _COHERE_USAGE}
    return orjson.dumps({"id": "m1", "message": message, **told})


WIRES: Final = {
    "openai": _openai("reasoning_content", refuses="refusal", draws="images"),
    "vllm": _openai("reasoning", met="stop_reason"),
    "llamacpp": _openai("reasoning_content"),
    "ollama": Wire(
        _ollama_pieces,
        lambda script: iter((_ollama_line({}, **_ollama_end(script)),)),
        _ollama_whole,
        "application/x-ndjson",
    ),
    "anthropic": Wire(_anthropic_pieces, _anthropic_ends, _anthropic_whole),
    "gemini": Wire(_gemini_pieces, _gemini_ends, _gemini_whole),
    "cohere": Wire(_cohere_pieces, _cohere_ends, _cohere_whole),
}
