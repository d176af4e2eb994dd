"""Anthropic's turns, made of blocks, as a chat completion's messages; what their media become. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from common.contracts import UNTITLED, JsonObject
from common.errors import BadRequest
from common.thoughts import REDACTED, THINKING, Thought, carried
from gateway.dialects.bounded import is_list, is_object

MAX_ADDRESS_CHARACTERS: Final = 8_192


def system_of(system: str | list[JsonObject] | None) -> list[JsonObject]:
    """The message that says what holds for the whole conversation; none where nothing does."""
    content = system if isinstance(system, str) else _content([_text(block) for block in system or ()])
    return [{"role": "system", "content": content}] if content else []


def messages_of(messages: list[JsonObject]) -> Iterator[JsonObject]:
    """The messages that checked ones of Anthropic's stand for. Raises BadRequest naming the field."""
    for index, message in enumerate(messages):
        content, at = message["content"], f"messages[{index}].content"
        if isinstance(content, str):
            if content:
                yield {"role": message["role"], "content": content}
            elif message["role"] != "assistant":  # whose turn without a word is left out, as one of no blocks is
                raise _empty(at)
        elif message["role"] == "assistant":
            yield from _assistant(content, at)
        else:
            yield from _user(message["role"], content, at)


def _user(role: str, blocks: list[JsonObject], at: str) -> Iterator[JsonObject]:
    """Results first, since they must follow their calls at once; then whatever else the turn says."""
    parts: list[JsonObject] = []
    said = False
    for place, block in _each(blocks, at, (*_MATTER, "tool_result")):
        if block["type"] == "tool_result":
            said = True
            texts, media = _result(block, place)
            parts += media
            failed = {"is_error": True} if block.get("is_error") else {}
            result = {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _content(texts)}
            yield {**result, **failed, **mark_of(block)}
        else:
            parts += _parts(block, place)
    if content := _content(parts):
        yield {"role": role, "content": content}
    elif not said:
        raise _empty(at)


def _result(block: JsonObject, at: str) -> tuple[list[JsonObject], list[JsonObject]]:
    """A tool's result as text parts, and the pictures in it: servers take text only as a tool's answer."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return ([_text({"text": content})] if content else []), []
    texts: list[JsonObject] = []
    media: list[JsonObject] = []
    for place, inner in _each(content, f"{at}.content", _MATTER):
        for part in _parts(inner, place):
            (texts if part["type"] == "text" else media).append(part)
    return texts, media


def _assistant(blocks: list[JsonObject], at: str) -> Iterator[JsonObject]:
    """One message. One of which nothing is left, as of thinking that nobody here can read, is left out."""
    kinds = ("text", THINKING, REDACTED, "tool_use")
    known = [block for _, block in _each(blocks, at, kinds)]
    content = _content([_text(block) for block in known if block["type"] == "text"])
    calls = [_call(block) for block in known if block["type"] == "tool_use"]
    message: JsonObject = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = calls
    if content or calls:
        # Models that think between calls want to find it again; elsewhere it is of use to who signed it alone.
        yield {**message, **carried(list(_thoughts(known)), told=bool(calls))}


def _thoughts(blocks: list[JsonObject]) -> Iterator[Thought]:
    """Each block of thinking, and its place: what was signed is taken back only as it was, and where it was."""
    characters = calls = 0
    for block in blocks:
        match block["type"]:
            case "text":
                characters += len(block["text"])
            case "tool_use":
                calls += 1
            case "thinking":
                yield Thought(block["thinking"], block.get("signature") or "", False, characters, calls)
            case _:
                if data := block.get("data"):
                    yield Thought("", data, True, characters, calls)


def _call(block: JsonObject) -> JsonObject:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function, **mark_of(block)}


_MATTER: Final = ("text", "image", "document", "search_result")
_NEEDED: Final = {
    "text": ("text",),
    "image": ("source",),
    "document": ("source",),
    "search_result": ("source", "title", "content"),
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
                raise missing(f"{place}.{name}")
            if name == "source" and isinstance(block[name], str) != (kind == "search_result"):
                wanted = "a string" if kind == "search_result" else "an object"
                raise BadRequest(f"{place}.source: must be {wanted} here.", param=f"{place}.source")
        yield place, block


def missing(param: str) -> BadRequest:
    """The refusal of a request that lacks a field."""
    return BadRequest(f"{param}: this field is required.", param=param)


def _empty(param: str) -> BadRequest:
    return BadRequest(f"{param}: must not be empty.", param=param)


def _content(parts: list[JsonObject]) -> str | list[JsonObject]:
    """Parts as a message holds them: one text alone is a text, which every server takes."""
    parts = [part for part in parts if part["type"] != "text" or part["text"]]
    if not parts:
        return ""
    alone = len(parts) == 1 and parts[0].keys() == {"type", "text"}
    return parts[0]["text"] if alone else parts


def _text(block: JsonObject) -> JsonObject:
    return {"type": "text", "text": block["text"], **mark_of(block)}


def mark_of(marked: JsonObject) -> JsonObject:
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
            return [{"type": "image_url", "image_url": {"url": url}, **mark_of(block)}]
        case kind:
            parts = _found(block, at) if kind == "search_result" else _document(block, f"{at}.source")
            return [*parts[:-1], {**parts[-1], **mark_of(block)}] if parts else []


def _found(block: JsonObject, at: str) -> list[JsonObject]:
    """What a search found: where, and its texts."""
    return [_text({"text": f"{block['title']} ({block['source']})"}), *_inner(block["content"], f"{at}.content")]


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
    """What it is called, what its caller says of it, and the document."""
    parts = _source(block, at)
    # A file is called by its name.
    ahead = ("context",) if parts[0]["type"] == "file" else ("title", "context")
    return [*(_text({"text": block[name]}) for name in ahead if block.get(name)), *parts]


def _source(block: JsonObject, at: str) -> list[JsonObject]:
    source = block["source"]
    match source["type"]:
        case "text":
            return [{"type": "text", "text": _given(source, "data", at)}]
        case "base64":
            name = block.get("title") or UNTITLED
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
        raise missing(at)
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
            raise missing(f"{place}.source")
        found += _parts(block, place)
    return found


def _data_url(source: JsonObject, at: str) -> str:
    return f"data:{_given(source, 'media_type', at)};base64,{_given(source, 'data', at)}"


def _given(source: JsonObject, name: str, at: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise missing(f"{at}.{name}")
    return value
