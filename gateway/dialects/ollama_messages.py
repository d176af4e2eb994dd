"""Ollama's conversations as OpenAI's: pictures become parts, and calls and results find each other by ids."""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from common.contracts import JsonObject
from common.errors import BadRequest


def messages_of(messages: list[JsonObject]) -> Iterator[JsonObject]:
    """The chat messages that checked ones of Ollama's stand for. Raises BadRequest for a picture that is none."""
    calls = _Calls()
    for index, message in enumerate(messages):
        role, place = message["role"], f"messages[{index}]"
        content = content_of(message.get("content") or "", message.get("images"), f"{place}.images")
        if role == "assistant":
            yield _assistant(message, content, calls)
        elif role == "tool":
            name = message.get("tool_name")
            call_id = calls.result(name, message.get("tool_call_id"))
            yield {"role": role, "content": content, "tool_call_id": call_id, **({"name": name} if name else {})}
        else:
            yield {"role": role, "content": content}


def content_of(text: str, images: list[str] | None, place: str) -> str | list[JsonObject]:
    """A message's content: its text, with pictures as parts. `place`: the pictures' field. Raises BadRequest."""
    if not images:
        return text
    parts: list[JsonObject] = [{"type": "text", "text": text}] if text else []
    return parts + [_picture(image, f"{place}[{number}]") for number, image in enumerate(images)]


class _Calls:
    """The ids of the tool calls of one conversation: Ollama's messages may lack them, OpenAI's may not."""

    def __init__(self) -> None:
        self._made = 0
        self._known: set[str] = set()
        # The tools of those that are not answered yet, the first ones first; the ids of each tool's, answered ones too.
        self._open: dict[str, str] = {}
        self._by_tool: dict[str, deque[str]] = {}

    def call(self, name: str, given: str | None) -> str:
        """The id of the next call."""
        call_id = given or self._new()
        self._known.add(call_id)
        self._open[call_id] = name
        self._by_tool.setdefault(name, deque()).append(call_id)
        return call_id

    def result(self, name: str | None, given: str | None) -> str:
        """The id of the call that a result belongs to: its own, or that of the first open call (of this tool)."""
        found = given or (self._first_of(name) if name else next(iter(self._open), None))
        if found is None:
            return self._new()
        self._open.pop(found, None)
        return found

    def _first_of(self, tool: str) -> str | None:
        ids = self._by_tool.get(tool, deque())
        while ids and self._open.get(ids[0]) != tool:
            ids.popleft()
        return ids[0] if ids else None

    def _new(self) -> str:
        self._made += 1
        while (made := f"call_{self._made}") in self._known:
            self._made += 1
        return made


def _assistant(message: JsonObject, content: Any, calls: _Calls) -> JsonObject:
    said: JsonObject = {"role": "assistant", "content": content}
    if message.get("thinking"):
        said["reasoning_content"] = message["thinking"]
    if message.get("tool_calls"):
        said["content"] = content or None
        said["tool_calls"] = [_called(call, calls) for call in message["tool_calls"]]
    return said


def _called(call: JsonObject, calls: _Calls) -> JsonObject:
    function: JsonObject = call["function"]
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    return {
        "id": calls.call(function["name"], call.get("id")),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _picture(image: str, place: str) -> JsonObject:
    """An image part around base64. Raises BadRequest for what is none, or no picture of a kind that is known."""
    try:
        kind = _kind(binascii.a2b_base64(image, strict_mode=True)[:12])
    except (ValueError, binascii.Error):
        raise BadRequest(f"{place}: must be base64, without a 'data:' prefix.", param=place) from None
    if kind is None:
        raise BadRequest(f"{place}: must be a PNG, JPEG, GIF or WebP image.", param=place)
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}


def _kind(begin: bytes) -> str | None:
    """A picture's kind by its first twelve bytes."""
    # Sounds and films begin with RIFF, too.
    if begin.startswith(b"RIFF"):
        return "webp" if begin[8:] == b"WEBP" else None
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
    return next((name for magic, name in kinds.items() if begin.startswith(magic)), None)
