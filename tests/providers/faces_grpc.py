"""The dialect of gRPC."""

from __future__ import annotations

from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome
from gateway.dialects.openai import ChatRequest
from gateway.rpc.codes import message_of, status_of
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.reading import chat_of, prompt_of
from gateway.rpc.shape import EventShape
from gateway.rpc.writing import completion_of, text_of, words_of
from tests.providers.faces_openai import OPENAI_ASKS, SAME, STREAMED, USER, called, chat_choice
from tests.providers.said import CREATED_S, MODEL, Ask, Face, Said, rendered

# --- gRPC ------------------------------------------------------------------------------------------------------------


def _grpc_chat(body: JsonObject) -> ChatRequest:
    rest = {name: value for name, value in body.items() if name not in ("model", "messages", *STREAMED)}
    messages = [_grpc_message(message) for message in body["messages"]]
    typed: JsonObject = {name: rest.pop(name) for name in ("n", "stop") if name in rest}
    extra = orjson.dumps(rest) if rest else b""
    return chat_of(pb.ChatRequest(model=body["model"], messages=messages, **typed, extra_json=extra))


def _grpc_message(message: JsonObject) -> pb.ChatMessage:
    extra = {name: value for name, value in message.items() if name not in ("role", "tool_call_id", "tool_calls")}
    calls = [
        pb.ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    named = {"role": message["role"], "tool_call_id": message.get("tool_call_id", "")}
    return pb.ChatMessage(**named, tool_calls=calls, extra_json=orjson.dumps(extra) if extra else b"")


def _grpc_events(job: Job, events: list[bytes], end: Outcome | Failure) -> tuple[list[pb.JobEvent], Failure | None]:
    shape = EventShape(job.include_usage)
    rendered(shape, events, end)
    return shape.taken(), shape.failure


def _grpc_usage(usage: pb.Usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def _grpc_choice(said: Said, choice: Any, spoken: pb.AnswerMessage, calls: dict[int, list[str]]) -> None:
    rest: JsonObject = orjson.loads(choice.extra_json or b"{}")
    called = [
        {"index": call.index, "function": {"name": call.name, "arguments": call.arguments}}
        for call in spoken.tool_calls
    ]
    told = {name: getattr(spoken, name) for name in ("content", "refusal", "reasoning_content")}
    told |= orjson.loads(spoken.extra_json or b"{}")
    shown = {**rest, "index": choice.index, "finish_reason": choice.finish_reason}
    chat_choice(said, shown, {**told, "tool_calls": called}, calls)


def _grpc_stream(job: Job, events: list[bytes], end: Outcome | Failure) -> Said:
    said, calls = Said(), dict[int, list[str]]()
    found, failure = _grpc_events(job, events, end)
    for event in found:
        for choice in event.chunk.choices:
            _grpc_choice(said, choice, choice.delta, calls)
        if event.HasField("end"):
            said.ended, said.usage = True, _grpc_usage(event.end.usage)
    said.calls = called(calls) if said.ended else []
    said.error = message_of(failure) if failure else ""
    return said


def _grpc_whole(job: Job, result: bytes, _outcome: Outcome) -> Said:
    completion = completion_of(job, CREATED_S * 1000, result)
    said, calls = Said(ended=True, usage=_grpc_usage(completion.usage)), dict[int, list[str]]()
    for choice in completion.choices:
        _grpc_choice(said, choice, choice.message, calls)
    said.calls = called(calls)
    return said


def _grpc_refused(_job: Job, failure: Failure) -> tuple[str, str]:
    return f"`{status_of(failure).name}`", message_of(failure)


GRPC_CHAT: Final = Face(
    "gRPC `ChatCompletion`",
    {"model": MODEL, "messages": [USER], **STREAMED},
    OPENAI_ASKS,
    _grpc_chat,
    _grpc_stream,
    _grpc_whole,
    _grpc_refused,
    SAME,
)


def _infer_stream(job: Job, events: list[bytes], end: Outcome | Failure) -> Said:
    said = Said()
    found, failure = _grpc_events(job, events, end)
    for one in words_of(found):
        said.say(one.text)
        if one.HasField("end"):
            said.ended, said.usage, said.reason = True, _grpc_usage(one.end.usage), one.end.finish_reason
    said.error = message_of(failure) if failure else ""
    return said


def _infer_whole(job: Job, result: bytes, _outcome: Outcome) -> Said:
    said = text_of(completion_of(job, CREATED_S * 1000, result))
    texts = {0: said.text} if said.text else {}
    return Said(texts=texts, reason=said.finish_reason, usage=_grpc_usage(said.usage), ended=True)


def _parse_infer(body: JsonObject) -> ChatRequest:
    return prompt_of(pb.Prompt(**body), default_model=None)


INFER: Final = Face(
    "gRPC `Infer`",
    {"model": MODEL, "text": "Hi you"},
    {"text": Ask({"text": "Hi you"}), "limit": Ask({"max_tokens": 1})},
    _parse_infer,
    _infer_stream,
    _infer_whole,
    _grpc_refused,
    SAME,
    "`/prompt` over gRPC: text in, text out",
)
