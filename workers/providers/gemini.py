"""Gemini's API: contents made of parts, a stream without a last word, keys in a header and never in the address."""

from __future__ import annotations

import re
import secrets as randomness
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Final

import httpx
import orjson

from common.contracts import Chunk, JsonObject
from common.errors import (
    ContentFiltered,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamUnsupported,
)
from workers.providers.base import Call, Embedded
from workers.providers.counts import NOTHING_TOLD, Counts, count, told_in
from workers.providers.gemini_request import path_of, to_embedding_wire, to_wire
from workers.providers.shapes import CHAT, delta_choice, tool_delta
from workers.providers.upstream import (
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
from workers.providers.vectors import in_parts, pack
from workers.providers.wire import DONE, SseDecoder, is_list, is_object, json_object

MOST_TEXTS: Final = 100
# A picture comes in one line.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

# --- 1. our shapes to theirs: `gemini_request.py` --------------------------------------------------------------------

# --- 2. their events to ours -----------------------------------------------------------------------------------------

_FILTERED: Final = (
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "LANGUAGE",
    "IMAGE_",
)
_BROKEN: Final = ("MALFORMED_", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "OTHER")


class Progress:
    """How far an answer has come: each candidate's role, calls and end, and the tokens last told."""

    __slots__ = ("_called", "_counts", "_drawn", "_ended", "_wanted")

    def __init__(self, wanted: int = 1) -> None:
        self._wanted = wanted
        self._called: dict[int, int] = {}  # the candidates begun, and how many tools each has called
        self._drawn: dict[int, int] = {}  # by candidate, its pictures
        self._ended: dict[int, str] = {}
        self._counts = NOTHING_TOLD

    @property
    def done(self) -> bool:
        """Whether every candidate said that it ended; there may still come more."""
        return len(self._ended) >= self._wanted

    def next(self, event: JsonObject) -> Chunk | None:
        """This event's chunk, or None. Raises ContentFiltered where the prompt was not let through."""
        candidates, feedback = event.get("candidates"), event.get("promptFeedback")
        if (counts := to_counts(event.get("usageMetadata"))).prompt is not None:
            self._counts = counts
        if not is_list(candidates) or not candidates:
            if is_object(feedback) and feedback.get("blockReason"):
                raise ContentFiltered
            if candidates is not None and not is_list(candidates):
                raise UpstreamProtocolError("The model's server sent candidates that are no list.")
            return None  # usage alone, or the answer's names before it begins
        choices = [choice for candidate in candidates for choice in self._choice(candidate)]
        return Chunk(choices, counted=self._counts.so_far()) if choices else None

    def _choice(self, candidate: Any) -> Iterator[JsonObject]:
        if not is_object(candidate):
            raise UpstreamProtocolError("The model's server sent a candidate that is not an object.")
        index = candidate.get("index", 0)
        if type(index) is not int:
            raise UpstreamProtocolError("The model's server numbered its candidates wrongly.")
        delta = self._delta(index, candidate.get("content"))
        if isinstance(reason := candidate.get("finishReason"), str):
            self._ended[index] = reason
        if delta:
            role = {} if index in self._called else {"role": "assistant"}
            self._called[index] = self._called.get(index, 0) + len(delta.get("tool_calls", ()))
            yield delta_choice({**role, **delta}, index=index)

    def _delta(self, index: int, content: Any) -> JsonObject:
        parts = content.get("parts") if is_object(content) else None
        delta: JsonObject = {}
        calls: list[JsonObject] = []
        images: list[JsonObject] = []
        for part in parts if is_list(parts) else []:
            if not is_object(part):
                raise UpstreamProtocolError("The model's server sent a part that is not an object.")
            if part.get("functionCall") is not None:
                calls.append(_call(self._called.get(index, 0) + len(calls), part))
            elif part.get("inlineData") is not None:
                images += self._images(index, part)
            elif part.get("text"):
                name = "reasoning_content" if part.get("thought") else "content"
                delta[name] = delta.get(name, "") + _text(part["text"])
        return delta | ({"images": images} if images else {}) | ({"tool_calls": calls} if calls else {})

    def _images(self, index: int, part: JsonObject) -> Iterator[JsonObject]:
        """The part's picture, as OpenRouter's answers have it; none where it is only a thought."""
        if not part.get("thought"):
            number = self._drawn[index] = self._drawn.get(index, -1) + 1
            yield {
                "type": "image_url",
                "index": number,
                "image_url": {"url": _data_url(part["inlineData"])},
                **_signed(part),
            }

    def last(self) -> Chunk:
        """The chunk that ends the answer. Raises UpstreamProtocolError where it broke off, and what ended it badly."""
        if not self._ended or not set(self._called) <= set(self._ended):
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")
        return told_in([self._end(index) for index in sorted(self._ended)], self._counts)

    def _end(self, index: int) -> JsonObject:
        role = {} if index in self._called else {"role": "assistant"}
        return delta_choice(role, _reason(self._ended[index], called=self._called.get(index, 0) > 0), index)


def _reason(told: str, *, called: bool) -> str:
    if told.startswith(_BROKEN):
        raise UpstreamError(f"The model's server ended its answer with {told[:40]}.")
    if told.startswith(_FILTERED):
        return "content_filter"
    return "length" if told == "MAX_TOKENS" else "tool_calls" if called else "stop"


def _call(number: int, part: JsonObject) -> JsonObject:
    function = part["functionCall"]
    if not is_object(function) or not isinstance(function.get("name"), str):
        raise UpstreamProtocolError("The model's server sent a tool call without a function.")
    called = function.get("id") or f"call_{randomness.token_hex(12)}"
    delta = tool_delta(number, str(called), function["name"], orjson.dumps(function.get("args") or {}).decode())
    return {**delta, **_signed(part)}


def _signed(part: JsonObject) -> JsonObject:
    """A part's signature, as Google's own OpenAI dialect has it: clients which give it back there do so here."""
    signature = part.get("thoughtSignature")
    return {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}


def _data_url(inline: Any) -> str:
    kind, data = (inline.get(key) if is_object(inline) else None for key in ("mimeType", "data"))
    if not isinstance(kind, str) or not isinstance(data, str):
        raise UpstreamProtocolError("The model's server sent data without its type or its bytes.")
    if not kind.startswith("image/"):
        raise UpstreamRefused(f"The model answered with {kind[:40]!r}, which has no place in an answer here.")
    return f"data:{kind};base64,{data}"


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    return text


def from_body(event: JsonObject, wanted: int = 1) -> Chunk:
    """The one chunk that holds a whole answer. Raises UpstreamProtocolError, ContentFiltered."""
    progress = Progress(wanted)
    said = progress.next(event)
    last = progress.last()
    by_index = {choice["index"]: choice for choice in said.choices} if said else {}
    whole = [{**end, "delta": by_index.get(end["index"], end)["delta"]} for end in last.choices]
    return Chunk(whole, last.usage, counted=last.counted)


def to_counts(told: Any) -> Counts:
    """The tokens told so far: what was thought is part of what was made, what tools gave of what was read."""
    if not is_object(told):
        return NOTHING_TOLD
    prompt = _sum(told, "promptTokenCount", "toolUsePromptTokenCount")
    details: JsonObject = {}
    if cached := count(told.get("cachedContentTokenCount")):
        details["prompt_tokens_details"] = {"cached_tokens": cached}
    if thought := count(told.get("thoughtsTokenCount")):
        details["completion_tokens_details"] = {"reasoning_tokens": thought}
    # Where nothing was made the count is left out.
    made = _sum({"candidatesTokenCount": 0, **told}, "candidatesTokenCount", "thoughtsTokenCount")
    return Counts(prompt, made, details)


def _sum(told: JsonObject, first: str, more: str) -> int | None:
    """Both counts together; the second may be left out. None where either is no number of tokens."""
    one, other = count(told.get(first)), count(told.get(more, 0))
    return None if one is None or other is None else one + other


def from_embeddings(event: JsonObject) -> Embedded:
    """The vectors in an answer, which tells no usage. Raises UpstreamProtocolError."""
    rows = event.get("embeddings")
    if not is_list(rows):
        raise UpstreamProtocolError("The model's server sent no list of embeddings.")
    values = [row.get("values") if is_object(row) else None for row in rows]
    if not all(is_list(row) for row in values):
        raise UpstreamProtocolError("The model's server sent an embedding that is not one.")
    return Embedded([pack(row) for row in values if is_list(row)])


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------

_DELAY: Final = re.compile(r"(\d+(?:\.\d+)?)s")


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    try:
        told = json_object(body.strip().removeprefix(b"[").removesuffix(b"]")).get("error")
    except UpstreamProtocolError:
        told = None
    return _error(status, told if is_object(told) else {}, secrets, retry_after_s(headers))


def _error(status: int, told: JsonObject, secrets: Iterable[str], wait_s: float | None) -> UpstreamError:
    message = told.get("message")
    details: Any = told.get("details")
    details = [detail for detail in details if is_object(detail)] if is_list(details) else []
    if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        return UpstreamCredentials()  # a 400 there, and no fault of the caller's
    wait_s = wait_s or next((seconds for detail in details if (seconds := _delay_s(detail.get("retryDelay")))), None)
    if status == 503:  # the model is overloaded: nothing is broken
        return UpstreamBusy(words(message, secrets) or None, retry_after_s=wait_s)
    return refusal(status, message, secrets=secrets, retry_after_s=wait_s)


def _delay_s(value: Any) -> float | None:
    found = _DELAY.fullmatch(value) if isinstance(value, str) else None
    return retry_after_s({"retry-after": found[1]}) if found else None


# --- 4. the exchange -------------------------------------------------------------------------------------------------


def headers_of(call: Call) -> dict[str, str]:
    """The key in a header of its own: addresses are logged in many places."""
    return {"x-goog-api-key": call.api_key} if call.api_key else {}


class GeminiProvider:
    """A server that speaks Gemini's API."""

    kind: ClassVar[str] = "gemini"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        body, path = to_wire(call), path_of(call.model, "generateContent")
        if call.stream:
            path = path_of(call.model, "streamGenerateContent?alt=sse")
        wanted = body.get("generationConfig", {}).get("candidateCount", 1)
        async with opened(self._client, call, path, body=body, to_error=to_error, headers_of=headers_of) as answer:
            if not call.stream or is_json(answer):
                yield from_body(_event(await read_all(answer), call), wanted)
                return
            progress, decoder, rest = Progress(wanted), SseDecoder(MAX_LINE_BYTES), reads(answer)
            # No last word is said, and older models call each piece finished: only the body's end is the end.
            while raw := await (read_settled(rest) if progress.done else anext(rest, b"")):
                for payload in decoder.feed(raw):
                    if payload != DONE and (chunk := progress.next(_event(payload, call))) is not None:
                        yield chunk
            yield progress.last()

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs, asked for in as many calls as it takes."""
        return await in_parts(call.body, MOST_TEXTS, call.timeout_s, partial(self._embedded, call))

    async def _embedded(self, call: Call, texts: list[str]) -> Embedded:
        path, body = path_of(call.model, "batchEmbedContents"), to_embedding_wire(call, texts)
        async with opened(self._client, call, path, body=body, to_error=to_error, headers_of=headers_of) as answer:
            return from_embeddings(_event(await read_all(answer), call))


def _event(raw: bytes, call: Call) -> JsonObject:
    event = json_object(raw)
    if error := event.get("error"):
        told: JsonObject = error if is_object(error) else {"message": error}
        status = told.get("code")
        raise _error(status if type(status) is int and 400 <= status < 600 else 500, told, secrets_of(call), None)
    return event
