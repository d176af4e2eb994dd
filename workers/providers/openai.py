"""OpenAI's own dialect: hosted providers that are strict about it, and the base of the servers that extend it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

import httpx

from common.contracts import Chunk, JsonObject, Usage
from common.errors import UpstreamError, UpstreamProtocolError, UpstreamRefused
from workers.providers.base import Call, Embedded
from workers.providers.counts import NOTHING_TOLD, Counts, count, told_in
from workers.providers.marks import cleaned, known_only, unmarked
from workers.providers.shapes import adapted
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
from workers.providers.vectors import checked, from_data
from workers.providers.wire import DONE, SseDecoder, is_list, is_object, json_object

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"

# --- 1. our shapes to theirs -----------------------------------------------------------------------------------------

# What OpenAI's schema names for a chat completion; a strict server answers 400 to anything else.
KNOWN_FIELDS: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p"),
        *("max_tokens", "max_completion_tokens", "frequency_penalty", "presence_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
        *("functions", "function_call", "reasoning_effort", "verbosity", "service_tier", "store", "metadata"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "user"),
        *("modalities", "audio", "prediction", "web_search_options", "moderation"),
    }
)
# Never passed on, not even where unknown fields are: they would choose a destination or a credential somewhere.
_FORBIDDEN: Final = frozenset(
    {
        *("api_base", "api_key", "api_keys", "api_version", "base_url", "custom_llm_provider", "extra_body"),
        *("extra_headers", "extra_query", "fallbacks", "headers", "kv_transfer_params", "model_list", "url"),
    }
)
_ANTHROPICS: Final = frozenset({"cache_control"})
_OURS: Final = ("headrace", "x-headrace", "x_headrace")


def to_wire(call: Call) -> JsonObject:
    """The body for a strict server: known fields only, and those that the backend's `options.pass` names."""
    known = KNOWN_FIELDS.union(call.backend.options.get("pass") or ()) - _FORBIDDEN
    kept = {key: value for key, value in call.body.items() if key in known}
    return _asking(cleaned(kept, known_only(call.backend.options)), call)


def to_open_wire(call: Call) -> JsonObject:
    """The body for a self-hosted server: unknown fields pass, but for ours and for those that choose a destination."""
    dropped = _FORBIDDEN | _ANTHROPICS
    kept = cleaned({k: v for k, v in call.body.items() if k not in dropped and not k.startswith(_OURS)}, unmarked)
    if is_list(messages := kept.get("messages")):
        kept["messages"] = [_without_developer(message) for message in messages]
    return _asking(kept, call)


# How numbers are written is between us and the server, whatever the caller wants to get.
_EMBEDDING_FIELDS: Final = frozenset({"input", "dimensions", "user"})
_LAYOUT: Final = frozenset({"encoding_format", "embed_dtype", "endianness"})


def to_embedding_wire(call: Call) -> JsonObject:
    """The body of a request for embeddings, for a strict server: known fields only."""
    return _asking_vectors({key: value for key, value in call.body.items() if key in _EMBEDDING_FIELDS}, call)


def to_open_embedding_wire(call: Call) -> JsonObject:
    """The same for a self-hosted server: unknown fields pass, but for ours and for those that choose a destination."""
    dropped = _FORBIDDEN | _LAYOUT
    kept = {k: v for k, v in call.body.items() if k not in dropped and not k.startswith(_OURS)}
    return _asking_vectors(kept, call)


def _asking_vectors(body: JsonObject, call: Call) -> JsonObject:
    kept = {key: value for key, value in body.items() if value is not None}
    # A quarter of the bytes of written numbers, and no parsing of them; who knows only numbers sends those.
    return {**kept, "model": call.model, "encoding_format": "base64"}


def _asking(body: JsonObject, call: Call) -> JsonObject:
    options = body.pop("stream_options", None)
    body["model"] = call.model
    body["stream"] = call.stream
    if call.stream:
        # Usage is always asked for, since billing needs it; who did not ask for it is not shown it.
        body["stream_options"] = {**(options if is_object(options) else {}), "include_usage": True}
    return adapted(body, call.backend.options) if call.backend.options else body


def _without_developer(message: Any) -> Any:
    # Chat templates know `system`; most fail on, or silently drop, OpenAI's newer name for it.
    if is_object(message) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


# --- 2. their events to ours -----------------------------------------------------------------------------------------

FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_KEPT: Final = ("system_fingerprint", "service_tier")


def from_wire(event: JsonObject) -> Chunk | None:
    """The chunk in a streamed event, or None where it says nothing. Raises the error that it reports."""
    choices = event.get("choices")
    if not is_list(choices):
        raise _no_choices(event)
    for choice in choices:
        _mend(choice)
    told = event.get("usage")
    if not told:
        return Chunk(choices, None, _extra(event)) if choices else None
    counts = to_counts(told)
    return told_in(choices, counts, _extra(event)) if choices or counts.so_far() else None


def from_body(event: JsonObject) -> Chunk:
    """The one chunk that holds a whole answer. Raises the error that it reports instead."""
    choices = event.get("choices")
    if not is_list(choices) or not choices:
        raise _no_choices(event)
    whole = [_as_delta(choice) for choice in choices]
    return told_in(whole, to_counts(event.get("usage")), _extra(event))


def from_embeddings(event: JsonObject, call: Call) -> Embedded:
    """The vectors in an answer, one for each input. Raises UpstreamProtocolError, UpstreamRefused."""
    prompt = to_counts(event.get("usage")).prompt
    usage = None if prompt is None else Usage(prompt)
    return Embedded(checked(from_data(event.get("data")), call.body), usage)


def to_counts(value: Any) -> Counts:
    """The tokens told; what is missing or can't be true counts as not told."""
    if not is_object(value):
        return NOTHING_TOLD
    details: JsonObject = {key: item for key, item in value.items() if key.endswith("_details") and is_object(item)}
    return Counts(count(value.get("prompt_tokens")), count(value.get("completion_tokens")), details)


def _mend(choice: Any) -> None:
    """Gives a streamed choice what OpenAI's shape promises and some servers leave out."""
    if not is_object(choice):
        raise UpstreamProtocolError("The model's server sent a choice that is not an object.")
    delta: Any = choice.get("delta")
    if not is_object(delta):
        delta = choice["delta"] = {}
    if len(delta) != 1 or type(delta.get("content")) is not str:  # nearly every token is just that
        _mend_delta(delta)
    if type(choice.setdefault("index", 0)) is not int:
        choice["index"] = 0
    if choice.get("logprobs") is not None and not is_object(choice["logprobs"]):
        choice["logprobs"] = None
    reason = choice.setdefault("finish_reason", None)
    if reason is not None and reason not in FINISH_REASONS:
        choice["finish_reason"] = _nearest(reason)


_TEXTS: Final = ("content", "reasoning_content", "refusal")


def _mend_delta(delta: JsonObject) -> None:
    if not all(delta.get(name) is None or isinstance(delta[name], str) for name in _TEXTS):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    if "reasoning" in delta:  # the older and the newer name of one thing; ours is the one most clients read
        text = delta.pop("reasoning")
        if isinstance(text, str) and not delta.get("reasoning_content"):
            delta["reasoning_content"] = text
    if "tool_calls" in delta:
        calls = delta["tool_calls"]
        if not is_list(calls) or not calls:
            del delta["tool_calls"]
            return
        delta["tool_calls"] = [_mended_call(number, call) for number, call in enumerate(calls)]


def _mended_call(number: int, call: Any) -> JsonObject:
    function = call.get("function") if is_object(call) else None
    if not is_object(call) or not (function is None or is_object(function)):
        raise UpstreamProtocolError("The model's server sent a tool call that is not an object.")
    if function and function.get("name") and function.get("arguments") is None:
        function["arguments"] = ""  # to which clients add what follows
    return call if type(call.get("index")) is int else {**call, "index": number}


def _nearest(reason: Any) -> str | None:
    """A finish reason of OpenAI's for one that is not. New ones appear, so an unknown one is never an error."""
    if reason == "error":
        raise UpstreamError
    return "stop" if reason else None


def _as_delta(choice: Any) -> JsonObject:
    if not is_object(choice) or not is_object(message := choice.get("message")):
        raise UpstreamProtocolError("The model's server sent a choice without a message.")
    told: JsonObject = {key: value for key, value in message.items() if value is not None}
    streamed: JsonObject = {
        "index": choice.get("index", 0),
        "delta": {"role": "assistant", **told},
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason") or "stop",
        **({"stop_reason": choice["stop_reason"]} if isinstance(choice.get("stop_reason"), str) else {}),
    }
    _mend(streamed)
    return streamed


def _extra(event: JsonObject) -> JsonObject | None:
    return {key: event[key] for key in _KEPT if event.get(key) is not None} or None


def _no_choices(event: JsonObject) -> UpstreamError:
    if event.get("error"):
        return to_event_error(event["error"])
    return UpstreamProtocolError("The model's server sent an event without choices.")


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------

# What an error in a stream calls itself, for there is no HTTP status to go by.
_STATUS_BY_NAME: Final = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "insufficient_quota", "tokens", "requests"), 429),
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("invalid_request_error", "BadRequestError", "exceed_context_size_error"), 400),
    **dict.fromkeys(("context_length_exceeded", "unsupported_parameter", "invalid_value"), 400),
    **dict.fromkeys(("model_not_found", "not_found_error", "NotFoundError"), 404),
    **dict.fromkeys(("overloaded_error", "server_overloaded"), 529),
    **dict.fromkeys(("timeout", "timeout_error"), 504),
    "content_filter": 400,
}


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    return of_refusal(status, error_object(body), headers, secrets)


def of_refusal(status: int, told: JsonObject, headers: Mapping[str, str], secrets: Iterable[str]) -> UpstreamError:
    """Our error for a status and the error object that came with it."""
    return refusal(
        status,
        words(told.get("message"), secrets),
        code=_name(told),
        param=_param(told.get("param")),
        retry_after_s=retry_after_s(headers),
    )


def to_event_error(error: Any, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for one that came inside an answer whose status was 200."""
    told: JsonObject = error if is_object(error) else {"message": error}
    return refusal(
        _status_of(told), words(told.get("message"), secrets), code=_name(told), param=_param(told.get("param"))
    )


def _status_of(told: JsonObject) -> int:
    for key in ("code", "status", "http_code"):
        number = told.get(key)
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) == 3:
            number = int(number)
        if type(number) is int and 400 <= number < 600:
            return number
    names = (told.get("code"), told.get("type"))
    return next((_STATUS_BY_NAME[name] for name in names if isinstance(name, str) and name in _STATUS_BY_NAME), 500)


def _name(told: JsonObject) -> str:
    return next((told[key] for key in ("code", "type") if isinstance(told.get(key), str)), "")


def _param(value: Any) -> str | None:
    return words(value, ())[:64] or None


def error_object(body: bytes) -> JsonObject:
    """OpenAI's error object out of a body, or the same made of FastAPI's `detail`; empty where there is neither."""
    try:
        document = json_object(body)
    except UpstreamProtocolError:
        return {}
    error = document.get("error", document.get("detail", document))
    if is_list(error):
        return _from_details(error)
    return error if is_object(error) else {"message": error}


def _from_details(details: list[Any]) -> JsonObject:
    first = details[0] if details else None
    if not is_object(first):
        return {}
    place = [str(part) for part in first.get("loc") or () if part != "body"]
    return {"message": first.get("msg"), "param": ".".join(place) or None}


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class OpenAIProvider:
    """A server that speaks OpenAI's dialect over HTTP."""

    kind: ClassVar[str] = "openai"
    to_wire = staticmethod(to_wire)
    to_embedding_wire = staticmethod(to_embedding_wire)
    from_wire = staticmethod(from_wire)
    from_body = staticmethod(from_body)
    to_error = staticmethod(to_error)

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamRefused(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        async with opened(self._client, call, CHAT, body=self.to_wire(call), to_error=self.to_error) as answer:
            if not call.stream or is_json(answer):
                yield self.from_body(_event(await read_all(answer), call))
                return
            progress, decoder, rest = Progress(), SseDecoder(), reads(answer)
            async for raw in rest:
                for chunk in self._chunks(decoder.feed(raw), progress, call):
                    yield chunk
                if progress.done:
                    break
            if (last := progress.last()) is not None:
                yield last
            await drain(rest)

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs."""
        body = self.to_embedding_wire(call)
        async with opened(self._client, call, EMBEDDINGS, body=body, to_error=self.to_error) as answer:
            return from_embeddings(_event(await read_all(answer), call), call)

    def _chunks(self, payloads: list[bytes], progress: Progress, call: Call) -> Iterator[Chunk]:
        for payload in payloads:
            if payload == DONE:
                progress.done = True
                return
            if (chunk := self.from_wire(_event(payload, call))) is not None:
                yield progress.noted(chunk)


class Progress:
    """How far a streamed answer has come; it mends what a server leaves out over several events."""

    __slots__ = ("_begun", "_called", "_extra", "_open", "done")

    def __init__(self) -> None:
        self.done = False
        self._begun: set[int] = set()
        self._open: set[int] = set()
        self._called: set[int] = set()
        self._extra: JsonObject | None = None

    def noted(self, chunk: Chunk) -> Chunk:
        """The chunk, with the role in each choice's first delta and each extra key told once."""
        for choice in chunk.choices:
            index: int = choice["index"]
            delta: JsonObject = choice["delta"]
            if index not in self._begun:
                self._begun.add(index)
                self._open.add(index)
                delta["role"] = delta.get("role") or "assistant"
            if "tool_calls" in delta:
                self._called.add(index)
            if choice["finish_reason"] is not None:
                self._open.discard(index)
        if chunk.extra is not None:
            chunk.extra, self._extra = (None if chunk.extra == self._extra else chunk.extra), chunk.extra
        return chunk

    def last(self) -> Chunk | None:
        """A chunk that finishes what the server left unfinished, or None. Raises where the answer broke off."""
        if not self._begun or (self._open and not self.done):
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")
        return Chunk([self._finish(index) for index in sorted(self._open)]) if self._open else None

    def _finish(self, index: int) -> JsonObject:
        return {"index": index, "delta": {}, "finish_reason": "tool_calls" if index in self._called else "stop"}


def _event(raw: bytes, call: Call) -> JsonObject:
    event = json_object(raw)
    if event.get("error"):
        raise to_event_error(event["error"], secrets_of(call))
    return event
