"""What other APIs put beside OpenAI's fields of messages and tools: kept from servers that do not know it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from common.contracts import JsonObject
from common.thoughts import BLOCKS, PROOF
from workers.providers.wire import is_list, is_object

# Anthropic's: where a cache may end, that a tool failed, what a tool may be given, what proves its thoughts its own.
_ANTHROPICS: Final = frozenset({"cache_control", "is_error", "input_examples", PROOF, BLOCKS})
# What OpenAI's schema names; a strict server answers 400 to anything else.
_MESSAGE: Final = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"}
)
_CALL: Final = frozenset({"id", "type", "function", "custom"})
_SAYING: Final = ("content", "tool_calls", "function_call", "refusal", "audio")

Kept = Callable[[JsonObject, frozenset[str] | None], JsonObject]
"""A message, part, call or tool with the fields that a server takes; the names are those of OpenAI's, None: all."""


def known_only(options: Mapping[str, Any]) -> Kept:
    """For strict servers: OpenAI's fields, and those that the backend's `options.pass` names."""
    passed: frozenset[str] = frozenset(options.get("pass") or ())

    def kept(thing: JsonObject, known: frozenset[str] | None) -> JsonObject:
        if known is not None:
            return {key: value for key, value in thing.items() if key in known or key in passed}
        dropped = _ANTHROPICS - passed
        return thing if dropped.isdisjoint(thing) else {k: v for k, v in thing.items() if k not in dropped}

    return kept


def unmarked(thing: JsonObject, _known: frozenset[str] | None) -> JsonObject:
    """For servers that take more than OpenAI's fields, and nothing of Anthropic's."""
    if _ANTHROPICS.isdisjoint(thing):
        return thing
    return {key: value for key, value in thing.items() if key not in _ANTHROPICS}


def cleaned(body: JsonObject, kept: Kept) -> JsonObject:
    """The body with messages and tools as `kept` leaves them; what it leaves alone is not copied."""
    changed: JsonObject = {}
    if is_list(messages := body.get("messages")):
        changed["messages"] = [_message(one, kept) if is_object(one) else one for one in messages]
    if is_list(tools := body.get("tools")):
        changed["tools"] = [_tool(one, kept) if is_object(one) else one for one in tools]
    return {**body, **changed}


def failed_text(text: str) -> str:
    """A tool's result that is an error, said in words: most APIs have no other way."""
    if text[:5].lower() == "error":
        return text
    return f"Error: {text}" if text else "Error"


def _message(message: JsonObject, kept: Kept) -> JsonObject:
    wire = kept(message, _MESSAGE)
    content = message.get("content")
    if is_list(content):
        content = _parts(content, kept)
        wire = {**wire, "content": content}
    if is_list(calls := message.get("tool_calls")):
        wire = {**wire, "tool_calls": [kept(call, _CALL) if is_object(call) else call for call in calls]}
    if message.get("is_error"):
        return {**wire, "content": _failed(content)}
    # One that only thought aloud: servers want a text, be it none.
    says = wire.get("role") != "assistant" or any(wire.get(name) is not None for name in _SAYING)
    return wire if says else {**wire, "content": ""}


def _parts(parts: list[Any], kept: Kept) -> Any:
    """The parts. One text that lost a mark is a plain text, which every server takes."""
    wire = [kept(part, None) if is_object(part) else part for part in parts]
    only = wire[0] if len(wire) == 1 else None
    if is_object(only) and only is not parts[0] and only.keys() == {"type", "text"}:
        return only["text"]
    return wire


def _failed(content: Any) -> Any:
    if not is_list(content):
        return failed_text(content if isinstance(content, str) else "")
    first = content[0] if content else None
    if is_object(first) and isinstance(first.get("text"), str):
        return [{**first, "text": failed_text(first["text"])}, *content[1:]]
    return [{"type": "text", "text": failed_text("")}, *content]


def _tool(tool: JsonObject, kept: Kept) -> JsonObject:
    wire = kept(tool, None)
    if is_object(function := wire.get("function")) and (clean := kept(function, None)) is not function:
        return {**wire, "function": clean}
    return wire
