"""What APIs want of a conversation's calls: results in the order of their calls, ids of a certain form. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from common.contracts import JsonObject
from workers.providers.wire import is_list, is_object

T = TypeVar("T")


def in_call_order(messages: Sequence[T], raw: Callable[[T], Any]) -> list[T]:
    """The messages, each turn's results in the order of its calls: calls of one tool are told apart by nothing else.

    `raw` gives a message as its caller wrote it. Results of no call in that turn come after the others.
    """
    ordered: list[T] = []
    places: dict[str, int] = {}
    for are_results, group in groupby(messages, lambda message: _is_result(raw(message))):
        some = list(group)
        if are_results:
            some.sort(key=lambda message: places.get(str(raw(message).get("tool_call_id")), len(places)))
        else:
            places = {call_id: place for place, call_id in enumerate(_ids_of(raw(some[-1])))}
        ordered += some
    return ordered


def _is_result(message: Any) -> bool:
    return is_object(message) and message.get("role") in ("tool", "function")


def _ids_of(message: Any) -> list[str]:
    calls = message.get("tool_calls") if is_object(message) else None
    return [str(call.get("id")) if is_object(call) else "" for call in calls] if is_list(calls) else []


def digest(call_id: str, characters: int) -> str:
    """So many letters and digits, at most 64, that stand for an id: the same ones for its call and its result."""
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:characters]


def with_ids_of(characters: int, messages: list[Any]) -> list[Any]:
    """The messages with ids of calls that are so many letters and digits, as Mistral's API insists on."""

    def fitted(thing: Any, name: str) -> Any:
        given = thing.get(name) if is_object(thing) else None
        if not isinstance(given, str) or (len(given) == characters and given.isascii() and given.isalnum()):
            return thing
        return {**thing, name: digest(given, characters)}

    def changed(message: Any) -> Any:
        wire: JsonObject = fitted(message, "tool_call_id")
        if is_object(wire) and is_list(calls := wire.get("tool_calls")):
            return {**wire, "tool_calls": [fitted(call, "id") for call in calls]}
        return wire

    return [changed(message) for message in messages]
