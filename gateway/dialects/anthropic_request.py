"""Anthropic's Messages API on its way in: a request for a message becomes a chat completion's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.anthropic_messages import mark_of, messages_of, missing, system_of
from gateway.dialects.anthropic_schema import COUNT_TOKENS_BODY, MESSAGES_BODY, MessagesBody
from gateway.dialects.bounded import is_list, is_object, read_object
from gateway.dialects.chat_schema import MAX_MESSAGES, MAX_TOOLS_ELSEWHERE, ChatBody, check
from gateway.dialects.names import ANTHROPIC
from gateway.dialects.openai import ChatRequest, chat_request

SCHEMA_NAME: Final = "answer"
DISABLED: Final = "disabled"
# Up to so many tokens of thinking a request counts as one for little of it; above the second as one for much.
LOW_EFFORT_TOKENS: Final = 4_096
MEDIUM_EFFORT_TOKENS: Final = 16_384

_OWN: Final = frozenset(MessagesBody.__annotations__)
# OpenAI's names mean nothing here: who mixes the two up is told.
NOT_OURS: Final = frozenset(ChatBody.__annotations__) - _OWN
# What only Anthropic's own machines could honour, and what asks for no more than thrift or speed of them.
_DROPPED: Final = frozenset(
    {
        *("context_management", "diagnostics", "inference_geo", "speed", "betas"),
        *("compaction", "billing_policy", "fallback_credit_token", "container", "mcp_servers", "service_tier"),
    }
)
_AS_THEY_ARE: Final = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k", "thinking")


# --- the request ------------------------------------------------------------------------------------------------------


def parse_message(raw: bytes) -> ChatRequest:
    """The chat completion that a request for a message stands for. Raises BadRequest naming the field and the limit."""
    return _request(_read(raw, MESSAGES_BODY))


def parse_count(raw: bytes) -> ChatRequest:
    """What a request to count tokens is about. Raises BadRequest naming the field and the limit."""
    document = _read(raw, COUNT_TOKENS_BODY)
    document.pop("stream", None)
    return _request(document)


def schemas_of(document: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The parts of a request in which names are free, each with the field it stands in: schemas and tools' input."""
    for index, tool in enumerate(_objects(document.get("tools"))):
        if is_object(schema := tool.get("input_schema")):
            yield f"tools[{index}].input_schema", schema
        yield from ((f"tools[{index}].input_examples", one) for one in _objects(tool.get("input_examples")))
    config = document.get("output_config")
    form = config.get("format") if is_object(config) else None
    for name, one in (("output_config.format", form), ("output_format", document.get("output_format"))):
        if is_object(one) and is_object(schema := one.get("schema")):
            yield f"{name}.schema", schema
    for message in _objects(document.get("messages")):
        for block in _objects(message.get("content")):
            if is_object(given := block.get("input")):
                yield "messages.input", given


def _objects(value: Any) -> Iterator[JsonObject]:
    return (one for one in value if is_object(one)) if is_list(value) else iter(())


def _read(raw: bytes, body: Any) -> JsonObject:
    document = read_object(raw, schemas_of)
    for name, most in (("messages", MAX_MESSAGES), ("tools", MAX_TOOLS_ELSEWHERE)):
        # Before the rest, which would look at each of them first.
        if is_list(value := document.get(name)) and len(value) > most:
            raise BadRequest(f"{name}: at most {most} entries, {len(value)} were given.", param=name)
    if document.get("thread") is not None:
        # A turn of one brings its own messages alone. Anthropic's clients, told so by this code, send all of them.
        raise BadRequest("thread: no conversation is kept here.", param="thread", code="thread_unsupported_request")
    for name in document:
        if name in NOT_OURS:
            raise BadRequest(f"{name}: there is no such field here.", param=name)
    check(body, document)
    return document


def _request(document: JsonObject) -> ChatRequest:
    body: JsonObject = {name: value for name, value in document.items() if name not in _OWN and name not in _DROPPED}
    body.update({name: document[name] for name in _AS_THEY_ARE if document.get(name) is not None})
    body["messages"] = [*system_of(document.get("system")), *messages_of(document["messages"])]
    body.update(_tools(document))
    body.update(_output(document))
    body.update(mark_of(document))
    if stops := document.get("stop_sequences"):
        body["stop"] = stops
    metadata: JsonObject = document.get("metadata") or {}
    if user := metadata.get("user_id"):
        body["user"] = user
    try:
        chat = chat_request(body, wide=True)
    except BadRequest as error:
        raise _in_our_words(error) from None
    return replace(chat, dialect=ANTHROPIC, asked=_asked(document))


def _asked(document: JsonObject) -> JsonObject:
    """What the answer depends on beside the completion."""
    asked: JsonObject = {}
    if stops := document.get("stop_sequences"):
        asked["stop_sequences"] = stops
    thinking: JsonObject = document.get("thinking") or {}
    if kind := thinking.get("type"):
        asked["thinking"] = DISABLED if kind == DISABLED else thinking.get("display") or "summarized"
    return asked


_WORDS: Final = (
    (re.compile(r"\.function\.parameters"), ".input_schema"),
    (re.compile(r"response_format\.json_schema\.schema"), "output_config.format.schema"),
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"^user\b"), "metadata.user_id"),
    # Messages are numbered otherwise there.
    (re.compile(r"^messages\[\d+\][^:\s]*"), "messages"),
)


def _in_our_words(error: BadRequest) -> BadRequest:
    """The completion's fault, its field named as it stands in this request."""
    failure = error.failure
    message, param = failure.message, failure.param
    for theirs, ours in _WORDS:
        message = theirs.sub(ours, message)
        param = theirs.sub(ours, param) if param else param
    return BadRequest(message, param=param, code=failure.code)


# --- tools and format -------------------------------------------------------------------------------------------------


def _tools(document: JsonObject) -> JsonObject:
    tools: list[JsonObject] = document.get("tools") or []
    choice: JsonObject = document.get("tool_choice") or {}
    if not tools:
        if choice.get("type") in ("any", "tool"):
            raise BadRequest("tool_choice: allowed only when tools are given.", param="tool_choice")
        return {}
    body: JsonObject = {"tools": [_tool(tool) for tool in tools]}
    if choice:
        body["tool_choice"] = _choice(choice, {tool["name"] for tool in tools})
    if choice.get("disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False
    return body


def _tool(tool: JsonObject) -> JsonObject:
    function: JsonObject = {"name": tool["name"], "parameters": tool["input_schema"]}
    for name in ("description", "strict", "input_examples"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function, **mark_of(tool)}


def _choice(choice: JsonObject, names: set[str]) -> str | JsonObject:
    kind: str = choice["type"]
    if kind != "tool":
        return {"any": "required"}.get(kind, kind)
    if "name" not in choice:
        raise missing("tool_choice.name")
    if choice["name"] not in names:
        raise BadRequest("tool_choice.name: none of the tools has this name.", param="tool_choice.name")
    return {"type": "function", "function": {"name": choice["name"]}}


def _output(document: JsonObject) -> JsonObject:
    """How much to think, or to do at all, and in which form to answer.

    Anthropic's own servers get the effort in their own words: to others it can only say how much to think.
    """
    config: JsonObject = document.get("output_config") or {}
    effort: str | None = config.get("effort")
    body: JsonObject = {"output_config": {"effort": effort}} if effort else {}
    if effort := effort or _effort(document.get("thinking") or {}):
        body["reasoning_effort"] = {"max": "xhigh"}.get(effort, effort)
    # `output_format` is the word of its beta, which SDKs still say.
    if form := config.get("format") or document.get("output_format"):
        named = {"name": SCHEMA_NAME, "strict": True, "schema": form["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


def _effort(thinking: JsonObject) -> str | None:
    """A budget of thinking in OpenAI's words; None where none was asked for."""
    budget_tokens = thinking.get("budget_tokens")
    if thinking.get("type") != "enabled" or budget_tokens is None:
        return None
    return (
        "low" if budget_tokens <= LOW_EFFORT_TOKENS else "medium" if budget_tokens <= MEDIUM_EFFORT_TOKENS else "high"
    )
