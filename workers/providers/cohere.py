"""Cohere's v2 API: chat and embeddings, with events and finish reasons of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Final

import httpx
import orjson

from common.contracts import Chunk, JsonObject, Usage
from common.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnsupported
from workers.providers.base import Call, Embedded
from workers.providers.counts import NOTHING_TOLD, Counts, count, told_in
from workers.providers.marks import failed_text
from workers.providers.shapes import (
    CHAT,
    CalledTool,
    Message,
    body_of,
    choice_of,
    common_refusals,
    delta_choice,
    few_stops_of,
    limit_of,
    messages_of,
    refuse,
    schema_of,
    text_of,
    tool_delta,
    tools_of,
)
from workers.providers.upstream import (
    drain,
    is_json,
    opened,
    read_all,
    reads,
    refusal,
    retry_after_s,
    secrets_of,
    words,
)
from workers.providers.vectors import in_parts, pack
from workers.providers.wire import DONE, SseDecoder, is_list, is_object, json_object

NATIVE_CHAT: Final = "/v2/chat"
NATIVE_EMBED: Final = "/v2/embed"
MOST_TEXTS: Final = 96

# --- 1. our shapes to theirs -----------------------------------------------------------------------------------------

_RENAMED: Final = {
    **{name: name for name in ("temperature", "seed", "frequency_penalty", "presence_penalty")},
    **{"top_p": "p", "top_k": "k"},
}
# From where to where its numbers go; beyond, where OpenAI's do, it refuses them.
_RANGES: Final = {"p": (0.01, 0.99), "k": (0, 500), "frequency_penalty": (0, 1), "presence_penalty": (0, 1)}
_BACKENDS: Final = ("safety_mode", "citation_options", "documents")


def to_wire(call: Call) -> JsonObject:
    """The body for `/v2/chat`. Raises UpstreamRefused for what that API can't do."""
    body = body_of(call)
    refuse("Cohere's API", {"n": body.get("n") not in (None, 1), **common_refusals(body)})
    wire: JsonObject = {
        "model": call.model,
        "messages": [_message(message) for message in messages_of(body)],
        "stream": call.stream,
        **{theirs: _in_range(theirs, body[ours]) for ours, theirs in _RENAMED.items() if ours in body},
        **_tools(body),
        **{key: call.backend.options[key] for key in _BACKENDS if key in call.backend.options},
    }
    told = {"max_tokens": limit_of(body), "stop_sequences": few_stops_of("Cohere's API", body) or None}
    told |= {"response_format": _format(body), "thinking": _thinking(body)}
    return {**wire, **{key: value for key, value in told.items() if value is not None}}


def _in_range(name: str, value: Any) -> Any:
    """The value, or the nearest one that is taken."""
    if name not in _RANGES or type(value) not in (int, float):
        return value
    least, most = _RANGES[name]
    return min(max(value, least), most)


def to_embedding_wire(call: Call, texts: list[str]) -> JsonObject:
    """The body for `/v2/embed`. What the texts are for is the caller's `input_type`, or the backend's option."""
    body, ours = call.body, call.backend.options
    wire: JsonObject = {
        "model": call.model,
        "texts": texts,
        "input_type": body.get("input_type") or ours.get("input_type") or "search_document",
        "embedding_types": ["float"],
        # Left to itself it cuts a long text in silence.
        "truncate": "NONE",
    }
    return wire if body.get("dimensions") is None else {**wire, "output_dimension": body["dimensions"]}


def _message(message: Message) -> JsonObject:
    if message.role == "tool":
        text, called = text_of(message), str(message.whole.get("tool_call_id") or "")
        return {"role": "tool", "tool_call_id": called, "content": failed_text(text) if message.failed else text}
    wire: JsonObject = {"role": message.role}
    if message.parts:
        wire["content"] = [_part(part, message.place) for part in message.parts]
        if all(part["type"] == "text" for part in message.parts):
            wire["content"] = text_of(message)
    if message.calls:
        wire["tool_calls"] = [_called(call) for call in message.calls]
        wire = {key: value for key, value in wire.items() if value != ""}
        if isinstance(plan := message.whole.get("reasoning_content"), str) and plan:
            wire["tool_plan"] = plan
    return wire


def _part(part: JsonObject, place: str) -> JsonObject:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    image = part.get("image_url")
    if part["type"] != "image_url" or not is_object(image):
        raise UpstreamUnsupported("Cohere's API takes text and images only.", param=f"{place}.content")
    return {"type": "image_url", "image_url": image}


def _called(call: CalledTool) -> JsonObject:
    function = {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()}
    return {"id": call.id, "type": "function", "function": function}


def _tools(body: JsonObject) -> JsonObject:
    functions, choice = tools_of(body), choice_of(body)
    if not functions:
        return {}
    if choice.name:  # it can force a call, and not a certain one: so that one is all it gets
        functions = [function for function in functions if function["name"] == choice.name]
    names = ("name", "description", "parameters")
    tools = [{"type": "function", "function": {n: f[n] for n in names if f.get(n) is not None}} for f in functions]
    wire: JsonObject = {"tools": tools}
    if choice.mode in ("required", "none"):
        wire["tool_choice"] = choice.mode.upper()
    if all(function.get("strict") for function in functions):
        wire["strict_tools"] = True
    return wire


def _format(body: JsonObject) -> JsonObject | None:
    schema = schema_of(body)
    if schema is None:
        return None
    return {"type": "json_object", "json_schema": schema} if schema else {"type": "json_object"}


def _thinking(body: JsonObject) -> JsonObject | None:
    effort = body.get("reasoning_effort")
    return None if effort is None else {"type": "disabled" if effort == "none" else "enabled"}


# --- 2. their events to ours -----------------------------------------------------------------------------------------

_REASONS: Final = {
    **dict.fromkeys(("COMPLETE", "STOP_SEQUENCE"), "stop"),
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}


def from_body(event: JsonObject) -> Chunk:
    """The one chunk that holds a whole answer. Raises UpstreamProtocolError."""
    message, reason = event.get("message"), event.get("finish_reason")
    if not is_object(message) or not isinstance(reason, str):
        raise UpstreamProtocolError("The model's server sent an answer without a message or without its end.")
    delta: JsonObject = {"role": "assistant"}
    parts = [message["content"]] if isinstance(message.get("content"), str) else message.get("content") or []
    for text in [{"tool_plan": message.get("tool_plan")}, *(parts if is_list(parts) else [])]:
        for key, value in _texts(text).items():
            delta[key] = delta.get(key, "") + value
    calls = message.get("tool_calls")
    if is_list(calls) and calls:
        delta["tool_calls"] = [_call(number, call, whole=True) for number, call in enumerate(calls)]
    return told_in([delta_choice(delta, _reason(reason, None, called=bool(calls)))], to_counts(event.get("usage")))


def _texts(part: Any) -> JsonObject:
    """The text in a piece of content, by its name with us."""
    if isinstance(part, str):
        return {"content": part} if part else {}
    if not is_object(part):
        raise UpstreamProtocolError("The model's server sent content that is not an object.")
    found = (("content", part.get("text")), ("reasoning_content", part.get("thinking") or part.get("tool_plan")))
    if not all(text is None or isinstance(text, str) for _, text in found):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    return {name: text for name, text in found if text}


def _call(number: int, call: Any, *, whole: bool = False) -> JsonObject:
    function = call.get("function") if is_object(call) else None
    if not is_object(call) or not is_object(function):
        raise UpstreamProtocolError("The model's server sent a tool call without a function.")
    arguments = function.get("arguments") or ("{}" if whole else "")
    if not isinstance(arguments, str):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    return tool_delta(number, str(call.get("id") or ""), str(function.get("name") or ""), arguments)


def _reason(told: str, error: Any, *, called: bool, secrets: Iterable[str] = ()) -> str:
    if told == "TIMEOUT":
        raise UpstreamTimeout
    if told == "ERROR":
        raise UpstreamError(words(error, secrets) or None)
    return _REASONS.get(told, "tool_calls" if called else "stop")


def to_counts(told: Any) -> Counts:
    """The tokens counted; what is billed may be fewer."""
    tokens = (told.get("tokens") or told.get("billed_units")) if is_object(told) else None
    if not is_object(told) or not is_object(tokens):
        return NOTHING_TOLD
    cached = count(told.get("cached_tokens"))
    details: JsonObject = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    return Counts(count(tokens.get("input_tokens")), count(tokens.get("output_tokens")), details)


class Progress:
    """How far an answer has come: its role told or not, its tool calls counted, its end seen."""

    __slots__ = ("_begun", "_called", "_secrets", "_silent", "done")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.done = False
        self._begun = False
        self._called = 0
        self._silent = False  # the tool call under way has no argument yet
        self._secrets = secrets

    def next(self, event: JsonObject) -> Chunk | None:
        """This event's chunk, or None."""
        if self.done:
            return None
        delta = event.get("delta")
        told: JsonObject = delta if is_object(delta) else {}
        if event.get("type") == "message-end":
            return self._end(told)
        return self._chunk(self._delta(str(event.get("type")), told))

    def _delta(self, kind: str, told: JsonObject) -> JsonObject:
        message = told.get("message")
        message = message if is_object(message) else {}
        if kind in ("content-start", "content-delta"):
            return _texts(message.get("content") or "")
        if kind == "tool-plan-delta":
            return _texts({"tool_plan": message.get("tool_plan")})
        if kind.startswith("tool-call-"):
            return self._tool(kind, message.get("tool_calls"))
        return {}

    def _tool(self, kind: str, call: Any) -> JsonObject:
        if kind == "tool-call-start":
            self._called += 1
            first = _call(self._called - 1, call)
            self._silent = not first["function"]["arguments"]
            return {"tool_calls": [first]}
        if kind == "tool-call-end":
            text = "{}" if self._silent else ""  # a call without arguments: no text at all is no JSON
        else:
            text = _call(0, call)["function"]["arguments"]
        if not text or not self._called:
            return {}
        self._silent = False
        return {"tool_calls": [{"index": self._called - 1, "function": {"arguments": text}}]}

    def _end(self, told: JsonObject) -> Chunk:
        reason = _reason(
            str(told.get("finish_reason")), told.get("error"), called=self._called > 0, secrets=self._secrets
        )
        self.done = True
        delta: JsonObject = {} if self._begun else {"role": "assistant"}
        return told_in([delta_choice(delta, reason)], to_counts(told.get("usage")))

    def _chunk(self, delta: JsonObject) -> Chunk | None:
        if not delta:
            return None
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return Chunk([delta_choice({**role, **delta})])

    def check(self) -> None:
        """Raises where the answer broke off."""
        if not self.done:
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")


def from_embeddings(event: JsonObject) -> Embedded:
    """The vectors in an answer. Raises UpstreamProtocolError."""
    by_type = event.get("embeddings")
    rows = by_type.get("float") if is_object(by_type) else None
    if not is_list(rows) or not all(is_list(row) for row in rows):
        raise UpstreamProtocolError("The model's server sent no list of embeddings.")
    meta = event.get("meta")
    units = meta.get("billed_units") if is_object(meta) else None
    tokens = count(units.get("input_tokens")) if is_object(units) else None
    return Embedded([pack(row) for row in rows], Usage(tokens) if tokens else None)


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    try:
        told = json_object(body).get("message")
    except UpstreamProtocolError:
        told = None
    # 498: a word of the prompt is on its list of those that are not let through.
    code = "content_filter" if status == 498 else ""
    return refusal(status, told, secrets=secrets, code=code, retry_after_s=retry_after_s(headers))


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class CohereProvider:
    """A server that speaks Cohere's v2 API."""

    kind: ClassVar[str] = "cohere"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        async with opened(self._client, call, NATIVE_CHAT, body=to_wire(call), to_error=to_error) as answer:
            if not call.stream or is_json(answer):
                yield from_body(_event(await read_all(answer), call))
                return
            progress, decoder, rest = Progress(secrets_of(call)), SseDecoder(), reads(answer)
            async for raw in rest:
                for payload in decoder.feed(raw):
                    if payload != DONE and (chunk := progress.next(_event(payload, call))) is not None:
                        yield chunk
                if progress.done:
                    break
            progress.check()
            await drain(rest)

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs, asked for in as many calls as it takes."""
        return await in_parts(call.body, MOST_TEXTS, call.timeout_s, partial(self._embedded, call))

    async def _embedded(self, call: Call, texts: list[str]) -> Embedded:
        body = to_embedding_wire(call, texts)
        async with opened(self._client, call, NATIVE_EMBED, body=body, to_error=to_error) as answer:
            return from_embeddings(_event(await read_all(answer), call))


def _event(raw: bytes, call: Call) -> JsonObject:
    event = json_object(raw)
    # An error is a message that is a text; an answer's is an object.
    if isinstance(event.get("message"), str):
        raise refusal(500, event["message"], secrets=secrets_of(call))
    return event
