"""Every dialect in front of every kind of upstream: requests through both, answers back through both, cell by cell.

No cell is written down anywhere: each is what the code does with real bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from common.clock import SystemClock
from common.contracts import Chunk, Failure, Job, JsonObject
from common.errors import CallerError, UpstreamError, UpstreamRefused
from tests.providers.fields import wire_of
from tests.providers.recordings import MADE_TOKENS, PROMPT_TOKENS, SCRIPTS, STOP, Script, reply
from tests.providers.refusals import REFUSALS, refusal
from tests.providers.said import Ask, Face, Said, broken_off, told
from tests.providers.stages import KEY, backend
from tests.providers.takes import check_taken
from tests.support.upstream import Reply, Upstream
from workers.providers.base import Call, Provider
from workers.providers.registry import make
from workers.providers.transport import new_client

PASSED: Final = "passed"
CONVERTED: Final = "converted"
DROPPED: Final = "dropped"
REFUSED: Final = "refused"
NO_WORD: Final = "–"
TOLD: Final = "told"
WHOLE_ONLY: Final = "not in streams"
AS_TEXT: Final = "told as text"
LEFT_OUT: Final = "left out"
AN_ERROR: Final = "an error"

# --- what is asked ---------------------------------------------------------------------------------------------------


async def asked(face: Face, kind: str, feature: str) -> str:
    """What becomes of a feature that is asked for: passed on as it is, converted, dropped, refused with a 400."""
    ask = face.asks.get(feature)
    if ask is None:
        return NO_WORD
    try:
        body = parsed(face, ask.beside, ask.fields).body
        wire, without = await _sent(kind, body), await _sent(kind, parsed(face, ask.beside).body)
    except (CallerError, UpstreamRefused):
        return REFUSED
    if wire == without and feature != "text":
        return DROPPED
    given = body if kind == "echo" else wire
    return PASSED if all(given.get(name) == value for name, value in ask.fields.items()) else CONVERTED


def has_word(face: Face, feature: str) -> bool:
    """Whether a caller can ask for this in this dialect at all."""
    ask = face.asks.get(feature)
    try:
        return ask is not None and parsed(face, ask.beside, ask.fields) is not None
    except CallerError:
        return False


def parsed(face: Face, *more: JsonObject) -> Any:
    """The chat request of this dialect's plain request and these fields. Raises BadRequest."""
    whole = dict(face.base)
    for fields in more:
        whole |= fields
    return face.parse(whole)


async def _sent(kind: str, body: JsonObject) -> Any:
    """What the upstream gets. Echo has no upstream: what it makes of the request stands for that."""
    if kind == "echo":
        async with new_client() as client:
            heard = await _hear(make("echo", client), _call("echo", "", stream=True, body=body))
        return heard.chunks
    wire = wire_of(kind, body)
    check_taken(kind, wire)
    return wire


def _call(kind: str, url: str, *, stream: bool, body: JsonObject, **options: Any) -> Call:
    where = backend(kind, url or "http://127.0.0.1:1", options=options)
    return Call(where, "/v1/chat/completions", "their-model", body, stream, timeout_s=8, api_key=KEY)


# --- what upstreams answer -------------------------------------------------------------------------------------------

# What must be asked for to be answered.
_WANTED: Final[dict[str, JsonObject]] = {"several": {"n": 2}, "logprobs": {"logprobs": True}, "stop": {"stop": [STOP]}}
_BODY: Final[JsonObject] = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Heard:
    """What came of one answer: its chunks, and the error that ended it."""

    chunks: list[Chunk] = field(default_factory=list[Chunk])
    error: UpstreamError | None = None


class Upstreams:
    """A stand-in for every kind, for all answers; each is asked for once, however many dialects want it."""

    def __init__(self, client: httpx.AsyncClient, upstream: Upstream) -> None:
        self._client = client
        self._upstream = upstream
        self._heard: dict[tuple[Any, ...], Heard] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncGenerator[Upstreams]:
        """All of them, listening."""
        async with Upstream(lambda _: Reply()).running() as upstream, new_client() as client:
            yield cls(client, upstream)

    async def answer(self, kind: str, name: str, *, stream: bool, cut: bool = False) -> Heard:
        """What the provider hears where the upstream says this script. `cut`: but for its end."""
        script = SCRIPTS[name]
        body = {**_BODY, **_WANTED.get(name, {})}
        options = _echo_script(script, cut=cut) if kind == "echo" else {}
        call = _call(kind, self._upstream.url, stream=stream, body=body, **options)
        return await self._once((kind, name, stream, cut), call, lambda: reply(kind, script, stream=stream, cut=cut))

    async def refused(self, kind: str, name: str) -> Heard:
        """What the provider hears where the upstream refuses."""
        options = _ECHO_ERRORS[name] if kind == "echo" else {}
        call = _call(kind, self._upstream.url, stream=True, body=_BODY, **options)
        return await self._once((kind, name), call, lambda: refusal(kind, name))

    async def _once(self, key: tuple[Any, ...], call: Call, made: Callable[[], Reply]) -> Heard:
        if key not in self._heard:
            self._upstream.answer = lambda _: made()
            self._heard[key] = await _hear(make(key[0], self._client, clock=SystemClock()), call)
        return self._heard[key]


async def _hear(provider: Provider, call: Call) -> Heard:
    heard = Heard()
    try:
        async for chunk in provider.stream(call):
            heard.chunks.append(chunk)
    except UpstreamError as error:
        heard.error = error
    return heard


def _echo_script(script: Script, *, cut: bool) -> JsonObject:
    called = {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]} if script.arguments else {}
    reason = {} if script.arguments else {"finish_reason": script.reason}
    thoughts = {"reasoning": "".join(script.thoughts)} if script.thoughts else {}
    breaks = {"error": "upstream_protocol_error", "fail_at": 1_000} if cut else {}
    return {"text": "".join(script.words), **called, **reason, **thoughts, **breaks}


_ECHO_ERRORS: Final[dict[str, JsonObject]] = {
    "busy": {"error": "upstream_busy", "retry_after_s": 7},
    "refused": {"error": "upstream_refused"},
    "context too long": {"error": "context_length_exceeded"},
}

# --- what an answer's parts become -----------------------------------------------------------------------------------

Read = Callable[[Said], Any]
"""Takes out of an answer what a row of the table is about."""

# By a part's name: the script that has it, and the feature that must be asked for to get it.
PARTS: Final[dict[str, tuple[str, str, Read]]] = {
    "text": ("text", "text", lambda said: said.text),
    "tool calls": ("tools", "tools", lambda said: said.calls),
    "thoughts": ("thoughts", "text", lambda said: said.thoughts),
    "logprobs": ("logprobs", "logprobs", lambda said: said.logprobs),
    "n answers": ("several", "n", lambda said: said.texts),
    "the stop sequence met": ("stop", "stop", lambda said: said.stopped_by),
    "refusal": ("declined", "text", lambda said: said.refusal),
    "made pictures": ("drawn", "text", lambda said: said.pictures),
    "finish reason: length": ("length", "text", lambda said: said.reason),
    "finish reason: content filter": ("filtered", "text", lambda said: said.reason),
    "usage": ("text", "text", lambda said: said.usage),
}


def _expected(part: str, face: Face, kind: str, script: Script) -> Any:
    text = "".join(script.words)
    usage = (1, len(script.words)) if kind == "echo" else (PROMPT_TOKENS, MADE_TOKENS)
    return {
        "text": text,
        "tool calls": [("f", {"a": 1})],
        "thoughts": "".join(script.thoughts),
        "logprobs": list(script.words),
        "n answers": dict.fromkeys(range(script.answers), text),
        "the stop sequence met": script.stopped_by,
        "refusal": text,
        "made pictures": [f"data:image/png;base64,{data}" for data in script.pictures],
        "finish reason: length": face.reasons["length"],
        "finish reason: content filter": face.reasons["content_filter"],
        "usage": usage,
    }[part]


async def answered(upstreams: Upstreams, face: Face, kind: str, part: str) -> str:
    """What becomes of a part of an answer: told in stream and whole answer alike, or left out.

    Raises AssertionError where anything else than what the upstream said comes out.
    """
    name, feature, read = PARTS[part]
    heard = [await upstreams.answer(kind, name, stream=stream) for stream in (True, False)]
    if not has_word(face, feature):
        return NO_WORD
    if any(isinstance(one.error, UpstreamRefused) for one in heard):
        return REFUSED
    assert not any(one.error for one in heard), f"{kind} {name}: {heard}"
    said = [_streamed(face, name, heard[0].chunks), _whole(face, name, heard[1].chunks)]
    if not _told_at_all(part, heard[0].chunks):
        return NO_WORD
    expected = _expected(part, face, kind, SCRIPTS[name])
    found = _judged(read(said[0]), read(said[1]), expected)
    if part == "refusal" and found == LEFT_OUT and _judged(said[0].text, said[1].text, expected) == TOLD:
        return AS_TEXT
    return found


def _judged(streamed: Any, whole: Any, expected: Any) -> str:
    if whole == expected:
        assert streamed == expected or not streamed, f"{streamed} is not {expected}"
        return TOLD if streamed else WHOLE_ONLY
    assert not streamed and not whole, f"neither {streamed} nor {whole} is {expected}"
    return LEFT_OUT


def _told_at_all(part: str, chunks: Iterable[Chunk]) -> bool:
    """Whether this kind has a word for it: by what its provider says of an answer that has it."""
    choices = [choice for chunk in chunks for choice in chunk.choices]
    match part:
        case "the stop sequence met":
            return any(choice.get("stop_reason") for choice in choices)
        case "refusal":
            return any(choice["delta"].get("refusal") for choice in choices)
        case "made pictures":
            return any(choice["delta"].get("images") for choice in choices)
        case "finish reason: content filter":
            return any(choice["finish_reason"] == "content_filter" for choice in choices)
        case _:
            return True


def _job(face: Face, name: str) -> Job:
    """The job of a request that asks for what is answered, as far as this dialect has a word for it."""
    feature = {"several": "n", "logprobs": "logprobs", "stop": "stop", "thoughts": "reasoning"}.get(name, "text")
    ask = face.asks.get(feature, Ask({})) if has_word(face, feature) else Ask({})
    return face.job(parsed(face, ask.beside, ask.fields))


def _streamed(face: Face, name: str, chunks: list[Chunk]) -> Said:
    events, outcome, _ = told(chunks)
    said = face.stream(_job(face, name), events, outcome)
    assert said.ended and not said.error, f"{face.name} {name}: {said}"
    return said


def _whole(face: Face, name: str, chunks: list[Chunk]) -> Said:
    _, outcome, result = told(chunks)
    return face.whole(_job(face, name), result, outcome)


# --- what a failure becomes ------------------------------------------------------------------------------------------

CUT: Final = "a stream that breaks off"
FAILURES: Final = (*REFUSALS, CUT)


async def failed(upstreams: Upstreams, face: Face, kind: str, name: str) -> str:
    """The status by which a caller is told of an upstream's refusal, or that a stream which breaks off has no end."""
    job = face.job(parsed(face))
    if name == CUT:
        heard = await upstreams.answer(kind, "text", stream=True, cut=True)
        return _cut(face, job, heard)
    heard = await upstreams.refused(kind, name)
    assert heard.error is not None and not heard.chunks, f"{kind} {name}"
    return _status(face, job, heard.error.failure)


def _status(face: Face, job: Job, failure: Failure) -> str:
    status, message = face.refused(job, failure)
    assert message.removeprefix("prompt is too long: ") == failure.message.removeprefix("prompt is too long: ")
    return status


def _cut(face: Face, job: Job, heard: Heard) -> str:
    assert heard.error is not None, "a cut answer was taken for a whole one"
    failure = broken_off()
    said = face.stream(job, told(heard.chunks)[0], failure)
    assert said.text == "".join(SCRIPTS["text"].words)
    assert failure.message in said.error and not said.ended
    return AN_ERROR
