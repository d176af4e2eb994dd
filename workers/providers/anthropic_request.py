"""Our request in Anthropic's shapes: turns made of blocks, a system text of its own, tools, how much to think. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from common.contracts import UNTITLED, JsonObject
from common.errors import UpstreamUnsupported
from common.thoughts import Thought, in_order, thoughts_of
from workers.providers.base import Call
from workers.providers.shapes import (
    SYSTEM_ROLES,
    CalledTool,
    Message,
    body_of,
    cache_mark,
    choice_of,
    common_refusals,
    conversation_of,
    limit_of,
    media_of,
    merged,
    refuse,
    schema_of,
    stops_of,
    text_of,
    tools_of,
)
from workers.providers.turns import digest
from workers.providers.wire import is_object

# The API wants a limit always; this is what a caller who names none gets, unless `options.max_tokens` says more.
DEFAULT_MAX_TOKENS: Final = 4_096
LEAST_BUDGET: Final = 1_024
_BUDGETS: Final = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "xhigh": 32_768, "max": 32_768}
_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_OF_TOOLS: Final = ("description", "strict", "input_examples")
_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_JSON_ONLY: Final = "Answer with one JSON object and nothing else."


def to_wire(call: Call) -> JsonObject:
    """The body for `/v1/messages`. Raises UpstreamRefused for what that API can't do."""
    body = body_of(call)
    refuse("Anthropic's API", {"n": body.get("n") not in (None, 1), **common_refusals(body)})
    messages = conversation_of(body)
    wire: JsonObject = {
        "model": call.model,
        "messages": _turns(messages),
        "stream": call.stream,
        "max_tokens": limit_of(body) or call.backend.options.get("max_tokens") or DEFAULT_MAX_TOKENS,
        **_system(messages, body),
        **_tools(body),
    }
    if stops := [text for text in stops_of(body) if text.strip()]:
        wire["stop_sequences"] = stops
    if isinstance(user := body.get("user"), str):
        wire["metadata"] = {"user_id": user}
    if schema := schema_of(body):
        wire["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    wire.update(_thinking(wire, body, call, may=_may_think(wire, messages)))
    _exert(wire, body, call)
    thinks = wire.get("thinking", {}).get("type", "disabled") != "disabled"
    return {**wire, **cache_mark(body), **({} if thinks else _sampling(body))}


def _sampling(body: JsonObject) -> JsonObject:
    """Newer models take temperature or top_p, not both; the one that was turned on purpose is kept."""
    sampling = {"top_k": body["top_k"]} if "top_k" in body else {}
    heat = body.get("temperature")
    if isinstance(heat, int | float):
        return {**sampling, "temperature": min(heat, 1)}  # its scale ends where others' is in the middle
    return {**sampling, "top_p": body["top_p"]} if "top_p" in body else sampling


def _thinking(wire: JsonObject, body: JsonObject, call: Call, *, may: bool) -> JsonObject:
    """How much is to be thought first. `options.thinking`: adaptive (the default), budget (older models), off.

    `may`: thinking by a budget is not refused here.
    """
    own, mode = body.get("thinking"), _mode(call)
    if mode == "off":
        return {}
    limited = limit_of(body) is not None
    if is_object(own):
        return _own_thinking(wire, own, limited=limited) if may or own.get("type") != "enabled" else {}
    # An effort in Anthropic's own words is not about thinking alone, and turns none on.
    if not may or body.get("reasoning_effort") not in _BUDGETS or _own_effort(body):
        return {}
    if mode == "adaptive":
        return {"thinking": {"type": "adaptive", "display": "summarized"}}
    return _granted(wire, _BUDGETS[body["reasoning_effort"]], limited=limited)


def _mode(call: Call) -> str:
    return call.backend.options.get("thinking", "adaptive")


def _own_effort(body: JsonObject) -> str | None:
    config = body.get("output_config")
    effort = config.get("effort") if is_object(config) else None
    return effort if isinstance(effort, str) and effort else None


def _exert(wire: JsonObject, body: JsonObject, call: Call) -> None:
    """Adds the effort, for models that know it; the caller's own word for it goes before what it was taken for."""
    effort = _own_effort(body)
    # A budget says it already, and is what the effort was made of where an Anthropic client asks.
    if effort is None and wire.get("thinking", {}).get("type", "enabled") != "enabled":
        effort = _EFFORTS.get(str(body.get("reasoning_effort")))
    if effort is not None and _mode(call) == "adaptive":
        wire["output_config"] = {**wire.get("output_config", {}), "effort": effort}


def _own_thinking(wire: JsonObject, own: JsonObject, *, limited: bool) -> JsonObject:
    """What the caller says in Anthropic's words; its budget is on top of a limit that is ours."""
    budget = own.get("budget_tokens")
    if limited or type(budget) is not int or budget <= 0:
        return {"thinking": own}
    return {"thinking": own, "max_tokens": wire["max_tokens"] + budget}


def _granted(wire: JsonObject, budget: int, *, limited: bool) -> JsonObject:
    """A budget inside the caller's limit, or on top of ours; none where too little would be left of it."""
    most: int = wire["max_tokens"] + (0 if limited else budget)
    budget = min(budget, most - 1)
    thinking = {"thinking": {"type": "enabled", "budget_tokens": budget}} if budget >= LEAST_BUDGET else {}
    return {**thinking, "max_tokens": most}


def _may_think(wire: JsonObject, messages: list[Message]) -> bool:
    """Not with a forced tool; and a turn that called tools must begin with its own signed thoughts."""
    if wire.get("tool_choice", {}).get("type") in ("any", "tool"):
        return False
    last = next((message for message in reversed(messages) if message.role not in ("tool", "system")), None)
    return last is None or not last.calls or any(thought.is_first for thought in _thoughts(last))


def _system(messages: list[Message], body: JsonObject) -> JsonObject:
    blocks = [block for message in messages if message.role in SYSTEM_ROLES for block in _texts(message)]
    if schema_of(body) == {}:
        blocks.append({"type": "text", "text": _JSON_ONLY})
    return {"system": blocks} if blocks else {}


def _texts(message: Message) -> list[JsonObject]:
    text_of(message)
    return [block for part in message.parts for block in _blocks(part, message.place)]


def _turns(messages: list[Message]) -> list[JsonObject]:
    spoken = (message for message in messages if message.role not in SYSTEM_ROLES)
    turns = merged((("assistant" if message.role == "assistant" else "user"), _said(message)) for message in spoken)
    return [{"role": role, "content": blocks} for role, blocks in turns]


def _said(message: Message) -> list[JsonObject]:
    blocks = [block for part in message.parts for block in _blocks(part, message.place)]
    if message.role == "tool":
        failed = {"is_error": True} if message.failed else {}
        called = _id_of(str(message.whole.get("tool_call_id") or ""))
        result = {"type": "tool_result", "tool_use_id": called, "content": blocks}
        return [{**result, **failed, **cache_mark(message.whole)}]
    thoughts = _thoughts(message)
    return _in_order(thoughts, message) if thoughts else [*blocks, *map(_called, message.calls)]


def _in_order(thoughts: list[Thought], message: Message) -> list[JsonObject]:
    """The turn's blocks as they were said: Anthropic takes no thoughts back that stand elsewhere than they did."""
    texts = [part for part in message.parts if part["type"] == "text"]
    media = [part for part in message.parts if part["type"] != "text"]
    blocks = [block for part in media for block in _blocks(part, message.place)]
    said = _Texts(texts)
    for piece in in_order(thoughts, sum(len(part["text"]) for part in texts), len(message.calls)):
        if isinstance(piece, Thought):
            blocks.append(piece.block())
        elif isinstance(piece, slice):
            blocks += [block for part in said.cut(piece) for block in _blocks(part, message.place)]
        else:
            blocks.append(_called(message.calls[piece]))
    return blocks


class _Texts:
    """A message's text parts, of which stretches are taken from its beginning to its end, each part once."""

    __slots__ = ("_at", "_begins", "_parts")

    def __init__(self, parts: list[JsonObject]) -> None:
        self._parts = parts
        self._at = 0
        self._begins = 0

    def cut(self, stretch: slice) -> Iterator[JsonObject]:
        """The parts that hold this stretch, none before the last; a mark for caching stays where its part ends."""
        while self._at < len(self._parts) and self._begins < stretch.stop:
            part = self._parts[self._at]
            text: str = part["text"]
            start, end = max(stretch.start - self._begins, 0), min(stretch.stop - self._begins, len(text))
            if start < end:
                yield part if end - start == len(text) else _piece(part, start, end)
            if end < len(text):  # its rest is for another stretch
                return
            self._at += 1
            self._begins += len(text)


def _piece(part: JsonObject, start: int, end: int) -> JsonObject:
    text: str = part["text"]
    return {"type": "text", "text": text[start:end], **(cache_mark(part) if end == len(text) else {})}


def _called(call: CalledTool) -> JsonObject:
    call_id, mark = _id_of(call.id), cache_mark(call.whole)
    return {"type": "tool_use", "id": call_id, "name": call.name, "input": call.arguments, **mark}


def _id_of(given: str) -> str:
    """A call's id as this API takes it: others have colons and dots in theirs."""
    return given if _ID.fullmatch(given) else f"toolu_{digest(given, 24)}"


def _thoughts(message: Message) -> list[Thought]:
    """The thoughts of a turn, where its caller kept what proves them: without they are not taken back.

    They are no text where the answer told none of them (`display: omitted`): then all of it is in the signature.
    """
    return [thought for thought in thoughts_of(message.whole) if thought.proof]


def _blocks(part: JsonObject, place: str) -> Iterator[JsonObject]:
    """The part as a block, with the caller's mark for caching; none for a blank text, which would be refused."""
    mark = cache_mark(part)
    if part["type"] == "text":
        if part["text"].strip():
            yield {"type": "text", "text": part["text"], **mark}
        return
    media = media_of(part, f"{place}.content")
    if media.media_type.startswith("audio/"):
        raise UpstreamUnsupported("Anthropic's API takes no audio.", param=f"{place}.content")
    kind = "image" if part["type"] == "image_url" else "document"
    source = {"type": "base64", "media_type": media.media_type, "data": media.data}
    yield {"type": kind, "source": {"type": "url", "url": media.url} if media.url else source, **_title(part), **mark}


def _title(part: JsonObject) -> JsonObject:
    """A file's name, which the model is shown; none where the gateway had to name it."""
    file = part.get("file")
    name = file.get("filename") if is_object(file) else None
    return {"title": name} if isinstance(name, str) and name not in ("", UNTITLED) else {}


def _tools(body: JsonObject) -> JsonObject:
    tools = [_tool(function) for function in tools_of(body)]
    if not tools:
        return {}
    choice = choice_of(body)
    kind = {"required": "tool" if choice.name else "any", "none": "none"}.get(choice.mode or "", "auto")
    told: JsonObject = {"type": kind, "name": choice.name} if choice.name else {"type": kind}
    if body.get("parallel_tool_calls") is False and kind != "none":
        told["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": told} if choice.mode or len(told) > 1 else {"tools": tools}


def _tool(function: JsonObject) -> JsonObject:
    tool: JsonObject = {"name": function["name"], "input_schema": {"type": "object", **function["parameters"]}}
    kept = {key: function[key] for key in _OF_TOOLS if function.get(key) is not None}
    return {**tool, **kept, **cache_mark(function)}
