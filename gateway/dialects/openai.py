"""OpenAI's wire shapes: a chat request in; completions, stream frames and models out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import orjson

from common.contracts import Failure, JsonObject, Outcome, Position, State, Usage
from common.errors import BadRequest
from common.queue import Place
from common.runs import RUNS
from common.stream import OTHER_MODEL
from common.tokens import MEDIA_TOKENS, MESSAGE_TOKENS, definitions_of, likely_tokens, size_bytes
from gateway.dialects.bounded import check_schema, is_object, read_object
from gateway.dialects.chat_schema import check_chat
from gateway.dialects.prefix import prefix_key
from gateway.dialects.shape import EVENT_STREAM, KEEP_ALIVE, RETRY
from gateway.errors import error_object

# What a request asks for where it names no limit, and nothing is known of the model's answers yet.
DEFAULT_ANSWER_TOKENS: Final = 256
CHAT_ENDPOINT: Final = "/v1/chat/completions"
MAX_SCHEMA_BYTES: Final = 16 * 1024
MAX_SCHEMA_DEPTH: Final = 32
MAX_FIELDS: Final = 100
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_ADDRESS_CHARACTERS: Final = 8_192

# Where self-hosted servers take a schema, a grammar or a pattern: bounded here, and never run by us.
_GUIDES: Final = frozenset(
    {
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
        *("json_schema", "grammar", "regex", "ebnf", "structural_tag"),
    }
)
_MEDIA: Final = ("image_url", "audio_url", "video_url")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion asked for. `body` is what is forwarded: the request without its streaming options.

    `answers`: how many choices; `answer_limit`: the most tokens of each, None where the request names no limit.
    `dialect`: what it came in, '' for this one; `asked`: what the answer in that dialect repeats of the request.
    """

    endpoint: ClassVar[str] = CHAT_ENDPOINT
    streams: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    model: str
    stream: bool
    include_usage: bool
    body: JsonObject
    prompt_tokens: int = 0
    batch_key: str = ""
    answers: int = 1
    answer_limit: int | None = None
    dialect: str = ""
    asked: JsonObject = field(default_factory=dict[str, Any])

    def cost_tokens(self, usual_tokens: float | None = None) -> int:
        """The tokens that it is likely to take, where the model's answers have so many (None: nobody knows)."""
        return self.prompt_tokens + self.answers * self._answer_tokens(usual_tokens)

    def telling(self, usual_tokens: float | None = None) -> int:
        """How many answers will tell how long the model's are: none under a limit that would cut most of them."""
        cut = usual_tokens is not None and self.answer_limit is not None and self.answer_limit < usual_tokens
        return 0 if cut else self.answers

    def _answer_tokens(self, usual_tokens: float | None) -> int:
        if usual_tokens is None:
            return self.answer_limit or DEFAULT_ANSWER_TOKENS
        usual = max(1, math.ceil(usual_tokens))
        return min(usual, self.answer_limit) if self.answer_limit else usual


# --- in ---------------------------------------------------------------------------------------------------------------


def parse_chat(raw: bytes) -> ChatRequest:
    """The chat request in a body. Raises BadRequest naming the field and the limit."""
    return chat_request(read_object(raw, schemas_of))


def chat_request(body: JsonObject, *, wide: bool = False) -> ChatRequest:
    """The chat request in an object that `read_object` gave, which is used up. Raises BadRequest.

    `wide`: it came by an API that allows more tools and stops than OpenAI's.
    """
    if len(body) > MAX_FIELDS:
        raise BadRequest(f"The request has too many fields: at most {MAX_FIELDS}.")
    check_chat(body, wide=wide)
    _check_together(body)
    prompt_tokens = _check_messages(body["messages"]) + _check_definitions(body)
    stream = bool(body.pop("stream", None))
    options: JsonObject = body.pop("stream_options", None) or {}
    return ChatRequest(
        model=body["model"],
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        body=body,
        prompt_tokens=prompt_tokens,
        batch_key=prefix_key(body),
        answers=body.get("n") or 1,
        answer_limit=body.get("max_completion_tokens") or body.get("max_tokens"),
    )


def schemas_of(body: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The JSON schemas in a request that was not checked yet, each with the field it stands in."""
    for name in ("tools", "functions"):
        path = ("function", "parameters") if name == "tools" else ("parameters",)
        for index, item in enumerate(_list(body.get(name))):
            yield from _at(item, f"{name}[{index}]", *path)
    yield from _at(body, "", "response_format", "json_schema", "schema")
    yield from _at(body, "", "response_format", "schema")
    yield from _at(body, "", "structured_outputs", "json")
    yield from _at(body, "", "guided_json")
    yield from _at(body, "", "json_schema")


def _at(here: Any, param: str, *path: str) -> Iterator[tuple[str, JsonObject]]:
    """The object at a path, if there is one."""
    for step in path:
        if not is_object(here):
            return
        here = here.get(step)
    if is_object(here):
        yield ".".join((param, *path)).removeprefix("."), here


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def _check_together(body: JsonObject) -> None:
    """What the fields mean only together. Raises BadRequest."""
    if body.get("stream_options") is not None and not body.get("stream"):
        raise BadRequest("stream_options: allowed only when stream is true.", param="stream_options")
    if not body.get("logprobs") and body.get("top_logprobs") == 0:
        del body["top_logprobs"]  # none of none: not every server knows that this is no fault
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise BadRequest("top_logprobs: allowed only when logprobs is true.", param="top_logprobs")
    choice = body.get("tool_choice")
    if choice is not None and choice not in ("none", "auto") and not body.get("tools"):
        raise BadRequest("tool_choice: allowed only when tools are given.", param="tool_choice")
    form: JsonObject = body.get("response_format") or {}
    if form.get("type") == "json_schema" and "json_schema" not in form:
        raise BadRequest("response_format.json_schema: this field is required.", param="response_format.json_schema")


def _check_definitions(body: JsonObject) -> int:
    """Bounds tools, schemas, guides and metadata; the tokens that they are likely to add to the prompt."""
    if "tools" in body or "functions" in body or "response_format" in body or not _GUIDES.isdisjoint(body):
        for param, schema in schemas_of(body):
            check_schema(param, schema, max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
        for name in _GUIDES.intersection(body):
            check_schema(name, body[name], max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
        for index, tool in enumerate(body.get("tools") or ()):
            if tool["type"] not in tool:
                param = f"tools[{index}].{tool['type']}"
                raise BadRequest(f"{param}: this field is required.", param=param)
            if tool["type"] == "custom" and tool["custom"].get("format"):
                place = f"tools[{index}].custom.format"
                check_schema(place, tool["custom"]["format"], max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
    check_metadata(body.get("metadata"))
    return likely_tokens(len(definitions_of(body)))


def check_metadata(metadata: JsonObject | None) -> None:
    """Raises BadRequest where metadata, which nobody here reads, is too much to carry about."""
    if metadata and len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise BadRequest(f"metadata: at most {MAX_METADATA_BYTES} bytes.", param="metadata")


# --- messages ---------------------------------------------------------------------------------------------------------


def _check_messages(messages: list[JsonObject]) -> int:
    """The tokens that the messages are likely to have. Raises BadRequest for one that lacks what its role needs."""
    text_bytes = media = 0
    for index, message in enumerate(messages):
        content = message.get("content")
        if type(content) is str:
            text_bytes += size_bytes(content)
        elif content:
            part_bytes, part_media = _check_parts(content, index)
            text_bytes += part_bytes
            media += part_media
        elif message["role"] != "assistant" or not _says_something(message):
            param = f"messages[{index}].content"
            raise BadRequest(f"{param}: this field is required.", param=param)
        if message["role"] == "tool" and not message.get("tool_call_id"):
            param = f"messages[{index}].tool_call_id"
            raise BadRequest(f"{param}: this field is required.", param=param)
    return likely_tokens(text_bytes) + len(messages) * MESSAGE_TOKENS + media * MEDIA_TOKENS


def _says_something(message: JsonObject) -> bool:
    """Whether an assistant's message without content has something else to say."""
    return any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio", "reasoning_content"))


def _check_parts(parts: list[JsonObject], index: int) -> tuple[int, int]:
    """How many bytes of text, and how many pictures or sounds, the parts hold. Raises BadRequest."""
    text_bytes = media = 0
    for number, part in enumerate(parts):
        kind: str = part["type"]
        param = f"messages[{index}].content[{number}].{kind}"
        if kind not in part:
            raise BadRequest(f"{param}: this field is required.", param=param)
        if kind == "text":
            text_bytes += size_bytes(part["text"])
        elif kind in _MEDIA:
            media += 1
            _check_address(part[kind]["url"], f"{param}.url")
        elif kind in ("input_audio", "file"):
            media += 1
            if kind == "file":
                _check_file(part[kind], param)
    return text_bytes, media


def _check_file(part: JsonObject, param: str) -> None:
    """Raises BadRequest for a file by id: at the upstream it would be one of the operator's, whoever asks."""
    if part.get("file_id") is not None:
        raise BadRequest(f"{param}.file_id: files by id are not read here; send file_data.", param=f"{param}.file_id")


def _check_address(url: str, param: str) -> None:
    """Raises BadRequest for an address that a model's server should not be made to fetch."""
    if url.startswith("data:"):
        return
    if not url.startswith("https://") or len(url) > MAX_ADDRESS_CHARACTERS:
        raise BadRequest(f"{param}: must begin with https:// or data:.", param=param)


# --- out: streams -----------------------------------------------------------------------------------------------------


def completion_id(job_id: str) -> str:
    """OpenAI's id for a job's answer: the same for every reader and every attempt."""
    return f"chatcmpl-{job_id[-32:]}"


class ChunkShape:
    """Makes frames of one stream. What is the same in each stands ready: a token costs one concatenation.

    `queue_events`: a job's own reader is told of the queue by events. OpenAI's clients take every event for a chunk, so
    their streams get it as a comment.
    """

    __slots__ = ("_named", "_prefix", "_queue_events", "include_usage")

    media_type: ClassVar[str] = EVENT_STREAM
    said_in_order: ClassVar[bool] = False

    def __init__(
        self, job_id: str, created_s: int, model: str, include_usage: bool, *, queue_events: bool = False
    ) -> None:
        self._queue_events = queue_events
        head = {"id": completion_id(job_id), "object": "chat.completion.chunk", "created": created_s}
        usage = b'"usage":null,' if include_usage else b""
        self.include_usage = include_usage
        # For events that name their model, and for the others.
        self._named = b"\ndata: " + orjson.dumps(head)[:-1] + b"," + usage
        self._prefix = b"\ndata: " + orjson.dumps({**head, "model": model})[:-1] + b"," + usage

    def opening(self) -> bytes:
        """How soon to connect again."""
        return RETRY

    def keep_alive(self) -> bytes:
        """A comment."""
        return KEEP_ALIVE

    def waiting(self, place: Place) -> bytes:
        """The job's place in the queue, as an event or a comment."""
        if self._queue_events:
            return b"event: queue\ndata: " + orjson.dumps(queue_object(place)) + b"\n\n"
        wait = b"" if place.wait_ms is None else b" estimated_wait_ms=%d" % place.wait_ms
        return b": queue position=%d%b\n" % (place.position or 0, wait)

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """A chunk for each."""
        fence, first, frame = last.fence, last.seq - len(events) + 1, self.frame
        return b"".join([frame(b"%d-%d" % (fence, first + i), event) for i, event in enumerate(events)])

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """Usage, where it was asked for, and the last word."""
        usage = b"" if resumed or not outcome.usage else self._usage(str(last).encode(), outcome.usage, outcome.model)
        end = end_of_stream(last, outcome, include_usage=self.include_usage)
        return usage + self.done_frame(str(end).encode())

    def frame(self, position: bytes, event: bytes) -> bytes:
        """A chunk. `event` is a JSON object with `choices`, as streams hold it."""
        prefix = self._named if event.startswith(OTHER_MODEL) else self._prefix
        return b"id: " + position + prefix + event[1:] + b"\n\n"

    def usage_frame(self, position: bytes, usage: Usage) -> bytes:
        """The chunk that only tells usage; empty where it was not asked for."""
        return self._usage(position, usage, "")

    def _usage(self, position: bytes, usage: Usage, model: str) -> bytes:
        if not self.include_usage:
            return b""
        event = orjson.dumps({**({"model": model} if model else {}), "choices": [], "usage": usage.to_openai()})
        prefix = (self._named if model else self._prefix).removesuffix(b'"usage":null,')
        return b"id: " + position + prefix + event[1:] + b"\n\n"

    def done_frame(self, position: bytes) -> bytes:
        """The word that the stream is complete."""
        return b"id: " + position + b"\ndata: [DONE]\n\n"

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The one frame that tells of a failure; nothing follows it."""
        name = b"" if position is None else f"id: {position}\n".encode()
        return name + b"data: " + error_object(failure) + b"\n\n"

    def anew(self, begins: Position) -> bytes:
        """The word that the answer begins anew and what came before is void.

        It is an empty chunk too, since OpenAI's clients read every event as a chunk.
        """
        event = b'"choices":[{"index":0,"delta":{},"finish_reason":null}],"headrace":{"event":"reset"}}'
        return f"id: {begins}\nevent: reset".encode() + self._prefix + event + b"\n\n"


def end_of_stream(last: Position, outcome: Outcome | None, *, include_usage: bool) -> Position:
    """The position of the stream's last event, its last entry being at `last`: an entry tells usage and end in two."""
    both = include_usage and outcome is not None and outcome.status is State.SUCCEEDED and outcome.usage is not None
    return Position(last.fence, last.seq + 1) if both else last


def queue_object(place: Place) -> JsonObject:
    """How many jobs go first, and how long that takes at the pace measured; None where nobody knows."""
    return {"position": place.position, "estimated_wait_ms": place.wait_ms}


# --- out: whole answers -----------------------------------------------------------------------------------------------


def completion_object(job_id: str, created_s: int, model: str, result: JsonObject) -> JsonObject:
    """OpenAI's completion around a job's result, with every key that must be there."""
    for choice in result["choices"]:
        choice.setdefault("logprobs", None)
        choice.pop(RUNS, None)
        message = choice["message"]
        message.setdefault("content", None)
        message.setdefault("refusal", None)
    head = {"id": completion_id(job_id), "object": "chat.completion", "created": created_s, "model": model}
    return {**result, **head}


def completion(job_id: str, created_s: int, model: str, result: JsonObject) -> bytes:
    """The body of an answer that is not streamed."""
    return orjson.dumps(completion_object(job_id, created_s, model, result))


def model_object(name: str) -> bytes:
    """One model, as OpenAI shows it."""
    return orjson.dumps(_model(name))


def model_list(names: list[str]) -> bytes:
    """The models, as OpenAI lists them."""
    return orjson.dumps({"object": "list", "data": [_model(name) for name in names]})


def _model(name: str) -> JsonObject:
    # Nobody knows when an open model was made; OpenAI's clients only need a number.
    return {"id": name, "object": "model", "created": 0, "owned_by": "headrace"}
