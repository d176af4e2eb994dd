"""A conversation as input items and as chat messages, made of each other; an item has the same id for good. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby
from typing import Any, Final

from common.contracts import Job, JsonObject
from common.errors import BadRequest
from gateway.dialects.bounded import is_list
from gateway.dialects.responses_schema import kind_of

ITEM_ID: Final = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f]{32})_((?:in)?[0-9]{1,9})")
"""Whose items we know: the digits of the response, and the item's place in it, `in…` in its input."""
_KINDS: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_ITEMS: Final = "items"
_CALLS: Final = "tool_calls"


def response_item_id(job_id: str, kind: str, number: int | str) -> str:
    """An item's id: the same for every reader."""
    return f"{kind}_{job_id[-32:]}_{number}"


class Known(dict[str, Any]):
    """An item that came from an earlier response, and not from the caller: it keeps its id."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an item comes from: `response`, its digits, is empty for the request's own; then `place` is so too.

    `length`: how many characters of its message's text are the item's; 0 where all are.
    """

    response: str = ""
    place: str = ""
    length: int = 0

    @property
    def is_said(self) -> bool:
        """Whether a response said it, and no caller."""
        return self.place.isdecimal()

    def entry(self) -> str:
        """It as a text, without its response."""
        return f"{self.place}:{self.length}" if self.length else self.place

    @classmethod
    def of(cls, item: JsonObject, length: int = 0) -> Origin:
        """An item's origin."""
        found = ITEM_ID.fullmatch(item["id"]) if isinstance(item, Known) else None
        return cls(found[1], found[2], length) if found else cls(length=length)


@dataclass(slots=True)
class _Turn:
    """A message that is being made. `pieces`: its text, where more than one item are; joined when all are there."""

    message: JsonObject
    texts: list[Origin]
    calls: list[Origin] = field(default_factory=list[Origin])
    pieces: list[str] = field(default_factory=list[str])

    def reopened(self) -> _Turn:
        """One like it that may be changed."""
        calls = {_CALLS: [*self.message[_CALLS]]} if self.message.get(_CALLS) else {}
        return _Turn({**self.message, **calls}, [*self.texts], [*self.calls])

    def is_empty(self) -> bool:
        """Whether it says nothing; it may call."""
        return not self.message.get("content") and not self.message.get("refusal")


@dataclass(frozen=True, slots=True)
class Turns:
    """Chat messages, and where each of the items comes from that they stand for: in each the texts, then the calls."""

    turns: list[_Turn] = field(default_factory=list[_Turn])

    @property
    def messages(self) -> list[JsonObject]:
        """The chat messages."""
        return [turn.message for turn in self.turns]

    @property
    def origins(self) -> list[Origin]:
        """Of each item."""
        return [one for turn in self.turns for one in (*turn.texts, *turn.calls)]

    def asked(self) -> JsonObject:
        """What a job has to keep of the origins."""
        origins = self.origins
        if not any(one.response or one.length for one in origins):
            return {}
        groups = groupby(origins, key=lambda one: one.response)
        return {_ITEMS: [[response, [one.entry() for one in group]] for response, group in groups]}


# --- items to messages ------------------------------------------------------------------------------------------------


def turns_of(given: str | list[JsonObject], before: Turns | None = None) -> Turns:
    """The turns that checked input stands for, after those before. Raises BadRequest where it holds no message."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if all(kind_of(item) == "reasoning" for item in items):
        raise BadRequest("input: holds no message.", param="input")
    return gone_on(before or Turns(), items)


def gone_on(before: Turns, items: Sequence[JsonObject]) -> Turns:
    """The turns before and those that the items stand for. Raises BadRequest where one is but a reference.

    What one turn of the assistant says and calls is one message. Reasoning is not passed on: few servers take it back.
    """
    turns = [*before.turns]
    turns[-1:] = [turn.reopened() for turn in turns[-1:]]
    for item in items:
        _add_item(turns, item)
    for turn in turns:
        if turn.pieces:
            turn.message["content"], turn.pieces = "".join(turn.pieces), []
    return Turns(turns)


def check_calls(messages: Sequence[JsonObject]) -> None:
    """Raises BadRequest where a tool's output answers no call, or a call has none: no model could go on from there."""
    made: dict[str, None] = {}
    answered: set[str] = set()
    for message in messages:
        made |= dict.fromkeys(call["id"] for call in message.get("tool_calls") or ())
        if message["role"] == "tool":
            call_id: str = message["tool_call_id"]
            if call_id not in made:
                text = f"No tool call found for function call output with call_id {call_id[:128]}."
                raise BadRequest(text, param="input")
            answered.add(call_id)
    for call_id in made:
        if call_id not in answered:
            raise BadRequest(f"No tool output found for function call {call_id[:128]}.", param="input")


def _add_item(turns: list[_Turn], item: JsonObject) -> None:
    match kind_of(item):
        case "message" if item["role"] == "assistant":
            _add_said(turns, item)
        case "message":
            turns.append(_Turn({"role": item["role"], "content": _content(item["content"])}, [Origin.of(item)]))
        case "function_call":
            _add_call(turns, item)
        case "function_call_output":
            content = _content(item["output"])
            message = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
            turns.append(_Turn(message, [Origin.of(item)]))
        case "item_reference":
            raise BadRequest("input: items of type 'item_reference' are not available here.", param="input")
        case _:
            pass


def _add_said(turns: list[_Turn], item: JsonObject) -> None:
    said, origin = _said(item["content"]), Origin.of(item)
    last = turns[-1] if turns and turns[-1].message["role"] == "assistant" else None
    if last is None:
        turns.append(_Turn({"role": "assistant", **said}, [origin]))
    elif said == {"content": ""}:
        pass
    elif last.is_empty():
        last.message |= said
        last.texts = [origin]
    elif _is_text(last.message) and _is_text(said) and _goes_on(last, origin):
        _join(last, origin, said["content"])
    elif last.calls:
        # What was said first goes before: nothing may stand between calls and their outputs.
        turns[-1:] = [*_apart(last), _Turn({"role": "assistant", **said, _CALLS: last.message[_CALLS]}, [origin])]
        turns[-1].calls = last.calls
    else:
        turns.append(_Turn({"role": "assistant", **said}, [origin]))


def _goes_on(last: _Turn, origin: Origin) -> bool:
    """Whether a text belongs to the text before: the next that a response said, or one of a caller around a call."""
    before = last.texts[-1]
    if before.response != origin.response or before.is_said != origin.is_said:
        return False
    return int(before.place) < int(origin.place) if origin.is_said else bool(last.calls)


def _join(last: _Turn, origin: Origin, text: str) -> None:
    last.pieces = last.pieces or [last.message["content"]]
    if len(last.texts) == 1:
        last.texts = [replace(last.texts[0], length=len(last.pieces[0]))]
    last.texts.append(replace(origin, length=len(text)))
    last.pieces.append(text)


def _apart(turn: _Turn) -> Iterator[_Turn]:
    """What a turn says, without its calls: texts of a caller, that were one only around those, are messages again."""
    message = {name: value for name, value in turn.message.items() if name != _CALLS}
    if len(turn.texts) == 1 or turn.texts[0].is_said:
        yield _Turn(message, turn.texts, pieces=turn.pieces)
        return
    texts = _texts("".join(turn.pieces) or message["content"], iter(turn.texts))
    for origin, text in texts:
        yield _Turn({**message, "content": text}, [replace(origin, length=0)])


def _is_text(message: JsonObject) -> bool:
    return bool(message.get("content")) and type(message["content"]) is str and not message.get("refusal")


def _said(content: str | list[JsonObject]) -> JsonObject:
    """An assistant's content: a refusal stands beside a text, as servers know it."""
    match content:
        case []:
            return {"content": ""}
        case [{"type": "refusal", "refusal": refusal}]:
            return {"content": "", **({"refusal": refusal} if refusal else {})}
        case [{"type": "input_text" | "output_text", "text": text}, {"type": "refusal", "refusal": refusal}]:
            return {"content": text, **({"refusal": refusal} if refusal else {})}
        case _:
            return {"content": _content(content)}


def _add_call(turns: list[_Turn], item: JsonObject) -> None:
    function = {"name": item["name"], "arguments": item["arguments"]}
    if not turns or turns[-1].message["role"] != "assistant":
        turns.append(_Turn({"role": "assistant", "content": None}, []))
    last = turns[-1]
    if last.is_empty():
        last.message["content"], last.texts = None, []
    call = {"id": item["call_id"], "type": "function", "function": function}
    last.message.setdefault(_CALLS, []).append(call)
    last.calls.append(Origin.of(item))


def _content(content: str | list[JsonObject]) -> Any:
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    # Plain text goes everywhere; parts do not.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: JsonObject) -> JsonObject:
    match part["type"]:
        case "input_image":
            # Unsaid it means the same; an item that is listed has to say it.
            detail = {"detail": part["detail"]} if part.get("detail") not in (None, "", "auto") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_file":
            file = {name: part[name] for name in ("filename", "file_data") if part.get(name) is not None}
            return {"type": "file", "file": file}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}


# --- messages to items ------------------------------------------------------------------------------------------------


_Pairs = list[tuple[Origin, JsonObject]]


def input_turns(job: Job) -> Turns:
    """The turns that a response was made from, but for its instructions; what it goes on from is among them."""
    return Turns([_turn(message, pairs) for message, pairs in zip(_spoken(job), _pairs(job), strict=True)])


def input_items(job: Job) -> list[JsonObject]:
    """The items that the response was made from, the oldest first; what it goes on from is among them."""
    return [_named(*pair) for message in _pairs(job) for pair in _as_said(message)]


def _pairs(job: Job) -> list[_Pairs]:
    """Each message's items with their origins: its texts, then its calls."""
    own = job.id[-32:]
    numbers = count()
    found: list[Origin] = []
    for response, entries in job.asked.get(_ITEMS) or ():
        for entry in entries:
            place, _, length = entry.partition(":")
            found.append(Origin(response or own, place or f"in{next(numbers)}", int(length or 0)))
    origins = chain(found, (Origin(own, f"in{number}") for number in numbers))
    return [[*_items(message, origins)] for message in _spoken(job)]


def _turn(message: JsonObject, pairs: _Pairs) -> _Turn:
    texts, calls = _texts_and_calls(pairs)
    return _Turn(message, [origin for origin, _ in texts], [origin for origin, _ in calls])


def _texts_and_calls(pairs: _Pairs) -> tuple[_Pairs, _Pairs]:
    calls = sum(1 for _, item in pairs if item["type"] == "function_call")
    return pairs[: len(pairs) - calls], pairs[len(pairs) - calls :]


def _as_said(pairs: _Pairs) -> _Pairs:
    """One message's items in an order that makes it again: as a response said them; else texts around a call."""
    texts, calls = _texts_and_calls(pairs)
    if len({origin.response for origin, _ in pairs}) == 1 and all(origin.is_said for origin, _ in pairs):
        places = [[int(origin.place) for origin, _ in some] for some in (texts, calls)]
        if all(some == sorted(some) for some in places):
            return sorted(pairs, key=lambda pair: int(pair[0].place))
    return [*texts[:1], *calls[:1], *texts[1:], *calls[1:]]


def _named(origin: Origin, item: JsonObject) -> JsonObject:
    return {"id": f"{_KINDS[item['type']]}_{origin.response}_{origin.place}", **item, "status": "completed"}


def _spoken(job: Job) -> list[JsonObject]:
    messages: list[JsonObject] = job.body["messages"]
    return messages[1:] if job.asked.get("instructed") else messages


def _items(message: JsonObject, origins: Iterator[Origin]) -> Iterator[tuple[Origin, JsonObject]]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        yield (
            next(origins),
            {
                "type": "function_call_output",
                "call_id": message["tool_call_id"],
                "output": _shown(content, said=False) if is_list(content) else content,
            },
        )
        return
    if content or message.get("refusal") or not message.get("tool_calls"):
        for origin, text in _texts(content, origins):
            parts = _shown(text, said=role == "assistant")
            if refusal := message.get("refusal"):
                parts = [*(parts if text else ()), {"type": "refusal", "refusal": refusal}]
            yield origin, {"type": "message", "role": role, "content": parts}
    for call in message.get("tool_calls") or ():
        yield next(origins), {"type": "function_call", "call_id": call["id"], **call["function"]}


def _texts(content: Any, origins: Iterator[Origin]) -> Iterator[tuple[Origin, Any]]:
    """A message's content, in the pieces that are items of their own."""
    origin, begin = next(origins), 0
    while origin.length and type(content) is str and len(content) > begin + origin.length:
        yield origin, content[begin : begin + origin.length]
        begin += origin.length
        origin = next(origins)
    yield origin, content[begin:] if begin else content


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
