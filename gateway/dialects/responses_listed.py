"""A stored conversation's chat messages to the items that it was made from; an item has the same id for good. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final

import orjson

from common.contracts import Job, JsonObject
from common.errors import BadRequest
from gateway.dialects.bounded import is_list
from gateway.dialects.responses_turns import CALLS, ITEMS, Origin, Turn, Turns, texts_of

_KINDS: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


@dataclass(slots=True)
class Listed:
    """An item of a stored conversation, made only where somebody asks for it. `said`: its text, parts or call."""

    kind: str
    origin: Origin
    message: JsonObject
    said: Any

    @property
    def id(self) -> str:
        """The item's, for good."""
        return f"{_KINDS[self.kind]}_{self.origin.response}_{self.origin.place}"

    def made(self) -> JsonObject:
        """The item."""
        return {"id": self.id, "type": self.kind, **self._fields(), "status": "completed"}

    def _fields(self) -> JsonObject:
        match self.kind:
            case "function_call":
                return {"call_id": self.said["id"], **self.said["function"]}
            case "function_call_output":
                output = _shown(self.said, said=False) if is_list(self.said) else self.said
                return {"call_id": self.message["tool_call_id"], "output": output}
            case _:
                role, refusal = self.message["role"], self.message.get("refusal")
                parts = _shown(self.said, said=role == "assistant")
                if refusal:
                    parts = [*(parts if self.said else ()), {"type": "refusal", "refusal": refusal}]
                return {"role": role, "content": parts}


def input_turns(job: Job) -> Turns:
    """The turns that a response was made from, but for its instructions; what it goes on from is among them."""
    return Turns([_turn(message, items) for message, items in zip(_spoken(job), _by_message(job), strict=True)])


def listed(job: Job) -> list[Listed]:
    """The items that the response was made from, the oldest first; what it goes on from is among them."""
    return [one for items in _by_message(job) for one in _as_said(items)]


def items_page(job: Job, most: int, *, descending: bool, after: str | None) -> bytes:
    """A page of them as JSON, in the order that is asked for. Raises BadRequest where `after` is none of them."""
    items = listed(job)[:: -1 if descending else 1]
    start = 0
    if after is not None:
        start = 1 + next((place for place, one in enumerate(items) if one.id == after), len(items))
        if start > len(items):
            raise BadRequest("after: there is no such item.", param="after")
    shown = [one.made() for one in items[start : start + most]]
    ends = {"first_id": shown[0]["id"] if shown else "", "last_id": shown[-1]["id"] if shown else ""}
    return orjson.dumps({"object": "list", "data": shown, **ends, "has_more": len(items) > start + most})


def _by_message(job: Job) -> list[list[Listed]]:
    """Each message's items: its texts, then its calls."""
    own = job.id[-32:]
    numbers = count()
    found: list[Origin] = []
    for response, entries in job.asked.get(ITEMS) or ():
        for entry in entries:
            place, _, length = entry.partition(":")
            found.append(Origin(response or own, place or f"in{next(numbers)}", int(length or 0)))
    origins = chain(found, (Origin(own, f"in{number}") for number in numbers))
    return [[*_items(message, origins)] for message in _spoken(job)]


def _turn(message: JsonObject, items: list[Listed]) -> Turn:
    texts, calls = _texts_and_calls(items)
    return Turn(message, [one.origin for one in texts], [one.origin for one in calls])


def _texts_and_calls(items: list[Listed]) -> tuple[list[Listed], list[Listed]]:
    calls = sum(1 for one in items if one.kind == "function_call")
    return items[: len(items) - calls], items[len(items) - calls :]


def _as_said(items: list[Listed]) -> list[Listed]:
    """One message's items in an order that makes it again: as a response said them; else texts around a call."""
    if len(items) < 2:
        return items
    texts, calls = _texts_and_calls(items)
    if len({one.origin.response for one in items}) == 1 and all(one.origin.is_said for one in items):
        places = [[int(one.origin.place) for one in some] for some in (texts, calls)]
        if all(some == sorted(some) for some in places):
            return sorted(items, key=lambda one: int(one.origin.place))
    return [*texts[:1], *calls[:1], *texts[1:], *calls[1:]]


def _spoken(job: Job) -> list[JsonObject]:
    messages: list[JsonObject] = job.body["messages"]
    return messages[1:] if job.asked.get("instructed") else messages


def _items(message: JsonObject, origins: Iterator[Origin]) -> Iterator[Listed]:
    content = message.get("content")
    if message["role"] == "tool":
        yield Listed("function_call_output", next(origins), message, content)
        return
    if content or message.get("refusal") or not message.get(CALLS):
        for origin, text in texts_of(content, origins):
            yield Listed("message", origin, message, text)
    for call in message.get(CALLS) or ():
        yield Listed("function_call", next(origins), message, call)


def _shown(content: Any, *, said: bool) -> list[JsonObject]:
    parts: list[JsonObject] = content if is_list(content) else [{"type": "text", "text": content or ""}]
    return [_shown_part(part, said=said) for part in parts]


def _shown_part(part: JsonObject, *, said: bool) -> JsonObject:
    match part["type"]:
        case "image_url":
            return {"type": "input_image", "detail": "auto", "image_url": part["image_url"]["url"]} | {
                name: value for name, value in part["image_url"].items() if name == "detail"
            }
        case "file":
            return {"type": "input_file", **part["file"]}
        case "text" if said:
            return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
        case "text":
            return {"type": "input_text", "text": part["text"]}
        case _:
            return part
