"""A scripted fake model server: tokens, delays and failures on demand, without a model, a GPU or a network.

The script is the backend's `options` and, over them, the JSON after `echo:` in the last user message.
`README.md` lists its words.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from itertools import cycle, islice
from typing import Any, ClassVar, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from common.clock import Clock
from common.contracts import Chunk, JsonObject, Usage
from common.errors import (
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnsupported,
)
from workers.providers.base import Call, Embedded
from workers.providers.vectors import inputs_of, pack
from workers.providers.wire import is_list, is_object

CHAT: Final = "/v1/chat/completions"
PREFIX: Final = "echo:"
_WORD: Final = re.compile(r"\s*\S+")
_ARGUMENT_PIECE_CHARACTERS: Final = 8
_REMEMBERED_CALLS: Final = 10_000
DIMENSIONS: Final = 16
# Between so many tokens without a delay, others get a turn of the event loop.
_TOKENS_A_TURN: Final = 64


class ToolCall(BaseModel):
    """A tool call that the script wants in the answer: of a function, or with `input` of a custom tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    input: str | None = None


class Script(BaseModel):
    """What one answer is to be like. Token numbers count from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = None
    tokens: NonNegativeInt | None = Field(default=None, le=100_000)
    numbered: bool = False
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    then: str | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None
    usage: bool = True
    first_token_ms: NonNegativeFloat = 0
    token_ms: NonNegativeFloat = 0
    error: str | None = None
    fail_at: NonNegativeInt | None = None
    retry_after_s: NonNegativeFloat | None = None
    attempts_failing: PositiveInt | None = None
    hang_at: NonNegativeInt | None = None


# --- 1. the request to a script --------------------------------------------------------------------------------------


def to_script(call: Call) -> Script:
    """The script for a call. Raises UpstreamRefused where it can't be read."""
    text = _asked(call.body)
    words: JsonObject = dict(call.backend.options)
    if text.lstrip().startswith(PREFIX):
        words |= _parsed(text.lstrip().removeprefix(PREFIX), _field(call.body))
    elif not words.get("numbered") and "text" not in words:
        words["text"] = text
    try:
        return Script.model_validate(words)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UpstreamRefused(
            f"The echo script is not valid: {place}: {first['msg']}", param=_field(call.body)
        ) from None


def _parsed(text: str, param: str) -> JsonObject:
    try:
        words: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        words = None
    if not is_object(words):
        raise UpstreamRefused("After 'echo:' a JSON object is expected.", param=param)
    return words


def _field(body: JsonObject) -> str:
    return "messages" if "messages" in body else "input"


def _asked(body: JsonObject) -> str:
    """The text that may hold the script: the last user message, or the first input that has one."""
    if _field(body) == "input":
        texts = (one for one in inputs_of(body) if isinstance(one, str))
        return next((text for text in texts if text.lstrip().startswith(PREFIX)), "")
    messages = [message for message in _messages(body) if message.get("role") == "user"]
    return _text_of(messages[-1].get("content")) if messages else ""


def _messages(body: JsonObject) -> list[JsonObject]:
    messages = body.get("messages")
    return [message for message in messages if is_object(message)] if is_list(messages) else []


def _text_of(content: Any) -> str:
    if is_list(content):
        return "".join(str(part.get("text") or "") for part in content if is_object(part))
    return content if isinstance(content, str) else ""


# --- 2. the script to deltas -----------------------------------------------------------------------------------------


def to_deltas(script: Script, body: JsonObject) -> tuple[list[JsonObject], str]:
    """The deltas of an answer, one a token, and its finish reason."""
    if script.then is not None and _has_results(body):
        script = script.model_copy(update={"text": script.then, "tool_calls": ()})
    elif calls := script.tool_calls or _forced_call(body, script.text or ""):
        return list(_call_deltas(calls)), script.finish_reason or "tool_calls"
    reasoning: list[JsonObject] = [{"reasoning_content": word} for word in _WORD.findall(script.reasoning or "")]
    deltas = reasoning + [{"content": word} for word in _content(script)]
    limit = _count(body, "max_completion_tokens") or _count(body, "max_tokens")
    if limit is not None and limit < len(deltas):
        return deltas[:limit], "length"
    return deltas, script.finish_reason or "stop"


def _count(body: JsonObject, name: str) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise UpstreamRefused(f"{name!r} must be a whole number, not below 0.", param=name)
    return value


def _has_results(body: JsonObject) -> bool:
    """Whether tools have just been run for it."""
    messages = _messages(body)
    return bool(messages) and messages[-1].get("role") == "tool"


def _content(script: Script) -> list[str]:
    if script.numbered:
        return [f" {number}" for number in range(20 if script.tokens is None else script.tokens)]
    words = _WORD.findall(script.text or "") or ([" token"] if script.tokens else [])
    return words if script.tokens is None else list(islice(cycle(words), script.tokens))


def _forced_call(body: JsonObject, text: str) -> tuple[ToolCall, ...]:
    """The call that the request leaves no choice about; a custom tool is given what the answer would have said."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not is_list(tools) or choice in (None, "none", "auto"):
        return ()
    for asked in (choice, *tools):
        for kind, given in (("function", None), ("custom", text)):
            tool = asked.get(kind) if is_object(asked) else None
            if is_object(tool) and isinstance(tool.get("name"), str):
                return (ToolCall(name=tool["name"], input=given),)
    return ()


def _call_deltas(calls: tuple[ToolCall, ...]) -> Iterator[JsonObject]:
    for index, call in enumerate(calls):
        kind, name = ("function", "arguments") if call.input is None else ("custom", "input")
        first = {"name": call.name, name: ""}
        yield {"tool_calls": [{"index": index, "id": f"call_echo_{index}", "type": kind, kind: first}]}
        text = orjson.dumps(call.arguments).decode() if call.input is None else call.input
        for start in range(0, len(text), _ARGUMENT_PIECE_CHARACTERS):
            piece = text[start : start + _ARGUMENT_PIECE_CHARACTERS]
            yield {"tool_calls": [{"index": index, kind: {name: piece}}]}


def to_logprobs(token: str, body: JsonObject) -> JsonObject | None:
    """Made-up log probabilities of one token, in OpenAI's shape; None where they were not asked for."""
    if not body.get("logprobs"):
        return None
    own: JsonObject = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    others = [{**own, "logprob": -0.25 - rank} for rank in range(_count(body, "top_logprobs") or 0)]
    return {"content": [{**own, "top_logprobs": others}], "refusal": None}


def to_whole(deltas: list[JsonObject]) -> JsonObject:
    """One delta that says what all of them say."""
    whole: JsonObject = {"role": "assistant"}
    for key in ("content", "reasoning_content"):
        if any(key in delta for delta in deltas):
            whole[key] = "".join(delta.get(key, "") for delta in deltas)
    calls: dict[int, JsonObject] = {}
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        kind, name = ("custom", "input") if "custom" in piece else ("function", "arguments")
        call = calls.setdefault(piece["index"], {**piece, kind: {**piece[kind], name: ""}})
        call[kind][name] += piece[kind][name]
    if calls:
        whole["tool_calls"] = list(calls.values())
    return whole


def to_usage(body: JsonObject, made: int) -> Usage:
    """Words counted as tokens."""
    texts = (_text_of(message.get("content")) for message in _messages(body))
    return Usage(sum(len(_WORD.findall(text)) for text in texts), made)


def to_vector(one: Any, dimensions: int) -> bytes:
    """A vector of length 1 that depends on the input alone: the same input has the same, others have others."""
    digest = hashlib.shake_128(orjson.dumps(one)).digest(2 * dimensions)
    numbers = [number - 32_767.5 for number in struct.unpack(f"<{dimensions}H", digest)]
    length = math.hypot(*numbers)
    return pack([number / length for number in numbers])


def to_input_usage(inputs: list[Any]) -> Usage:
    """Words counted as tokens, and tokens as they are."""
    return Usage(sum(len(_WORD.findall(one)) if isinstance(one, str) else len(one) for one in inputs))


# --- 3. the script's failure to our errors ---------------------------------------------------------------------------

_ERRORS: Final = {
    error.code: error
    for error in (
        *(UpstreamError, UpstreamUnreachable, UpstreamTimeout, UpstreamBusy, UpstreamProtocolError),
        *(UpstreamCredentials, UpstreamRefused, ContextTooLong, UpstreamInterrupted),
    )
}


def to_error(script: Script) -> UpstreamError:
    """The error that the script names by its code; `upstream_error` where it names none that there is."""
    return _ERRORS.get(script.error or "", UpstreamError)(retry_after_s=script.retry_after_s)


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class EchoProvider:
    """The fake itself. It counts a request's attempts in its own process only."""

    kind: ClassVar[str] = "echo"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._attempts: OrderedDict[str, int] = OrderedDict()

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The scripted answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        script = to_script(call)
        deltas, reason = to_deltas(script, call.body)
        choices = range(_count(call.body, "n") or 1)
        pace = _Pace(self._clock, script, call, tokens=len(deltas), failing=self._is_failing(script, call))
        for number, delta in enumerate(deltas):
            await pace.reach(number)
            if call.stream:
                for index in choices:
                    yield Chunk([_choice(index, delta, call.body, first=number == 0)])
        await pace.reach(len(deltas))
        usage = to_usage(call.body, len(deltas) * len(choices)) if script.usage else None
        if call.stream:
            for chunk in _ends(choices, deltas, reason, usage):
                yield chunk
        else:
            yield Chunk([_whole_choice(index, deltas, call.body, reason) for index in choices], usage)

    async def embed(self, call: Call) -> Embedded:
        """A made-up embedding of each input, when the script lets it."""
        script = to_script(call)
        await _Pace(self._clock, script, call, tokens=0, failing=self._is_failing(script, call)).reach(0)
        inputs, dimensions = inputs_of(call.body), _count(call.body, "dimensions") or DIMENSIONS
        usage = to_input_usage(inputs) if script.usage else None
        return Embedded([to_vector(one, dimensions) for one in inputs], usage)

    def _is_failing(self, script: Script, call: Call) -> bool:
        if script.attempts_failing is None:
            return script.error is not None or script.fail_at is not None
        key = call.request_id or _asked(call.body)
        attempt = self._attempts[key] = self._attempts.pop(key, 0) + 1
        if len(self._attempts) > _REMEMBERED_CALLS:
            self._attempts.popitem(last=False)
        return attempt <= script.attempts_failing


class _Pace:
    """When each token of one answer comes, and whether one comes at all; the answer's end counts as one more."""

    def __init__(self, clock: Clock, script: Script, call: Call, *, tokens: int, failing: bool) -> None:
        self._clock = clock
        self._script = script
        self._call = call
        self._until_s = clock.monotonic_s() + call.timeout_s
        self._fail_at = min(script.fail_at or 0, tokens) if failing else None
        self._hang_at = None if script.hang_at is None else min(script.hang_at, tokens)
        self._tokens = tokens

    async def reach(self, number: int) -> None:
        """Waits for a token's time. Raises what the script wants raised there, and UpstreamTimeout at a limit."""
        if self._call.timeout_s <= 0:
            raise UpstreamTimeout
        if number == self._hang_at:
            await self._wait(math.inf)
        elif number == 0:
            await self._wait(self._script.first_token_ms / 1_000)
        elif number < self._tokens:
            await self._wait(self._script.token_ms / 1_000)
        if number == self._fail_at:
            raise to_error(self._script)
        if number % _TOKENS_A_TURN == 0:
            await self._clock.sleep(0)

    async def _wait(self, seconds: float) -> None:
        if seconds == 0:
            return
        limit_s = self._until_s - self._clock.monotonic_s()
        if self._call.stream:  # as over HTTP, where an answer in one piece is silent until it is whole
            limit_s = min(limit_s, self._call.backend.idle_timeout_s)
        await self._clock.sleep(max(0.0, min(seconds, limit_s)))
        if seconds > limit_s:
            raise UpstreamTimeout


def _choice(index: int, delta: JsonObject, body: JsonObject, *, first: bool) -> JsonObject:
    logprobs = to_logprobs(delta["content"], body) if "content" in delta else None
    own = {"role": "assistant", **delta} if first else delta
    return {"index": index, "delta": own, "logprobs": logprobs, "finish_reason": None}


def _ends(choices: range, deltas: list[JsonObject], reason: str, usage: Usage | None) -> Iterator[Chunk]:
    for index in choices:
        delta: JsonObject = {} if deltas else {"role": "assistant", "content": ""}
        yield Chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}])
    if usage is not None:
        yield Chunk([], usage)


def _whole_choice(index: int, deltas: list[JsonObject], body: JsonObject, reason: str) -> JsonObject:
    told = [to_logprobs(delta["content"], body) for delta in deltas if "content" in delta]
    content = [entry for logprobs in told if logprobs is not None for entry in logprobs["content"]]
    logprobs = {"content": content, "refusal": None} if body.get("logprobs") else None
    return {"index": index, "delta": to_whole(deltas), "logprobs": logprobs, "finish_reason": reason}
