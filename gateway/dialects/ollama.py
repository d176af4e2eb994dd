"""Ollama's requests in: chats, prompts and texts to embed, as the chat completions and embeddings that they ask for."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject
from common.errors import BadRequest, CallerError, ModelNotFound
from gateway.dialects.bounded import is_list, is_object, read_object
from gateway.dialects.chat_schema import (
    MAX_MESSAGES,
    MAX_TOKENS,
    MAX_TOOLS,
    MAX_TOOLS_ELSEWHERE,
    MAX_TOP_LOGPROBS,
    Function,
    FunctionName,
    Label,
    ManyStops,
    Penalty,
    Stop,
    Word,
    check,
)
from gateway.dialects.embeddings import (
    MAX_DIMENSIONS,
    MAX_INPUTS,
    MAX_VALUES,
    EmbeddingsRequest,
    Text,
    embeddings_request,
)
from gateway.dialects.names import OLLAMA_CHAT, OLLAMA_EMBED, OLLAMA_EMBEDDINGS, OLLAMA_GENERATE
from gateway.dialects.ollama_messages import content_of, messages_of
from gateway.dialects.openai import ChatRequest, chat_request

LATEST: Final = ":latest"
MAX_IMAGES: Final = 64

_OPEN: Final = ConfigDict(strict=True, extra="ignore")

# Sampling options that a request for a chat completion has too, most under the same name. What is left out sets up the
# model (`num_ctx`, `num_gpu`, …): that is its backend's row, since a change of it makes Ollama load the model anew.
_OPTIONS: Final = {
    **{name: name for name in ("temperature", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty")},
    **{name: name for name in ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n")},
    "num_predict": "max_tokens",
}
_THEIR_NAMES: Final = {
    **{ours: f"options.{theirs}" for theirs, ours in _OPTIONS.items()},
    "response_format": "format",
    "response_format.json_schema.schema": "format",
}

# What a request for a chat completion has nothing for.
REFUSED_FIELDS: Final = {
    "template": "the model's own template is used",
    "raw": "prompts are always put into the model's template",
    "suffix": "filling in the middle is not available",
    "context": "send the conversation to /api/chat instead",
    "width": "images are not made",
    "height": "images are not made",
    "steps": "images are not made",
}

Model = Annotated[str, Field(min_length=1, max_length=256)]
Images = Annotated[list[str], Field(max_length=MAX_IMAGES, fail_fast=True)]
Format = Annotated[str | dict[str, Any] | None, Field(union_mode="left_to_right")]
Think = Annotated[bool | Word | None, Field(union_mode="left_to_right")]
KeepAlive = Annotated[int | float | Word | None, Field(union_mode="left_to_right")]
FewTexts = Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


# --- what they may hold -----------------------------------------------------------------------------------------------


@with_config(_OPEN)
class OllamaFunction(TypedDict, total=False):
    name: Required[FunctionName]
    arguments: dict[str, Any]


@with_config(_OPEN)
class OllamaCall(TypedDict, total=False):
    id: Label | None
    function: Required[OllamaFunction]


@with_config(_OPEN)
class OllamaMessage(TypedDict, total=False):
    role: Required[Literal["system", "user", "assistant", "tool"]]
    content: str | None
    thinking: str | None
    images: Images | None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    tool_name: Label | None
    tool_call_id: Label | None


@with_config(_OPEN)
class OllamaTool(TypedDict, total=False):
    type: Literal["function"] | None
    function: Required[Function]


@with_config(_OPEN)
class OllamaOptions(TypedDict, total=False):
    """Those that sample, which are the chat's; others are left as they came."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None
    stop: Annotated[Stop | ManyStops | None, Field(union_mode="left_to_right")]
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    num_predict: Annotated[int, Field(le=MAX_TOKENS)] | None


@with_config(_OPEN)
class _Asking(TypedDict, total=False):
    model: Required[Model]
    stream: bool | None
    format: Format
    options: OllamaOptions | None
    keep_alive: KeepAlive
    think: Think
    logprobs: bool | None
    top_logprobs: TopLogprobs | None


@with_config(_OPEN)
class OllamaChatBody(_Asking, total=False):
    """Ollama's request for a chat's next message."""

    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS_ELSEWHERE, fail_fast=True)] | None


@with_config(_OPEN)
class OllamaGenerateBody(_Asking, total=False):
    """Ollama's request for what comes after a prompt."""

    prompt: str | None
    system: str | None
    images: Images | None


@with_config(_OPEN)
class OllamaEmbedBody(TypedDict, total=False):
    """Ollama's request for embeddings."""

    model: Required[Model]
    input: Annotated[str | FewTexts | None, Field(union_mode="left_to_right")]
    truncate: bool | None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None
    options: dict[str, Any] | None
    keep_alive: KeepAlive


@with_config(_OPEN)
class OllamaEmbeddingsBody(TypedDict, total=False):
    """Ollama's older request for one embedding."""

    model: Required[Model]
    prompt: str | None
    options: dict[str, Any] | None
    keep_alive: KeepAlive


@with_config(_OPEN)
class OllamaShowBody(TypedDict, total=False):
    """Ollama's request for what is known of a model; `name` is the older word for `model`."""

    model: Model
    name: Model


CHAT_BODY: Final = TypeAdapter(OllamaChatBody)
GENERATE_BODY: Final = TypeAdapter(OllamaGenerateBody)
EMBED_BODY: Final = TypeAdapter(OllamaEmbedBody)
EMBEDDINGS_BODY: Final = TypeAdapter(OllamaEmbeddingsBody)
SHOW_BODY: Final = TypeAdapter(OllamaShowBody)


@dataclass(frozen=True, slots=True)
class Idle:
    """A request that asks for nothing: by that Ollama loads its model, or unloads it (`unload`). Nothing is done here.

    `model` is the name as it was asked for.
    """

    model: str
    unload: bool = False


# --- models' names ----------------------------------------------------------------------------------------------------


def known_name(asked: str, known: Container[str]) -> str:
    """The model's name here: Ollama's clients may add `:latest` to one without a tag. Raises ModelNotFound."""
    other = asked.removesuffix(LATEST) if asked.endswith(LATEST) else asked + LATEST
    for name in (asked, other):
        if name in known:
            return name
    raise ModelNotFound(f"model '{asked[:128]}' not found", param="model")


# --- chats and prompts ------------------------------------------------------------------------------------------------


def parse_chat(raw: bytes, known: Container[str]) -> ChatRequest | Idle:
    """The chat request in a body of `/api/chat`. Raises BadRequest naming the field, ModelNotFound."""
    asked = read_object(raw, _schemas)
    check(CHAT_BODY, asked)
    _check_format(asked.get("format"))
    if not asked.get("messages"):
        return _idle(asked, known)
    body = _common(asked, known)
    body["messages"] = list(messages_of(asked["messages"]))
    if asked.get("tools"):
        body["tools"] = [{**tool, "type": tool.get("type") or "function"} for tool in asked["tools"]]
    return _request(asked, body, OLLAMA_CHAT)


def parse_generate(raw: bytes, known: Container[str]) -> ChatRequest | Idle:
    """The chat request that a body of `/api/generate` stands for. Raises BadRequest naming the field, ModelNotFound."""
    asked = read_object(raw, _schemas)
    check(GENERATE_BODY, asked)
    _check_format(asked.get("format"))
    for name, reason in REFUSED_FIELDS.items():
        if asked.get(name):
            raise BadRequest(f"{name}: not supported: {reason}.", param=name)
    if not asked.get("prompt") and not asked.get("images"):
        return _idle(asked, known)
    body = _common(asked, known)
    user = {"role": "user", "content": content_of(asked.get("prompt") or "", asked.get("images"), "images")}
    system: list[JsonObject] = [{"role": "system", "content": asked["system"]}] if asked.get("system") else []
    body["messages"] = [*system, user]
    return _request(asked, body, OLLAMA_GENERATE)


def _schemas(asked: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The JSON schemas in a request that was not checked yet, and tool calls' arguments, whose names are as free."""
    if is_object(asked.get("format")):
        yield "format", asked["format"]
    for name, at in (("tools", ("function", "parameters")), ("messages", ())):
        for item in asked[name] if is_list(asked.get(name)) else ():
            if at:
                yield from _object_at(item, *at)
            elif is_object(item) and is_list(item.get("tool_calls")):
                for call in item["tool_calls"]:
                    yield from _object_at(call, "function", "arguments")


def _object_at(here: Any, *path: str) -> Iterator[tuple[str, JsonObject]]:
    for step in path:
        here = here.get(step) if is_object(here) else None
    if is_object(here):
        yield path[-1], here


def _idle(asked: JsonObject, known: Container[str]) -> Idle:
    known_name(asked["model"], known)
    return Idle(asked["model"], unload=asked.get("keep_alive") in (0, "0", "0s", "0m"))


def _common(asked: JsonObject, known: Container[str]) -> JsonObject:
    """What both kinds of request say in the same words."""
    body: JsonObject = {"model": known_name(asked["model"], known), "stream": asked.get("stream") is not False}
    options: JsonObject = asked.get("options") or {}
    for theirs, ours in _OPTIONS.items():
        if options.get(theirs) is not None:
            body[ours] = options[theirs]
    # No limit is written as a number below 1.
    if type(body.get("max_tokens")) is int and body["max_tokens"] < 1:
        del body["max_tokens"]
    for name, value in (("response_format", _response_format(asked.get("format"))), *_thinking(asked.get("think"))):
        if value is not None:
            body[name] = value
    if asked.get("logprobs"):
        body |= {"logprobs": True, "top_logprobs": asked.get("top_logprobs") or 0}
    return body


def _check_format(wanted: Any) -> None:
    if not is_object(wanted) and wanted not in (None, "", "json"):
        raise BadRequest("format: must be 'json' or a JSON schema.", param="format")


def _response_format(wanted: Any) -> JsonObject | None:
    if is_object(wanted):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": wanted}}
    return {"type": "json_object"} if wanted else None


def _thinking(wanted: Any) -> tuple[tuple[str, Any], ...]:
    """A level is OpenAI's word too; on or off is left to servers that know it."""
    return (("reasoning_effort" if isinstance(wanted, str) else "think", wanted),)


def _request(asked: JsonObject, body: JsonObject, dialect: str) -> ChatRequest:
    repeated = _spelling(asked["model"], body["model"])
    if asked.get("think") is False:
        repeated["think"] = False
    try:
        request = chat_request(body, wide=True)
    except CallerError as error:
        raise _in_their_words(error) from None
    return replace(request, dialect=dialect, asked=repeated)


def _spelling(asked: str, name: str) -> JsonObject:
    """The model's name as it was written, where the answer has to repeat that."""
    return {} if asked == name else {"model": asked}


def _in_their_words(error: CallerError) -> CallerError:
    """The fault with its field as Ollama names it."""
    inner = error.failure
    ours = inner.param or ""
    theirs = _THEIR_NAMES.get(ours) or _THEIR_NAMES.get(ours.partition("[")[0])
    if theirs is None:
        return error
    return type(error)(theirs + inner.message.removeprefix(ours), param=theirs, code=inner.code)


# --- embeddings -------------------------------------------------------------------------------------------------------


def parse_embed(raw: bytes, known: Container[str]) -> EmbeddingsRequest | Idle:
    """The request for embeddings in a body of `/api/embed`. Raises BadRequest naming the field, ModelNotFound."""
    asked = read_object(raw, lambda _: (), most_values=MAX_VALUES)
    check(EMBED_BODY, asked)
    return _embedding(asked, asked.get("input"), known, OLLAMA_EMBED)


def parse_embeddings(raw: bytes, known: Container[str]) -> EmbeddingsRequest | Idle:
    """The one in a body of the older `/api/embeddings`. Raises BadRequest naming the field, ModelNotFound."""
    asked = read_object(raw, lambda _: ())
    check(EMBEDDINGS_BODY, asked)
    return _embedding(asked, asked.get("prompt"), known, OLLAMA_EMBEDDINGS)


def _embedding(asked: JsonObject, given: Any, known: Container[str], dialect: str) -> EmbeddingsRequest | Idle:
    if not given:
        return _idle(asked, known)
    # Ollama cuts what is too long unless it is told not to.
    body: JsonObject = {"model": known_name(asked["model"], known), "input": given, "truncate": True}
    for name in ("truncate", "dimensions"):
        if asked.get(name) is not None:
            body[name] = asked[name]
    return replace(embeddings_request(body), dialect=dialect, asked=_spelling(asked["model"], body["model"]))


def shown_model(raw: bytes, known: Container[str]) -> str:
    """The model that a body of `/api/show` asks for, by its name here. Raises BadRequest, ModelNotFound."""
    asked = read_object(raw, lambda _: ())
    check(SHOW_BODY, asked)
    name = asked.get("model") or asked.get("name")
    if name is None:
        raise BadRequest("model: this field is required.", param="model")
    return known_name(name, known)
