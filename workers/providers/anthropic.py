"""Anthropic's messages API: named content blocks, a system text of its own, tool results that the user sends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httpx
import orjson

from common.contracts import Chunk, JsonObject
from common.errors import UpstreamError, UpstreamProtocolError, UpstreamUnsupported
from common.thoughts import BLOCKS, PROOF, REDACTED, TEXT, THINKING, told_entry
from workers.providers.anthropic_request import to_wire
from workers.providers.base import Call, Embedded
from workers.providers.counts import NOTHING_TOLD, Counts, count, told_in
from workers.providers.shapes import CHAT, delta_choice, tool_delta
from workers.providers.upstream import (
    drain,
    is_json,
    opened,
    read_all,
    reads,
    refusal,
    retry_after_s,
    secrets_of,
)
from workers.providers.wire import DONE, SseDecoder, is_list, is_object, json_object

MESSAGES: Final = "/v1/messages"
VERSION: Final = "2023-06-01"

# --- 1. our shapes to theirs: `anthropic_request.py` -----------------------------------------------------------------

# --- 2. their events to ours -----------------------------------------------------------------------------------------

_REASONS: Final = {
    **dict.fromkeys(("end_turn", "stop_sequence", "pause_turn"), "stop"),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def from_body(event: JsonObject) -> Chunk:
    """The one chunk that holds a whole answer. Raises UpstreamProtocolError."""
    blocks = event.get("content")
    if not is_list(blocks) or not isinstance(event.get("stop_reason"), str):
        raise UpstreamProtocolError("The model's server sent a message without content or without its end.")
    progress = Progress()
    deltas = [one for at, block in enumerate(blocks) for one in (progress.begun(at, block), progress.ended(at))]
    progress.told(event)
    choice = progress.last().choices[0]
    delta = {"role": "assistant", **_joined([*deltas, choice["delta"]])}
    return told_in([{**choice, "delta": delta}], to_counts(event.get("usage")))


def _joined(deltas: Iterable[JsonObject]) -> JsonObject:
    whole: JsonObject = {}
    for delta in deltas:
        for key, value in delta.items():
            whole[key] = whole[key] + value if key in whole and key != PROOF else value
    for tool in whole.get("tool_calls", ()):
        tool["function"]["arguments"] = tool["function"]["arguments"] or "{}"
    return whole


def to_counts(told: Any) -> Counts:
    """The tokens told: their count of the input leaves out what the cache held."""
    if not is_object(told):
        return NOTHING_TOLD
    fresh, made = count(told.get("input_tokens")), count(told.get("output_tokens"))
    of_cache = (told.get(name) for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    read, written = (count(0 if tokens is None else tokens) for tokens in of_cache)
    if fresh is None or read is None or written is None:
        return Counts(None, made)
    return Counts(fresh + read + written, made, _details(told, read, written))


def _details(told: JsonObject, read: int, written: int) -> JsonObject:
    cached = {key: value for key, value in (("cached_tokens", read), ("cache_write_tokens", written)) if value}
    made = told.get("output_tokens_details")
    thought = count(made.get("thinking_tokens")) if is_object(made) else None
    details: JsonObject = {"prompt_tokens_details": cached} if cached else {}
    return {**details, "completion_tokens_details": {"reasoning_tokens": thought}} if thought else details


@dataclass(slots=True)
class _Thinking:
    """What is known of a block of thoughts: where it stands, its length in characters, its signature or its data."""

    after: tuple[int, int]
    redacted: bool
    length: int = 0
    proof: str = ""

    @property
    def is_simple(self) -> bool:
        """Whether a message can hold it without a word of its place: thoughts before all else."""
        return not self.redacted and not any(self.after)

    def entry(self) -> JsonObject:
        return told_entry(self.length, self.proof, self.after, redacted=self.redacted)


class Progress:
    """How far an answer has come: its blocks, what of it was counted, how it ended. It makes the chunks."""

    __slots__ = ("_begun", "_characters", "_open", "_reason", "_stopped_by", "_thoughts", "_tools", "_usage", "done")

    def __init__(self) -> None:
        self.done = False
        self._begun = False
        self._reason: str | None = None
        self._tools: dict[int, int] = {}  # a block's index to its tool call's
        self._open: set[int] = set()  # tool calls of which no argument came yet
        self._characters = 0  # of text
        self._thoughts: dict[int, _Thinking] = {}  # by their blocks' indexes
        self._stopped_by: JsonObject = {}
        self._usage: JsonObject = {}

    def next(self, event: JsonObject) -> Chunk | None:
        """This event's chunk, or None."""
        if self.done:
            return None
        kind, index = event.get("type"), event.get("index")
        if kind == "message_stop":
            self.done = True
            return self.last()
        if kind == "message_start":
            return self._started(_part_of(event, "message"))
        if kind == "message_delta":
            self.told(_part_of(event, "delta", also=event))
            return None
        return self._as_chunk(self._block(str(kind), event, index if type(index) is int else 0))

    def _started(self, message: JsonObject) -> Chunk | None:
        """What is known of the prompt from the beginning, should the rest never come; no answer is counted yet."""
        usage = message.get("usage")
        if is_object(usage):
            message = {**message, "usage": {key: value for key, value in usage.items() if key != "output_tokens"}}
        self.told(message)
        counted = to_counts(self._usage).so_far()
        return Chunk([], counted=counted) if counted else None

    def _block(self, kind: str, event: JsonObject, index: int) -> JsonObject:
        if kind == "content_block_start":
            return self.begun(index, event.get("content_block"))
        if kind == "content_block_delta":
            return self._more(index, _part_of(event, "delta"))
        if kind != "content_block_stop":
            return {}
        if self._tools.get(index, -1) in self._open:
            return self._arguments(index, "{}")  # a call without arguments: no text at all is no JSON
        return self.ended(index)

    def ended(self, index: int) -> JsonObject:
        """The delta that proves a block of thoughts, once it is whole; nothing for other blocks.

        Of the first block of all the signature is enough. It is taken back where more of them come, since it does not
        fit their text; then each is told with its place, the first one with the second.
        """
        if (thought := self._thoughts.get(index)) is None:
            return {}
        first, several = next(iter(self._thoughts.values())), len(self._thoughts) > 1
        if thought.is_simple and not several:
            return {PROOF: thought.proof} if thought.proof else {}
        again = [first] if first.is_simple and len(self._thoughts) == 2 else []
        return {PROOF: "", BLOCKS: [one.entry() for one in (*again, thought)]}

    def begun(self, index: int, block: Any) -> JsonObject:
        """The delta for a block's beginning, which of a whole answer is all of it."""
        if not is_object(block):
            raise UpstreamProtocolError("The model's server sent a content block that is not an object.")
        kind = block.get("type")
        if kind == "tool_use":
            return self._called(index, block)
        if kind in (THINKING, REDACTED):
            return self._thinks(index, block)
        return self._text(block.get("text")) if kind == "text" else {}

    def _thinks(self, index: int, block: JsonObject) -> JsonObject:
        redacted = block["type"] == REDACTED
        self._thoughts[index] = _Thinking((self._characters, len(self._tools)), redacted)
        self._sign(index, block.get("data" if redacted else "signature"))
        return {} if redacted else self._thought(index, block.get("thinking"))

    def _called(self, index: int, block: JsonObject) -> JsonObject:
        number = self._tools[index] = len(self._tools)
        given = orjson.dumps(block["input"]).decode() if block.get("input") else ""
        if not given:
            self._open.add(number)
        return {"tool_calls": [tool_delta(number, str(block.get("id") or ""), str(block.get("name") or ""), given)]}

    def _more(self, index: int, delta: JsonObject) -> JsonObject:
        kind = delta.get("type")
        if kind == "input_json_delta" and index in self._tools:
            return self._arguments(index, delta.get("partial_json"))
        if kind == "signature_delta":
            self._sign(index, delta.get("signature"))
        if kind == "thinking_delta":
            return self._thought(index, delta.get("thinking"))
        return self._text(delta.get("text")) if kind == "text_delta" else {}

    def _text(self, text: Any) -> JsonObject:
        delta = _text("content", text)
        self._characters += len(text)
        return delta

    def _thought(self, index: int, text: Any) -> JsonObject:
        delta = _text(TEXT, text)
        if (thought := self._thoughts.get(index)) is not None:
            thought.length += len(text)
        return delta

    def _arguments(self, index: int, text: Any) -> JsonObject:
        if not isinstance(text, str):
            raise UpstreamProtocolError("The model's server sent a text that is not a string.")
        if not text:
            return {}
        number = self._tools[index]
        self._open.discard(number)
        return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}

    def _sign(self, index: int, proof: Any) -> None:
        if isinstance(proof, str) and (thought := self._thoughts.get(index)) is not None:
            thought.proof += proof

    def told(self, message: JsonObject) -> None:
        """Notes what a message says of its end and its usage; later counts take the place of earlier ones."""
        if isinstance(message.get("stop_reason"), str):
            self._reason = message["stop_reason"]
        if isinstance(met := message.get("stop_sequence"), str):
            self._stopped_by = {"stop_reason": met}  # in vLLM's word for it
        usage = message.get("usage")
        if is_object(usage):
            self._usage |= {key: value for key, value in usage.items() if value is not None}

    def _as_chunk(self, delta: JsonObject) -> Chunk | None:
        if not delta:
            return None
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return Chunk([delta_choice({**role, **delta})])

    def last(self) -> Chunk:
        """The chunk that ends the answer. Raises UpstreamProtocolError where nothing said how it ended."""
        if self._reason is None:
            raise UpstreamProtocolError("The model's server did not say how its answer ended.")
        reason = _REASONS.get(self._reason, "tool_calls" if self._tools else "stop")
        role = {} if self._begun else {"role": "assistant"}
        return told_in([{**delta_choice(role, reason), **self._stopped_by}], to_counts(self._usage))

    def check(self) -> None:
        """Raises where the answer broke off."""
        if not self.done:
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")


def _part_of(event: JsonObject, key: str, also: JsonObject | None = None) -> JsonObject:
    """The object under a key; `also`: the event's own usage belongs to it, where it has one."""
    if not is_object(part := event.get(key)):
        raise UpstreamProtocolError(f"The model's server sent an event without its {key}.")
    return {**part, "usage": also["usage"]} if also is not None and "usage" in also else part


def _text(name: str, text: Any) -> JsonObject:
    if not isinstance(text, str):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    return {name: text} if text else {}


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    try:
        told = json_object(body).get("error")
    except UpstreamProtocolError:
        told = None
    message = told.get("message") if is_object(told) else None
    return refusal(status, message, secrets=secrets, retry_after_s=retry_after_s(headers))


# What an error in a stream calls itself, for there is no HTTP status to go by.
_STATUS_BY_TYPE: Final = {
    **{"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403},
    **{"not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504},
    "overloaded_error": 529,
}


def to_event_error(told: Any, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for one that came inside an answer whose status was 200."""
    if not is_object(told):
        return UpstreamError()
    return refusal(_STATUS_BY_TYPE.get(str(told.get("type")), 500), told.get("message"), secrets=secrets)


# --- 4. the exchange -------------------------------------------------------------------------------------------------


def headers_of(call: Call) -> dict[str, str]:
    """The API's version, and the key in a header of its own."""
    return {"anthropic-version": VERSION, **({"x-api-key": call.api_key} if call.api_key else {})}


class AnthropicProvider:
    """A server that speaks Anthropic's messages API."""

    kind: ClassVar[str] = "anthropic"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        body = to_wire(call)
        async with opened(self._client, call, MESSAGES, body=body, to_error=to_error, headers_of=headers_of) as answer:
            if not call.stream or is_json(answer):
                yield from_body(_event(await read_all(answer), call))
                return
            progress, decoder, rest = Progress(), SseDecoder(), reads(answer)
            async for raw in rest:
                for payload in decoder.feed(raw):
                    if payload != DONE and (chunk := progress.next(_event(payload, call))) is not None:
                        yield chunk
                if progress.done:
                    break
            progress.check()
            await drain(rest)

    async def embed(self, call: Call) -> Embedded:
        """Nothing: this API makes no embeddings. Raises UpstreamUnsupported."""
        raise UpstreamUnsupported(f"Backends of kind {self.kind!r} make no embeddings.")


def _event(raw: bytes, call: Call) -> JsonObject:
    event = json_object(raw)
    if event.get("error"):
        raise to_event_error(event["error"], secrets_of(call))
    return event
