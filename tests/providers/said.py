"""An answer as its dialect says it, read back; and what each dialect must tell of itself for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import orjson

from common.contracts import Chunk, Failure, Job, JsonObject, Outcome, Position, State
from common.errors import UpstreamInterrupted
from common.queue import Place, Record
from gateway.dialects.openai import ChatRequest
from gateway.dialects.surfaces import surface_of
from workers.answer import Answer
from workers.inference import encode_event

MODEL: Final = "m"
CREATED_S: Final = 1_700_000_000
JOB_ID: Final = "job_default_0123456789abcdef0123456789abcdef"
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: Final[JsonObject] = {"type": "object", "properties": {"a": {"type": "integer"}}}


@dataclass
class Said:
    """What an answer says in its dialect. `reason` is the dialect's own word; `ended`: it came to its good end.

    `refusal`: the words of a model that declines, where the dialect has a field for them apart from an answer's.
    """

    texts: dict[int, str] = field(default_factory=dict[int, str])
    refusal: str = ""
    thoughts: str = ""
    pictures: list[str] = field(default_factory=list[str])
    calls: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    reason: str = ""
    stopped_by: str = ""
    logprobs: list[str] = field(default_factory=list[str])
    usage: tuple[int, int] | None = None
    error: str = ""
    ended: bool = False

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.texts.get(0, "")

    def say(self, text: str | None, index: int = 0) -> None:
        """Takes the next piece of a choice's text."""
        if text:
            self.texts[index] = self.texts.get(index, "") + text


@dataclass(frozen=True)
class Ask:
    """How a feature is asked for: `fields` beside the plain request, which mean something together with `beside`."""

    fields: JsonObject
    beside: JsonObject = field(default_factory=dict[str, Any])


class Reads(NamedTuple):
    """Reads an answer over HTTP: the bytes of a stream, and the document of a whole one."""

    stream: Callable[[bytes], Said]
    whole: Callable[[JsonObject], Said]


@dataclass(frozen=True)
class Face:
    """One dialect. A feature that `asks` lacks has no word there; `why` says how that is."""

    name: str
    base: JsonObject
    asks: dict[str, Ask]
    parse: Callable[[JsonObject], ChatRequest]
    stream: Callable[[Job, list[bytes], Outcome | Failure], Said]
    whole: Callable[[Job, bytes, Outcome], Said]
    refused: Callable[[Job, Failure], tuple[str, str]]
    reasons: dict[str, str]
    why: str = ""
    reads: Reads | None = None

    def job(self, asked: ChatRequest) -> Job:
        """The job of a request."""
        job = Job(JOB_ID, "default", "t", asked.endpoint, asked.model, asked.body, stream=True)
        told: JsonObject = {"include_usage": asked.include_usage, "prompt_tokens": asked.prompt_tokens}
        return replace(job, **told, dialect=asked.dialect, asked=asked.asked)


# --- an answer on its way through ------------------------------------------------------------------------------------


def told(chunks: Iterable[Chunk], prompt_tokens: int = 0) -> tuple[list[bytes], Outcome, bytes]:
    """What a worker makes of chunks: the stream's events, the outcome, the stored result."""
    answer = Answer(prompt_tokens)
    events: list[bytes] = []
    for chunk in chunks:
        answer.add(chunk)
        if chunk.choices:
            events.append(encode_event(chunk))
    timings = {"queued": 1, "first_token": 2, "total": 3}
    outcome = Outcome(State.SUCCEEDED, answer.finish_reason, answer.usage, None, timings, "b")
    return events, outcome, orjson.dumps(answer.result())


def record_of(job: Job, outcome: Outcome, result: bytes) -> Record:
    """The record of a job that ended."""
    created_ms = CREATED_S * 1000
    return Record(job, outcome.status, 1, 1, 0, created_ms, created_ms + 60_000, None, None, outcome, result, None)


def broken_off() -> Failure:
    """How a job's failure is told whose answer broke off after its first tokens."""
    return UpstreamInterrupted("The answer broke off after its first tokens.").failure


def written(job: Job, events: list[bytes], end: Outcome | Failure) -> bytes:
    surface = surface_of(job)
    shape = surface.shape(job, CREATED_S)
    return rendered(shape, events, end)


_PLACE: Final = Place(State.QUEUED, position=3, wait_ms=5)


def rendered(shape: Any, events: list[bytes], end: Outcome | Failure) -> bytes:
    last = Position(1, len(events))
    raw: bytes = shape.opening() + shape.waiting(_PLACE) + shape.keep_alive() + shape.events(last, events)
    if isinstance(end, Failure):
        return raw + shape.failed(Position(1, last.seq + 1), end)
    return raw + shape.end(Position(1, last.seq + 1), end, resumed=False)


def refused(job: Job, failure: Failure) -> tuple[str, str]:
    status, body, headers = surface_of(job).refused(failure)
    if failure.retry_after_s is not None:
        assert headers["retry-after"] == str(int(failure.retry_after_s)), "a pause that is known is told"
    document = orjson.loads(body)
    error = document.get("error", document)  # or a problem of RFC 9457
    return str(status), error if isinstance(error, str) else error.get("message") or error["detail"]


def frames(raw: bytes) -> Iterator[tuple[str, JsonObject | None]]:
    """Server-sent events as (name, data); `[DONE]` has no data. Comments and other fields are left out."""
    for frame in raw.split(b"\n\n"):
        lines = [line.partition(b": ") for line in frame.split(b"\n")]
        values = {name: value for name, _, value in lines}
        if b"data" in values:
            data = values[b"data"]
            yield values.get(b"event", b"").decode(), None if data == b"[DONE]" else orjson.loads(data)
