"""Ollama's answers out: lines of a stream, whole answers, embeddings, and what it tells of models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, Position
from common.queue import Place
from gateway.dialects.arguments import arguments_of, call_of
from gateway.dialects.embeddings import vector_numbers
from gateway.dialects.json_lines import in_one_line
from gateway.dialects.ollama import LATEST, Idle
from gateway.errors import ollama_error_object

JSON_LINES: Final = "application/x-ndjson"
API_VERSION: Final = "0.17.1"
"""The release of Ollama whose API this is: clients compare it with what they need."""

_NS_A_MS: Final = 1_000_000
_ABILITIES: Final = {"tools": "tools", "vision": "vision", "reasoning": "thinking"}
_LONG_AGO: Final = "1970-01-01T00:00:00Z"
_FAR_AWAY: Final = "9999-12-31T23:59:59Z"


# --- what both answers say, each in its own words ---------------------------------------------------------------------


@dataclass(slots=True)
class Said:
    """A piece of an answer."""

    text: str = ""
    thinking: str = ""
    calls: list[JsonObject] = field(default_factory=list[JsonObject])


Voice = Callable[[Said], JsonObject]


def as_message(said: Said) -> JsonObject:
    """The piece as `/api/chat` has it."""
    message: JsonObject = {"role": "assistant", "content": said.text}
    if said.thinking:
        message["thinking"] = said.thinking
    if said.calls:
        message["tool_calls"] = said.calls
    return {"message": message}


def as_response(said: Said) -> JsonObject:
    """The piece as `/api/generate` has it."""
    return {"response": said.text, **({"thinking": said.thinking} if said.thinking else {})}


def _said(delta: JsonObject, *, thinks: bool) -> Said:
    thinking: str = delta.get("reasoning_content") or ""
    text = (delta.get("content") or "") + (delta.get("refusal") or "")
    return Said(text, thinking if thinks else "")


def _name(job: Job) -> str:
    """The model that answers, as the request wrote its name."""
    written: str = job.asked.get("model", job.model)
    return written if written.removesuffix(LATEST) == job.model.removesuffix(LATEST) else job.model


def _moment(at_ms: int) -> str:
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03}Z"


def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _thinks(job: Job) -> bool:
    """Whether the answer's thinking is shown: all of it, unless the request wants none."""
    return job.asked.get("think") is not False


def _done_reason(reason: str | None) -> str:
    # Ollama has only these words for an answer's end.
    return "length" if reason == "length" else "stop"


def _counts(prompt_tokens: Any, completion_tokens: Any) -> JsonObject:
    return {"prompt_eval_count": prompt_tokens, "eval_count": completion_tokens}


def durations(outcome: Outcome, *, streamed: bool) -> JsonObject:
    """How long things took, in nanoseconds: the wait in the queue stands for the time of loading.

    Of an answer that came in one piece nobody knows when its first token was made: what is noted as that moment is when
    the whole was there. Clients divide by the time that the answer took, so that is never 0.
    """
    timings = outcome.timings_ms
    queued = timings.get("queued", 0)
    total = max(timings.get("total", 0), queued + 1)
    first = min(timings.get("first_token", total), total) if streamed else total
    spent: JsonObject = {"total_duration": total * _NS_A_MS, "load_duration": queued * _NS_A_MS}
    if first < total:
        spent["prompt_eval_duration"] = max(0, first - queued) * _NS_A_MS
        return {**spent, "eval_duration": (total - first) * _NS_A_MS}
    return {**spent, "eval_duration": (total - queued) * _NS_A_MS}


# --- tool calls -------------------------------------------------------------------------------------------------------


class _Calls:
    """Tool calls, which come in pieces and go out whole: their arguments are objects."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, list[JsonObject]] = {}

    def add(self, pieces: Iterable[JsonObject]) -> None:
        """Takes pieces. Those of a stored answer are whole and have no index."""
        for number, piece in enumerate(pieces):
            self._calls.setdefault(piece.get("index", number), []).append(piece)

    def take(self) -> list[JsonObject]:
        """The calls, in their order; afterwards there are none."""
        calls = [_call(number, pieces) for number, (_, pieces) in enumerate(sorted(self._calls.items()))]
        self._calls.clear()
        return calls


def _call(index: int, pieces: list[JsonObject]) -> JsonObject:
    said = [call_of(piece) for piece in pieces]
    name = next((name for name, _ in said if name), "")
    call_id = next((one["id"] for one in pieces if one.get("id")), "")
    arguments = arguments_of("".join([text for _, text in said]))
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": arguments}}


# --- streams ----------------------------------------------------------------------------------------------------------


class LineShape:
    """Makes the lines of one stream. What Ollama has no word for, such as the place in the queue, is left out.

    `now_ms`: the time that a line is made at, which it bears.
    """

    __slots__ = ("_at_s", "_calls", "_head", "_now_ms", "_prefix", "_thinks", "_voice")

    media_type: ClassVar[str] = JSON_LINES
    said_in_order: ClassVar[bool] = False

    def __init__(self, job: Job, now_ms: Callable[[], int], voice: Voice) -> None:
        self._voice = voice
        self._thinks = _thinks(job)
        self._head = orjson.dumps({"model": _name(job), "created_at": ""})[:-2]
        self._now_ms = now_ms
        self._at_s = -1
        self._prefix = b""
        self._calls = _Calls()

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def keep_alive(self) -> bytes:
        """Nothing: every line is a piece of the answer to Ollama's clients."""
        return b""

    def waiting(self, place: Place) -> bytes:
        """Nothing."""
        return b""

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """A line for each that says something."""
        return b"".join([self._event(orjson.loads(event)["choices"]) for event in events])

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """The last line: why it ended, counts and durations."""
        usage, reason = outcome.usage, _done_reason(outcome.finish_reason)
        done: JsonObject = {"done": True, "done_reason": reason, **durations(outcome, streamed=True)}
        if usage is not None:
            done |= _counts(usage.prompt_tokens, usage.completion_tokens)
        return self._called() + self._line(Said(), done)

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """A line with the error."""
        return ollama_error_object(failure) + b"\n"

    def anew(self, begins: Position) -> bytes:
        """A line that adds nothing, with our own word for it: Ollama never begins an answer anew."""
        self._calls = _Calls()
        return self._line(Said(), {"done": False, "headrace": {"event": "reset"}})

    def _event(self, choices: list[JsonObject]) -> bytes:
        lines = b""
        for choice in choices:
            delta: JsonObject = choice["delta"]
            self._calls.add(delta.get("tool_calls") or ())
            said = _said(delta, thinks=self._thinks)
            logprobs = _logprobs(choice)
            if said.text or said.thinking or logprobs:
                lines += self._line(said, {"done": False, **logprobs})
            if choice.get("finish_reason"):
                lines += self._called()
        return lines

    def _called(self) -> bytes:
        calls = self._calls.take()
        return self._line(Said(calls=calls), {"done": False}) if calls else b""

    def _line(self, said: Said, more: JsonObject) -> bytes:
        at_s, rest_ms = divmod(self._now_ms(), 1000)
        if at_s != self._at_s:  # only once a second: to write a date costs as much as all else in a line
            self._at_s, self._prefix = at_s, self._head + _second(at_s).encode()
        told = orjson.dumps({**self._voice(said), **more})[1:]
        return b'%b.%03dZ",%b\n' % (self._prefix, rest_ms, in_one_line(told))


def _logprobs(choice: JsonObject) -> JsonObject:
    told: JsonObject = choice.get("logprobs") or {}
    return {"logprobs": told["content"]} if told.get("content") else {}


# --- whole answers ----------------------------------------------------------------------------------------------------


def whole(job: Job, result: bytes, voice: Voice) -> bytes:
    """The body of an answer that is not streamed, around the job's result; its times come from `timed`."""
    stored: JsonObject = orjson.loads(result)
    choice: JsonObject = stored["choices"][0]
    message: JsonObject = choice["message"]
    said = _said(message, thinks=_thinks(job))
    calls = _Calls()
    calls.add(message.get("tool_calls") or ())
    said.calls = calls.take()
    usage: JsonObject = stored["usage"]
    return orjson.dumps(
        {
            "model": _name(job),
            **voice(said),
            "done": True,
            "done_reason": _done_reason(choice.get("finish_reason")),
            **_counts(usage["prompt_tokens"], usage["completion_tokens"]),
            **_logprobs(choice),
        }
    )


def timed(body: bytes, outcome: Outcome, created_ms: int) -> bytes:
    """The whole answer with the moment of its end and its durations."""
    ended_ms = created_ms + outcome.timings_ms.get("total", 0)
    return body[:-1] + b"," + orjson.dumps({"created_at": _moment(ended_ms), **durations(outcome, streamed=False)})[1:]


def idle_message(idle: Idle, now_ms: int) -> bytes:
    """The answer of `/api/chat` to a request that asks for nothing."""
    return _idle(idle, now_ms, as_message)


def idle_response(idle: Idle, now_ms: int) -> bytes:
    """The answer of `/api/generate` to a request that asks for nothing."""
    return _idle(idle, now_ms, as_response)


def _idle(idle: Idle, now_ms: int, voice: Voice) -> bytes:
    reason = "unload" if idle.unload else "load"
    head = {"model": idle.model, "created_at": _moment(now_ms)}
    return orjson.dumps({**head, **voice(Said()), "done": True, "done_reason": reason})


# --- embeddings -------------------------------------------------------------------------------------------------------


def embed_answer(job: Job, _created_s: int, result: bytes) -> bytes:
    """The body of `/api/embed` around a job's result; its durations come from `timed_embeddings`."""
    found: JsonObject = orjson.loads(result)
    vectors = [vector_numbers(vector) for vector in found["embeddings"]]
    count: int = found["usage"]["prompt_tokens"]
    return orjson.dumps({"model": _name(job), "embeddings": vectors, "prompt_eval_count": count})


def timed_embeddings(body: bytes, outcome: Outcome, _created_ms: int) -> bytes:
    """The embeddings with the durations that Ollama tells of them."""
    spent = durations(outcome, streamed=False)
    kept = {name: spent[name] for name in ("total_duration", "load_duration")}
    return body[:-1] + b"," + orjson.dumps(kept)[1:]


def embeddings_answer(_job: Job, _created_s: int, result: bytes) -> bytes:
    """The body of the older `/api/embeddings` around a job's result: one vector."""
    return orjson.dumps({"embedding": vector_numbers(orjson.loads(result)["embeddings"][0])})


def idle_embed(idle: Idle, _now_ms: int) -> bytes:
    """The answer of `/api/embed` where nothing was to be embedded."""
    return orjson.dumps({"model": idle.model, "embeddings": []})


def idle_embeddings(_idle: Idle, _now_ms: int) -> bytes:
    """The answer of `/api/embeddings` where nothing was to be embedded."""
    return b'{"embedding":[]}'


# --- models -----------------------------------------------------------------------------------------------------------


def tags(names: Iterable[str]) -> bytes:
    """The models, as `/api/tags` lists them."""
    return orjson.dumps({"models": [{**_listed(name), "modified_at": _LONG_AGO} for name in names]})


def running(models: Iterable[tuple[str, int | None]]) -> bytes:
    """The models, as `/api/ps` lists those that are loaded: all of them, for good. (name, context in tokens)."""
    shown: list[JsonObject] = []
    for name, context_tokens in models:
        context = {} if context_tokens is None else {"context_length": context_tokens}
        shown.append({**_listed(name), "expires_at": _FAR_AWAY, "size_vram": 0, **context})
    return orjson.dumps({"models": shown})


def shown(context_tokens: int | None, capabilities: Sequence[str]) -> bytes:
    """What `/api/show` tells of a model: how long its context is, and what it can do, as far as the settings say."""
    info: JsonObject = {"general.architecture": "headrace"}
    if context_tokens is not None:
        info["headrace.context_length"] = context_tokens
    return orjson.dumps(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _DETAILS,
            "model_info": info,
            "capabilities": ["completion", *(_ABILITIES[one] for one in capabilities if one in _ABILITIES)],
            "modified_at": _LONG_AGO,
        }
    )


def version() -> bytes:
    """The body of `/api/version`."""
    return orjson.dumps({"version": API_VERSION})


# Nobody knows the files behind a model here; Ollama's own client needs these keys, and a digest of some length.
_DETAILS: Final[JsonObject] = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def _listed(name: str) -> JsonObject:
    # Ollama's names always have a tag; both ways of writing them are understood.
    full = name if ":" in name.rpartition("/")[2] else name + LATEST
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": full, "model": full, "size": 0, "digest": digest, "details": _DETAILS}
