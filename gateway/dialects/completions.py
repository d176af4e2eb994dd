"""OpenAI's older completions: each prompt becomes a chat of one user message, and its answer a text again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Final, Required

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import Failure, Job, JsonObject, Outcome, Position
from common.errors import BadRequest
from common.queue import Place
from gateway.dialects.bounded import is_list, is_object, read_object
from gateway.dialects.chat_schema import (
    MAX_N,
    Label,
    Penalty,
    Stop,
    Stops,
    StreamOptions,
    TokenLimit,
    check,
    check_length,
)
from gateway.dialects.names import COMPLETIONS
from gateway.dialects.openai import ChatRequest, ChunkShape, chat_request, schemas_of
from gateway.dialects.shape import EVENT_STREAM
from gateway.errors import error_object

ENDPOINT: Final = "/v1/completions"
DEFAULT_TOKENS: Final = 16
"""OpenAI's limit of this endpoint's answers, where the request names none."""
MAX_LOGPROBS: Final = 5
MAX_PROMPTS: Final = 64
"""Each is a job."""

_OWN: Final = ("prompt", "suffix", "echo", "logprobs", "best_of")
FIELDS_OF_CHATS: Final = ("messages", "tools", "tool_choice", "functions", "function_call", "top_logprobs")
# What the chat that a prompt becomes calls otherwise.
_PLACES: Final = {"messages": "prompt", "max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}
_REASONS: Final = {"length": "length", "content_filter": "content_filter"}

Prompts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]


@with_config(ConfigDict(strict=True, extra="ignore"))
class CompletionsBody(TypedDict, total=False):
    """OpenAI's request for a completion. Prompts as text; the rest is the chat completion's."""

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    prompt: Required[Annotated[str | Prompts, Field(union_mode="left_to_right")]]
    suffix: str | None
    echo: bool | None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None
    max_tokens: TokenLimit | None
    stream: bool | None
    stream_options: StreamOptions | None
    stop: Annotated[Stop | Stops | None, Field(union_mode="left_to_right")]
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None
    user: Label | None


COMPLETIONS_BODY: Final = TypeAdapter(CompletionsBody)


# --- in ---------------------------------------------------------------------------------------------------------------


def parse_completions(raw: bytes) -> list[ChatRequest]:
    """The chat requests that a body of `/v1/completions` stands for, one for each prompt. Raises BadRequest."""
    return completions_requests(read_object(raw, schemas_of))


def completions_request(asked: JsonObject) -> ChatRequest:
    """The one chat request of an object that `read_object` gave. Raises BadRequest, also for several prompts."""
    requests = completions_requests(asked)
    if len(requests) > 1:
        text = "prompt: one text is expected here; send several prompts as requests of their own."
        raise BadRequest(text, param="prompt")
    return requests[0]


def completions_requests(asked: JsonObject) -> list[ChatRequest]:
    """The chat requests of an object that `read_object` gave, one for each prompt. Raises BadRequest."""
    _check_prompts(asked.get("prompt"))
    if type(asked.get("max_tokens")) in (int, float) and asked["max_tokens"] == 0:
        text = "max_tokens: must be at least 1: a prompt is asked as a chat here, whose answer has a token or more."
        raise BadRequest(text, param="max_tokens")
    check(COMPLETIONS_BODY, asked)
    _check_supported(asked)
    prompts: list[str] = asked["prompt"] if is_list(asked["prompt"]) else [asked["prompt"]]
    body = {name: value for name, value in asked.items() if name not in _OWN}
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = DEFAULT_TOKENS
    if asked.get("logprobs") is not None:
        body |= {"logprobs": True, "top_logprobs": asked["logprobs"]}
    repeated: JsonObject = {"echo": True} if asked.get("echo") else {}
    if len(prompts) > 1:
        # So that the same idempotency key with one prompt more, less or changed is known for another request.
        repeated["together"] = sha256(orjson.dumps(prompts)).hexdigest()[:32]
    return [_request(body, prompt, place, repeated) for place, prompt in enumerate(prompts)]


def _request(body: JsonObject, prompt: str, place: int, repeated: JsonObject) -> ChatRequest:
    """The chat request for the prompt at this place among those of its request."""
    request = chat_request({**body, "messages": [{"role": "user", "content": prompt}]})
    first = {"first_index": place * request.answers} if place else {}
    return replace(request, dialect=COMPLETIONS, asked=repeated | first)


def told(failure: Failure) -> Failure:
    """The failure of a job with its field as it is called here, and with none that nobody has here."""
    param = failure.param or ""
    first = re.split(r"[.\[]", param, maxsplit=1)[0]
    if first in _PLACES:
        place = _PLACES[first]
        return replace(failure, message=failure.message.replace(param, place), param=place)
    known = first in CompletionsBody.__annotations__ or failure.param is None
    return failure if known else replace(failure, param=None)


def _check_prompts(given: Any) -> None:
    """Before the rest, which would look at each of many thousand entries first. Raises BadRequest.

    Tokens belong to a tokenizer that is the model's own, and would have to be turned back into text by it.
    """
    if not is_list(given):
        return
    if given and type(given[0]) is str:
        check_length("prompt", given, MAX_PROMPTS)
    if not all(type(entry) is str for entry in given):
        raise BadRequest("prompt: texts are expected; send tokens as the text that they stand for.", param="prompt")


def _check_supported(asked: JsonObject) -> None:
    """Raises BadRequest for what a chat can't give."""
    if asked.get("suffix"):
        raise BadRequest("suffix: not supported: a chat model can't fill in the middle.", param="suffix")
    if asked.get("best_of") not in (None, asked.get("n") or 1):
        raise BadRequest("best_of: not supported, unless it is n: ask for n choices and choose.", param="best_of")
    if asked.get("echo") and asked.get("logprobs") is not None:
        raise BadRequest("logprobs: not available with echo: a prompt's are not known.", param="logprobs")
    for name in FIELDS_OF_CHATS:
        if asked.get(name) is not None:
            raise BadRequest(f"{name}: belongs to /v1/chat/completions.", param=name)


# --- out --------------------------------------------------------------------------------------------------------------


def completion_id(job_id: str) -> str:
    """OpenAI's id for a job's completion: the same for every reader and every attempt."""
    return f"cmpl-{job_id[-32:]}"


def text_completion(job: Job, created_s: int, result: bytes) -> bytes:
    """The body of an answer that is not streamed, around the job's result."""
    stored: JsonObject = orjson.loads(result)
    echoed = _echoed(job)
    first = _first_index(job)
    choices = [_whole_choice(choice, echoed, first) for choice in stored["choices"]]
    return orjson.dumps({**stored, **_head(job, created_s), "choices": choices})


def joined(answers: Sequence[tuple[Job, int, bytes]]) -> bytes:
    """The body of an answer to several prompts: (job, when it was accepted in s, result) of each, in their order."""
    wholes: list[JsonObject] = [orjson.loads(text_completion(*answer)) for answer in answers]
    choices = [choice for whole in wholes for choice in whole["choices"]]
    usage = together([whole["usage"] for whole in wholes])
    return orjson.dumps({**wholes[0], "choices": choices, "usage": usage})


def together(usages: Sequence[JsonObject]) -> JsonObject:
    """The usages of several answers as that of one: numbers are added up, whatever else there is counts where it is."""
    summed: JsonObject = {}
    for usage in usages:
        for name, value in usage.items():
            known = summed.get(name)
            if is_object(value):
                summed[name] = together([known or {}, value])
            elif type(value) in (int, float) and type(known) in (int, float):
                summed[name] = known + value
            else:
                summed[name] = value if known is None else known or value
    return summed


def _head(job: Job, created_s: int) -> JsonObject:
    return {"id": completion_id(job.id), "object": "text_completion", "created": created_s, "model": job.model}


def _echoed(job: Job) -> str:
    """The prompt, where the answer begins with it."""
    return job.body["messages"][0]["content"] if job.asked.get("echo") else ""


def _first_index(job: Job) -> int:
    """The number of the job's first choice: those of the prompts before it have the lower ones."""
    return job.asked.get("first_index", 0)


def _whole_choice(choice: JsonObject, echoed: str, first: int) -> JsonObject:
    text = echoed + _text(choice["message"])
    return _choice(choice, text, _logprobs(choice, 0), first)


def _choice(choice: JsonObject, text: str, logprobs: JsonObject | None, first: int) -> JsonObject:
    reason = choice.get("finish_reason")
    shown = _REASONS.get(reason, "stop") if reason else None
    return {"index": first + choice["index"], "text": text, "logprobs": logprobs, "finish_reason": shown}


def _text(said: JsonObject) -> str:
    return (said.get("content") or "") + (said.get("refusal") or "")


def _logprobs(choice: JsonObject, offset: int) -> JsonObject | None:
    """The older form of log probabilities: lists side by side. `offset`: where in the text the first token begins."""
    told: JsonObject = choice.get("logprobs") or {}
    entries: list[JsonObject] = told.get("content") or []
    if not entries:
        return None
    offsets: list[int] = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    top = [{one["token"]: one["logprob"] for one in entry.get("top_logprobs") or ()} for entry in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": top,
        "text_offset": offsets,
    }


class TextShape:
    """Makes the chunks of one stream. They bear no `id:`: a job's events can be followed, but as chat chunks."""

    __slots__ = ("_chat", "_echoed", "_first", "_include_usage", "_lengths", "_prefix")

    media_type: ClassVar[str] = EVENT_STREAM
    said_in_order: ClassVar[bool] = False

    def __init__(self, job: Job, created_s: int, *, of: Job | None = None) -> None:
        """`of`: the job that the whole stream bears the name of, where it is another."""
        self._chat = ChunkShape(job.id, created_s, job.model, job.include_usage)
        self._echoed = _echoed(job)
        self._first = _first_index(job)
        self._include_usage = job.include_usage
        self._prefix = b"data: " + orjson.dumps(_head(of or job, created_s))[:-1] + b","
        self._lengths: dict[int, int] = {}

    def opening(self) -> bytes:
        """Nothing: there is no resuming that a client could do by itself."""
        return b""

    def keep_alive(self) -> bytes:
        """A comment."""
        return self._chat.keep_alive()

    def waiting(self, place: Place) -> bytes:
        """The job's place in the queue, as a comment."""
        return self._chat.waiting(place)

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """A chunk for each that says something."""
        return b"".join([self._event(orjson.loads(event)["choices"]) for event in events])

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """Usage, where it was asked for, and the last word."""
        return self.last_words(outcome.usage and outcome.usage.to_openai())

    def last_words(self, usage: JsonObject | None) -> bytes:
        """This usage, where it was asked for, and the last word."""
        told = self._frame({"choices": [], "usage": usage}) if self._include_usage and usage is not None else b""
        return told + b"data: [DONE]\n\n"

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The one event that tells of a failure; nothing follows it."""
        return self.error(failure)

    def error(self, failure: Failure) -> bytes:
        """The same, whose position tells nobody anything."""
        return b"data: " + error_object(told(failure)) + b"\n\n"

    def anew(self, begins: Position) -> bytes:
        """An empty chunk with our own word for it: OpenAI never begins an answer anew."""
        self._lengths.clear()
        choice: JsonObject = {"index": self._first, "text": "", "logprobs": None, "finish_reason": None}
        return self._chunk({"choices": [choice], "headrace": {"event": "reset"}})

    def _event(self, choices: list[JsonObject]) -> bytes:
        made = [chosen for choice in choices if (chosen := self._made(choice)) is not None]
        return self._chunk({"choices": made}) if made else b""

    def _made(self, choice: JsonObject) -> JsonObject | None:
        index: int = choice["index"]
        text = _text(choice["delta"])
        if index not in self._lengths:
            self._lengths[index] = 0
            text = self._echoed + text
        logprobs = _logprobs(choice, self._lengths[index])
        self._lengths[index] += len(text)
        if not text and logprobs is None and not choice.get("finish_reason"):
            return None
        return _choice(choice, text, logprobs, self._first)

    def _chunk(self, fields: JsonObject) -> bytes:
        return self._frame({**fields, "usage": None} if self._include_usage else fields)

    def _frame(self, fields: JsonObject) -> bytes:
        return self._prefix + orjson.dumps(fields)[1:] + b"\n\n"


class TextPart(TextShape):
    """Makes the chunks of one prompt's answer among several in one stream, whose end is not its own."""

    __slots__ = ("failure", "outcome")

    def __init__(self, job: Job, created_s: int, *, of: Job | None = None) -> None:
        super().__init__(job, created_s, of=of)
        self.outcome: Outcome | None = None
        self.failure: Failure | None = None

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """Nothing yet: `outcome` keeps it."""
        self.outcome = outcome
        return b""

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """Nothing yet: `failure` keeps it."""
        self.failure = failure
        return b""
