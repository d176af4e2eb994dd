"""Anthropic's Messages API on its way in: a request for a message becomes a chat completion's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

import orjson

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.anthropic_schema import COUNT_TOKENS_BODY, MESSAGES_BODY, MessagesBody
from gateway.dialects.bounded import is_list, is_object, read_object
from gateway.dialects.chat_schema import MAX_MESSAGES, MAX_TOOLS, ChatBody, check
from gateway.dialects.openai import ChatRequest, chat_request

DIALECT: Final = "anthropic"
MAX_ADDRESS_CHARACTERS: Final = 8_192
SCHEMA_NAME: Final = "answer"
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
    if is_object(form) and is_object(schema := form.get("schema")):
        yield "output_config.format.schema", schema
    for message in _objects(document.get("messages")):
        for block in _objects(message.get("content")):
            if is_object(given := block.get("input")):
                yield "messages.input", given


def _objects(value: Any) -> Iterator[JsonObject]:
    return (one for one in value if is_object(one)) if is_list(value) else iter(())


def _read(raw: bytes, body: Any) -> JsonObject:
    document = read_object(raw, schemas_of)
    for name, most in (("messages", MAX_MESSAGES), ("tools", MAX_TOOLS)):
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
    body["messages"] = [*_system(document.get("system")), *_messages(document["messages"])]
    body.update(_tools(document))
    body.update(_output(document))
    body.update(_mark(document))
    if stops := document.get("stop_sequences"):
        body["stop"] = stops
    metadata: JsonObject = document.get("metadata") or {}
    if user := metadata.get("user_id"):
        body["user"] = user
    try:
        chat = chat_request(body)
    except BadRequest as error:
        raise _in_our_words(error) from None
    return replace(chat, dialect=DIALECT, asked=_asked(document))


def _asked(document: JsonObject) -> JsonObject:
    """What the answer depends on beside the completion."""
    asked: JsonObject = {}
    if stops := document.get("stop_sequences"):
        asked["stop_sequences"] = stops
    thinking: JsonObject = document.get("thinking") or {}
    # Who does not ask for thoughts gets none, even of models that always think: so Anthropic documents it.
    if thinking.get("type", "disabled") != "disabled":
        asked["thinking"] = thinking.get("display") or "summarized"
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


# --- messages ---------------------------------------------------------------------------------------------------------


def _system(system: str | list[JsonObject] | None) -> list[JsonObject]:
    content = system if isinstance(system, str) else _content([_text(block) for block in system or ()])
    return [{"role": "system", "content": content}] if content else []


def _messages(messages: list[JsonObject]) -> Iterator[JsonObject]:
    for index, message in enumerate(messages):
        content, at = message["content"], f"messages[{index}].content"
        if isinstance(content, str):
            if not content:
                raise BadRequest(f"{at}: this field is required.", param=at)
            yield {"role": message["role"], "content": content}
        elif message["role"] == "assistant":
            yield from _assistant(content, at)
        else:
            yield from _user(message["role"], content, at)


def _user(role: str, blocks: list[JsonObject], at: str) -> Iterator[JsonObject]:
    """Results first, since they must follow their calls at once; then whatever else the turn says."""
    parts: list[JsonObject] = []
    said = False
    for place, block in _each(blocks, at, ("text", "image", "document", "tool_result")):
        if block["type"] == "tool_result":
            said = True
            texts, media = _result(block, place)
            parts += media
            failed = {"is_error": True} if block.get("is_error") else {}
            result = {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _content(texts)}
            yield {**result, **failed, **_mark(block)}
        else:
            parts += _parts(block, place)
    if content := _content(parts):
        yield {"role": role, "content": content}
    elif not said:
        raise BadRequest(f"{at}: this field is required.", param=at)


def _result(block: JsonObject, at: str) -> tuple[list[JsonObject], list[JsonObject]]:
    """A tool's result as text parts, and the pictures in it: servers take text only as a tool's answer."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return ([_text({"text": content})] if content else []), []
    texts: list[JsonObject] = []
    media: list[JsonObject] = []
    for place, inner in _each(content, f"{at}.content", ("text", "image", "document")):
        for part in _parts(inner, place):
            (texts if part["type"] == "text" else media).append(part)
    return texts, media


def _assistant(blocks: list[JsonObject], at: str) -> Iterator[JsonObject]:
    """One message. One of which nothing is left, as of thinking that nobody here can read, is left out."""
    kinds = ("text", "thinking", "redacted_thinking", "tool_use")
    known = list(_each(blocks, at, kinds))
    content = _content([_text(block) for _, block in known if block["type"] == "text"])
    calls = [_call(block) for _, block in known if block["type"] == "tool_use"]
    message: JsonObject = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = calls
        # Models that think between calls want to find it again; elsewhere it is of no more use.
        message.update(_thoughts([block for _, block in known if block["type"] == "thinking"]))
    if content or calls:
        yield message


def _thoughts(blocks: list[JsonObject]) -> JsonObject:
    """What was thought, with its signature where it is one text, since that fits no other."""
    text = "".join(block["thinking"] for block in blocks)
    if len(blocks) == 1 and (signature := blocks[0].get("signature")):
        return {"reasoning_content": text, "reasoning_signature": signature}
    return {"reasoning_content": text} if text else {}


def _call(block: JsonObject) -> JsonObject:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function, **_mark(block)}


_NEEDED: Final = {
    "text": ("text",),
    "image": ("source",),
    "document": ("source",),
    "thinking": ("thinking",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}


def _each(blocks: Iterable[JsonObject], at: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, JsonObject]]:
    """The blocks, each with its place. Raises BadRequest for one that may not stand here or lacks what it needs."""
    for number, block in enumerate(blocks):
        kind, place = block["type"], f"{at}[{number}]"
        if kind not in kinds:
            raise BadRequest(f"{place}.type: must be one of {', '.join(kinds)} here.", param=f"{place}.type")
        for name in _NEEDED.get(kind, ()):
            if block.get(name) is None or (name == "tool_use_id" and not block[name]):
                raise _missing(f"{place}.{name}")
        yield place, block


def _missing(param: str) -> BadRequest:
    return BadRequest(f"{param}: this field is required.", param=param)


def _content(parts: list[JsonObject]) -> str | list[JsonObject]:
    """Parts as a message holds them: one text alone is a text, which every server takes."""
    parts = [part for part in parts if part["type"] != "text" or part["text"]]
    if not parts:
        return ""
    alone = len(parts) == 1 and parts[0].keys() == {"type", "text"}
    return parts[0]["text"] if alone else parts


def _text(block: JsonObject) -> JsonObject:
    return {"type": "text", "text": block["text"], **_mark(block)}


def _mark(marked: JsonObject) -> JsonObject:
    """The mark that a cache may end here, which only Anthropic's servers get; nothing without one."""
    mark = marked.get("cache_control")
    if not is_object(mark):
        return {}
    told = {name: mark[name] for name in ("type", "ttl") if isinstance(mark.get(name), str)}
    return {"cache_control": told} if "type" in told else {}


# --- media ------------------------------------------------------------------------------------------------------------


def _parts(block: JsonObject, at: str) -> list[JsonObject]:
    """What a block becomes among a message's parts. Raises BadRequest."""
    match block["type"]:
        case "text":
            return [_text(block)]
        case "image":
            url = _image(block["source"], f"{at}.source")
            return [{"type": "image_url", "image_url": {"url": url}, **_mark(block)}]
        case _:
            parts = _document(block, f"{at}.source")
            return [*parts[:-1], {**parts[-1], **_mark(block)}] if parts else []


def _image(source: JsonObject, at: str) -> str:
    if source["type"] == "base64":
        return _data_url(source, at)
    if source["type"] != "url":
        raise BadRequest(f"{at}.type: must be base64 or url here.", param=f"{at}.type")
    url = source.get("url")
    # The model's server will fetch it, if anybody does.
    if not isinstance(url, str) or not url.startswith("https://") or len(url) > MAX_ADDRESS_CHARACTERS:
        raise BadRequest(f"{at}.url: must begin with https://.", param=f"{at}.url")
    return url


def _document(block: JsonObject, at: str) -> list[JsonObject]:
    source = block["source"]
    match source["type"]:
        case "text":
            return [{"type": "text", "text": _given(source, "data", at)}]
        case "base64":
            name = block.get("title") or "document"
            return [{"type": "file", "file": {"filename": name, "file_data": _data_url(source, at)}}]
        case "content":
            return _inner(source.get("content"), f"{at}.content")
        case _:
            raise BadRequest(f"{at}.type: must be base64, text or content here.", param=f"{at}.type")


def _inner(content: Any, at: str) -> list[JsonObject]:
    """A document's own blocks: texts and pictures."""
    if isinstance(content, str) and content:
        return [_text({"text": content})]
    if not is_list(content) or not content:
        raise _missing(at)
    found: list[JsonObject] = []
    for number, block in enumerate(content):
        place = f"{at}[{number}]"
        if not is_object(block) or block.get("type") not in ("text", "image"):
            raise BadRequest(f"{place}.type: must be text or image here.", param=f"{place}.type")
        if block["type"] == "text":
            found.append({"type": "text", "text": _given(block, "text", place)})
            continue
        source = block.get("source")
        if not is_object(source) or not isinstance(source.get("type"), str):
            raise _missing(f"{place}.source")
        found += _parts(block, place)
    return found


def _data_url(source: JsonObject, at: str) -> str:
    return f"data:{_given(source, 'media_type', at)};base64,{_given(source, 'data', at)}"


def _given(source: JsonObject, name: str, at: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise _missing(f"{at}.{name}")
    return value


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
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function, **_mark(tool)}


def _choice(choice: JsonObject, names: set[str]) -> str | JsonObject:
    kind: str = choice["type"]
    if kind != "tool":
        return {"any": "required"}.get(kind, kind)
    if "name" not in choice:
        raise _missing("tool_choice.name")
    if choice["name"] not in names:
        raise BadRequest("tool_choice.name: none of the tools has this name.", param="tool_choice.name")
    return {"type": "function", "function": {"name": choice["name"]}}


def _output(document: JsonObject) -> JsonObject:
    """How much to think, and in which form to answer."""
    config: JsonObject = document.get("output_config") or {}
    body: JsonObject = {}
    if effort := config.get("effort") or _effort(document.get("thinking") or {}):
        body["reasoning_effort"] = {"max": "xhigh"}.get(effort, effort)
    if form := config.get("format"):
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
