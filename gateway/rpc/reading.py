"""Pure: requests of the contract to what the rest of the gateway knows them as, with the same checks as over HTTP."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from google.protobuf.message import Message

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.bounded import MAX_NODES, read_object, values_in
from gateway.dialects.chat_schema import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, check_length
from gateway.dialects.embeddings import parse_embeddings
from gateway.dialects.native import Asked, JobOptions, JobSubmission, options_in, prompt_request
from gateway.dialects.openai import ChatRequest, chat_request, check_metadata, schemas_of
from gateway.rpc.headrace.v1 import inference_pb2 as pb

RawHeaders = list[tuple[bytes, bytes]]

_KEY_HEADER: Final = b"idempotency-key"
_PRIORITIES: Final = {
    pb.PRIORITY_INTERACTIVE: "interactive",
    pb.PRIORITY_STANDARD: "standard",
    pb.PRIORITY_BATCH: "batch",
}
_ON_DISCONNECT: Final = {pb.ON_DISCONNECT_CANCEL: "cancel", pb.ON_DISCONNECT_CONTINUE: "continue"}
_ON_INTERRUPT: Final = {pb.ON_INTERRUPT_FAIL: "fail", pb.ON_INTERRUPT_RESTART: "restart"}
_OF_THE_CALL: Final = ("stream", "stream_options")


def chat_of(given: pb.ChatRequest) -> ChatRequest:
    """The chat request in its own fields and in `extra_json` together. Raises BadRequest naming the field."""
    extra = _extra_of(given)
    for name in _OF_THE_CALL:
        if name in extra:
            raise BadRequest(f"{name}: whether there is a stream is the call's own matter.", param=name)
    body: JsonObject = {"model": given.model} if given.model else {}
    if given.messages:
        body["messages"] = _messages(given.messages)
    body |= _set(given, "max_completion_tokens", "temperature", "top_p", "seed", "n")
    if given.stop:
        check_length("stop", given.stop, MAX_STOPS)
        body["stop"] = list(given.stop)
    return chat_request(_together(body, extra, ""))


def _extra_of(given: pb.ChatRequest) -> JsonObject:
    if not given.extra_json:
        return {}
    with _at("extra_json"):
        return read_object(given.extra_json, schemas_of)


def prompt_of(given: pb.Prompt, *, default_model: str | None) -> ChatRequest:
    """The chat request that a prompt stands for. Raises BadRequest naming the field."""
    texts = {"prompt": given.text, "model": given.model, "system": given.system}
    document: JsonObject = {name: text for name, text in texts.items() if text}
    return prompt_request(document | _set(given, "max_tokens", "temperature"), default_model=default_model)


def options_of(given: pb.JobOptions, headers: RawHeaders) -> JobOptions:
    """What the caller wants, by the message or else by metadata. Raises BadRequest naming the field."""
    document: JsonObject = {
        "priority": _word("priority", given.priority, _PRIORITIES),
        "on_disconnect": _word("on_disconnect", given.on_disconnect, _ON_DISCONNECT),
        "on_interrupt": _word("on_interrupt", given.on_interrupt, _ON_INTERRUPT),
        "batch_key": given.batch_key or None,
        **_set(given, "deadline_ms", "delay_ms"),
    }
    if given.idempotency_key:
        key = (_KEY_HEADER, given.idempotency_key.encode("utf-8"))
        headers = [key, *((name, value) for name, value in headers if name != _KEY_HEADER)]
    return options_in(document, headers)


def submission_of(given: pb.SubmitJobRequest, headers: RawHeaders, *, default_model: str | None) -> JobSubmission:
    """The job asked for. Raises BadRequest naming the field."""
    metadata = _metadata_of(given.metadata_json) if given.metadata_json else {}
    check_metadata(metadata)
    return JobSubmission(_work(given, default_model), options_of(given.options, headers), metadata)


def _metadata_of(raw: bytes) -> JsonObject:
    with _at("metadata_json"):
        return read_object(raw, _no_schemas, metadata_of=lambda found: (found,))


def view_of(given: pb.GetJobRequest) -> pb.JobView:
    """How much of a job is asked for. Raises BadRequest for a view of a later version."""
    if given.view not in pb.JobView.values():
        raise BadRequest(f"view: {given.view} is not known here.", param="view")
    return given.view


def _work(given: pb.SubmitJobRequest, default_model: str | None) -> Asked:
    match given.WhichOneof("work"):
        case "chat":
            return chat_of(given.chat)
        case "prompt":
            return prompt_of(given.prompt, default_model=default_model)
        case "embeddings_json":
            with _at("embeddings_json"):
                return parse_embeddings(given.embeddings_json)
        case _:
            raise BadRequest("work: one of chat, prompt and embeddings_json is required.", param="work")


# --- messages ---------------------------------------------------------------------------------------------------------


class _Pieces:
    """Reads the JSON pieces of one request, which together may hold no more than one body."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def read(self, raw: bytes, place: str) -> JsonObject:
        """The object in the piece at this place, {} where there is none. Raises BadRequest naming it."""
        if not raw:
            return {}
        with _at(place):
            return self._read(raw)

    def _read(self, raw: bytes) -> JsonObject:
        self._left -= values_in(raw)
        if self._left < 0:
            raise BadRequest(f"The messages have too many values: at most {MAX_NODES}.", param="messages")
        return read_object(raw, _no_schemas)


def _messages(given: Sequence[pb.ChatMessage]) -> list[JsonObject]:
    # Two bytes make a message: millions of them would be read before the chat request's own checks.
    check_length("messages", given, MAX_MESSAGES)
    pieces = _Pieces()
    return [_message(one, pieces, f"messages[{index}].") for index, one in enumerate(given)]


def _message(given: pb.ChatMessage, pieces: _Pieces, where: str) -> JsonObject:
    texts = {"role": given.role, "name": given.name, "tool_call_id": given.tool_call_id}
    message: JsonObject = {name: text for name, text in texts.items() if text} | _set(given, "content")
    if given.tool_calls:
        check_length(f"{where}tool_calls", given.tool_calls, MAX_TOOLS)
        calls = enumerate(given.tool_calls)
        message["tool_calls"] = [_tool_call(one, pieces, f"{where}tool_calls[{index}].") for index, one in calls]
    return _together(message, pieces.read(given.extra_json, f"{where}extra_json"), where)


def _tool_call(given: pb.ToolCall, pieces: _Pieces, where: str) -> JsonObject:
    call: JsonObject = {"id": given.id, "type": given.type or "function"}
    if given.name or given.arguments:
        call["function"] = {"name": given.name, "arguments": given.arguments}
    return _together(call, pieces.read(given.extra_json, f"{where}extra_json"), where)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _together(typed: JsonObject, extra: JsonObject, where: str) -> JsonObject:
    """Both as one object. Raises BadRequest for a field that stands in both."""
    for name in extra:
        if name in typed:
            param = f"{where}{name[:64]}"
            raise BadRequest(f"{param}: stands in extra_json and in a field of its own.", param=param)
    return {**typed, **extra}


@contextmanager
def _at(place: str) -> Generator[None]:
    """Raises a BadRequest that names no field, raised inside, as one that names this piece of JSON."""
    try:
        yield
    except BadRequest as error:
        failure = error.failure
        if failure.param is not None:
            raise
        words = failure.message.removeprefix("The body's ").removeprefix("The body ")
        raise BadRequest(f"{place}: {words}", param=place, code=failure.code) from None


def _set(given: Message, *names: str) -> JsonObject:
    """The fields among these that were set. Raises BadRequest for a number that JSON has not."""
    found: JsonObject = {name: getattr(given, name) for name in names if given.HasField(name)}
    for name, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequest(f"{name}: must be a finite number.", param=name)
    return found


def _word(name: str, value: int, words: Mapping[Any, str]) -> str | None:
    """The word for an enum's value, None where nothing was said. Raises BadRequest for one of a later version."""
    if not value:
        return None
    word = words.get(value)
    if word is None:
        raise BadRequest(f"{name}: {value} is not known here.", param=name)
    return word


def _no_schemas(_document: JsonObject) -> tuple[()]:
    return ()
