"""OpenAI's own dialect: hosted providers that are strict about it, and the base of the servers that extend it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import httpx

from common.contracts import Chunk, JsonObject, Usage
from common.errors import UpstreamError, UpstreamProtocolError, UpstreamRefused, UpstreamUnsupported
from workers.providers.base import Call, Embedded
from workers.providers.counts import NOTHING_TOLD, Counts, count, told_in
from workers.providers.openai_choice import mend
from workers.providers.openai_progress import Progress
from workers.providers.openai_request import to_embedding_wire, to_wire
from workers.providers.upstream import (
    drain,
    is_json,
    opened,
    read_all,
    read_settled,
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

# --- 1. our shapes to theirs: `openai_request.py` --------------------------------------------------------------------

# --- 2. their events to ours -----------------------------------------------------------------------------------------

_KEPT: Final = ("system_fingerprint", "service_tier")


def from_wire(event: JsonObject) -> Chunk | None:
    """The chunk in a streamed event, or None where it says nothing. Raises the error that it reports."""
    choices = event.get("choices")
    told = event.get("usage")
    if not is_list(choices):
        if choices is not None or not (told or "choices" in event):
            raise _no_choices(event)
        choices = []
    for choice in choices:
        mend(choice)
    if not told and "x_groq" in event:
        told = _groqs(event)
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
    counts = to_counts(event.get("usage") or _groqs(event))
    return Progress().noted(told_in(whole, counts, _extra(event)))


def from_embeddings(event: JsonObject, call: Call) -> Embedded:
    """The vectors in an answer, one for each input. Raises UpstreamProtocolError, UpstreamRefused."""
    prompt = to_counts(event.get("usage")).prompt
    usage = Usage(prompt) if prompt else None
    return Embedded(checked(from_data(event.get("data")), call.body), usage)


def to_counts(value: Any) -> Counts:
    """The tokens told; what is missing or can't be true counts as not told."""
    if not is_object(value):
        return NOTHING_TOLD
    details: JsonObject = {key: item for key, item in value.items() if key.endswith("_details") and is_object(item)}
    prompt, made = count(value.get("prompt_tokens")), count(value.get("completion_tokens"))
    thought = count(details.get("completion_tokens_details", {}).get("reasoning_tokens"))
    # xAI counts what was thought beside what was said, as only its total shows.
    if prompt is not None and made is not None and thought and prompt + made + thought == value.get("total_tokens"):
        made += thought
    return Counts(prompt, made, details)


def _groqs(event: JsonObject) -> Any:
    """The usage where Groq puts it in streams: beside the last choice, asked for or not."""
    return own.get("usage") if is_object(own := event.get("x_groq")) else None


def _as_delta(choice: Any) -> JsonObject:
    if not is_object(choice) or not is_object(message := choice.get("message")):
        raise UpstreamProtocolError("The model's server sent a choice without a message.")
    told: JsonObject = {key: value for key, value in message.items() if value is not None}
    if is_list(calls := told.get("tool_calls")):  # each is a whole one, whatever its number
        told["tool_calls"] = [{**call, "index": at} if is_object(call) else call for at, call in enumerate(calls)]
    streamed: JsonObject = {
        "index": choice.get("index", 0),
        "delta": told,
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason") or "stop",
        **({"stop_reason": choice["stop_reason"]} if isinstance(choice.get("stop_reason"), str) else {}),
    }
    mend(streamed)
    return streamed


def _extra(event: JsonObject) -> JsonObject | None:
    return {key: event[key] for key in _KEPT if event.get(key) is not None} or None


def _no_choices(event: JsonObject) -> UpstreamError:
    if event.get("error"):
        return to_event_error(event["error"])
    return UpstreamProtocolError("The model's server sent an event without choices.")


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------

# What an error calls itself: in a stream, where there is no HTTP status to go by, and where the status says less.
_STATUS_BY_NAME: Final = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "insufficient_quota", "tokens", "requests"), 429),
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("invalid_request_error", "BadRequestError", "exceed_context_size_error"), 400),
    **dict.fromkeys(("context_length_exceeded", "unsupported_parameter", "invalid_value"), 400),
    **dict.fromkeys(("model_not_found", "not_found_error", "NotFoundError"), 404),
    **dict.fromkeys(("overloaded_error", "server_overloaded", "capacity_exceeded"), 529),
    **dict.fromkeys(("timeout", "timeout_error"), 504),
    "content_filter": 400,
}


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    return of_refusal(status, error_object(body), headers, secrets)


def of_refusal(status: int, told: JsonObject, headers: Mapping[str, str], secrets: Iterable[str]) -> UpstreamError:
    """Our error for a status and the error object that came with it."""
    error = refusal(
        _told_better(status, told.get("code")),
        told.get("message"),
        secrets=secrets,
        code="content_filter" if status == 403 and _flagged(told) else _name(told),
        param=_param(told.get("param")),
        retry_after_s=retry_after_s(headers),
    )
    return _with_code(error, told.get("code"))


def _with_code(error: UpstreamError, code: Any) -> UpstreamError:
    """The error with the server's own code, where ours says no more than that it refused: clients act on theirs."""
    if type(error) is UpstreamRefused and isinstance(code, str) and _CODE.fullmatch(code):
        error.failure = replace(error.failure, upstream_code=code)
    return error


def to_event_error(error: Any, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for one that came inside an answer whose status was 200."""
    told: JsonObject = error if is_object(error) else {"message": error}
    return of_refusal(_status_of(told), told, {}, secrets)


_CODE: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
# These say all by themselves.
_CERTAIN: Final = frozenset({401, 402, 403, 404, 408, 429})


def _told_better(status: int, code: Any) -> int:
    """The status, or the one that its code means: Groq's 413 may be a rate limit, and its 498 is a server too busy."""
    if not 400 <= status < 500 or status in _CERTAIN or not isinstance(code, str):
        return status
    return _STATUS_BY_NAME.get(code, status)


def _flagged(told: JsonObject) -> bool:
    """Whether OpenRouter's moderation says why it stopped the prompt; its 403 may also be a refused key."""
    metadata = told.get("metadata")
    return is_object(metadata) and bool(metadata.get("reasons") or "flagged_input" in metadata)


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
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        path = call.backend.path_of(CHAT)
        async with opened(self._client, call, path, body=self.to_wire(call), to_error=self.to_error) as answer:
            if not call.stream or is_json(answer):
                yield self.from_body(_event(await read_all(answer), call))
                return
            progress, decoder, rest = Progress(_wanted(call)), SseDecoder(), reads(answer)
            while raw := await (read_settled(rest) if progress.settled else anext(rest, b"")):
                for chunk in self._chunks(decoder.feed(raw), progress, call):
                    yield chunk
                if progress.done:
                    break
            yield progress.last()
            await drain(rest)

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs."""
        path, body = call.backend.path_of(EMBEDDINGS), self.to_embedding_wire(call)
        async with opened(self._client, call, path, body=body, to_error=self.to_error) as answer:
            return from_embeddings(_event(await read_all(answer), call), call)

    def _chunks(self, payloads: list[bytes], progress: Progress, call: Call) -> Iterator[Chunk]:
        for payload in payloads:
            if payload == DONE:
                progress.done = True
                return
            chunk = self.from_wire(_event(payload, call))
            if chunk is not None and (left := progress.streamed(chunk)) is not None:
                yield left


def _wanted(call: Call) -> int:
    several = call.body.get("n")
    return several if type(several) is int else 1


def _event(raw: bytes, call: Call) -> JsonObject:
    event = json_object(raw)
    if error := event.get("error") or ("choices" not in event and _is_error(event) and event):
        raise to_event_error(error, secrets_of(call))
    return event


def _is_error(event: JsonObject) -> bool:
    """Whether the event is an error by itself, as older vLLM's (`object: error`) and some proxies' are."""
    if "data" in event or "usage" in event:
        return False
    return event.get("object") == "error" or isinstance(event.get("message"), str)
