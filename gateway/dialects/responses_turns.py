"""Input items to a conversation of chat messages, which remembers where each item comes from. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from typing import Any, Final

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.responses_schema import kind_of

ITEM_ID: Final = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f]{32})_((?:in)?[0-9]{1,9})")
"""Whose items we know: the digits of the response, and the item's place in it, `in…` in its input."""
ITEMS: Final = "items"
CALLS: Final = "tool_calls"


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
class Turn:
    """A message, and where its items come from. `pieces`: a text of several items, joined when all are there."""

    message: JsonObject
    texts: list[Origin]
    calls: list[Origin] = field(default_factory=list[Origin])
    pieces: list[str] = field(default_factory=list[str])

    def reopened(self) -> Turn:
        """One like it that may be changed."""
        calls = {CALLS: [*self.message[CALLS]]} if self.message.get(CALLS) else {}
        return Turn({**self.message, **calls}, [*self.texts], [*self.calls])

    def is_empty(self) -> bool:
        """Whether it says nothing; it may call."""
        return not self.message.get("content") and not self.message.get("refusal")


@dataclass(frozen=True, slots=True)
class Turns:
    """Chat messages, and where each of the items comes from that they stand for: in each the texts, then the calls."""

    turns: list[Turn] = field(default_factory=list[Turn])

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
        return {ITEMS: [[response, [one.entry() for one in group]] for response, group in groups]}


# --- items to messages ------------------------------------------------------------------------------------------------


def turns_of(given: str | list[JsonObject], before: Turns | None = None) -> Turns:
    """The turns that checked input stands for, after those before. Raises BadRequest where it holds no message."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if all(kind_of(item) == "reasoning" for item in items):
        raise BadRequest("input: holds no message.", param="input")
    return gone_on(before or Turns(), items)


def gone_on(before: Turns, items: Sequence[JsonObject]) -> Turns:
    """The turns before and those that the items stand for. Raises BadRequest where one is but a reference.

    What one turn of the assistant says and calls is one message, and right after it come the outputs of its calls,
    wherever they stood: many servers let nothing between them. Reasoning is not passed on: few take it back.
    """
    going = _Going(before.turns)
    for item in items:
        going.add(item)
    return Turns(going.turns())


def check_calls(messages: Sequence[JsonObject]) -> None:
    """Raises BadRequest where a tool's output answers no call that waits for one, or one still waits at the end.

    No model could go on from there. Some servers count calls from 0 in every answer, so an id may come again.
    """
    waiting: dict[str, int] = {}
    for message in messages:
        for call in message.get(CALLS) or ():
            waiting[call["id"]] = waiting.get(call["id"], 0) + 1
        if message["role"] == "tool":
            call_id: str = message["tool_call_id"]
            if not waiting.get(call_id):
                text = f"No tool call found for function call output with call_id {call_id[:128]}."
                raise BadRequest(text, param="input")
            waiting[call_id] -= 1
    for call_id, calls in waiting.items():
        if calls:
            raise BadRequest(f"No tool output found for function call {call_id[:128]}.", param="input")


class _Going:
    """Turns that items are added to, in groups: a turn, and the outputs that answer its calls."""

    def __init__(self, before: Sequence[Turn]) -> None:
        self._groups: list[list[Turn]] = []
        # Of each call's id the groups of those without an output, the first one first.
        self._waiting: dict[str, list[list[Turn]]] = {}
        for turn in before:
            self._put(turn)
        for group in self._groups[-1:]:
            group[-1] = group[-1].reopened()

    def turns(self) -> list[Turn]:
        """All of them, texts that are one joined."""
        turns = [*chain.from_iterable(self._groups)]
        for turn in turns:
            if turn.pieces:
                turn.message["content"], turn.pieces = "".join(turn.pieces), []
        return turns

    def add(self, item: JsonObject) -> None:
        """Takes a checked item. Raises BadRequest where it is but a reference."""
        match kind_of(item):
            case "message" if item["role"] == "assistant":
                self._add_said(_said(item["content"]), Origin.of(item))
            case "message":
                self._put(Turn({"role": item["role"], "content": _content(item["content"])}, [Origin.of(item)]))
            case "function_call":
                self._add_call(item)
            case "function_call_output":
                content = _content(item["output"])
                message = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
                self._put(Turn(message, [Origin.of(item)]))
            case "item_reference":
                raise BadRequest("input: items of type 'item_reference' are not available here.", param="input")
            case _:
                pass

    def _put(self, turn: Turn) -> None:
        """Takes a turn: an output goes to the first call that waits for it, all else to the end."""
        waiting = self._waiting.get(turn.message["tool_call_id"]) if turn.message["role"] == "tool" else None
        if waiting:
            waiting.pop(0).append(turn)
            return
        self._groups.append([turn])
        for call in turn.message.get(CALLS) or ():
            self._wait(call["id"])

    def _wait(self, call_id: str) -> None:
        self._waiting.setdefault(call_id, []).append(self._groups[-1])

    def _last_said(self) -> Turn | None:
        """The last turn, where it is the assistant's."""
        last = self._groups[-1][-1] if self._groups else None
        return last if last is not None and last.message["role"] == "assistant" else None

    def _add_said(self, said: JsonObject, origin: Origin) -> None:
        last = self._last_said()
        if last is None:
            self._put(Turn({"role": "assistant", **said}, [origin]))
        elif said == {"content": ""}:
            pass
        elif last.is_empty():
            last.message |= said
            last.texts = [origin]
        elif _is_text(last.message) and _is_text(said) and _goes_on(last, origin):
            _join(last, origin, said["content"])
        elif last.calls:
            # What was said first goes before: nothing may stand between calls and their outputs.
            group = self._groups.pop()
            self._groups += [[one] for one in _apart(last)]
            group[:] = [Turn({"role": "assistant", **said, CALLS: last.message[CALLS]}, [origin], last.calls)]
            self._groups.append(group)
        else:
            self._put(Turn({"role": "assistant", **said}, [origin]))

    def _add_call(self, item: JsonObject) -> None:
        last = self._last_said()
        if last is None:
            last = Turn({"role": "assistant", "content": None}, [])
            self._put(last)
        if last.is_empty():
            last.message["content"], last.texts = None, []
        function = {"name": item["name"], "arguments": item["arguments"]}
        last.message.setdefault(CALLS, []).append({"id": item["call_id"], "type": "function", "function": function})
        last.calls.append(Origin.of(item))
        self._wait(item["call_id"])


def _goes_on(last: Turn, origin: Origin) -> bool:
    """Whether a text belongs to the text before: the next that a response said, or one of a caller around a call."""
    before = last.texts[-1]
    if before.response != origin.response or before.is_said != origin.is_said:
        return False
    return int(before.place) < int(origin.place) if origin.is_said else bool(last.calls)


def _join(last: Turn, origin: Origin, text: str) -> None:
    last.pieces = last.pieces or [last.message["content"]]
    if len(last.texts) == 1:
        last.texts = [replace(last.texts[0], length=len(last.pieces[0]))]
    last.texts.append(replace(origin, length=len(text)))
    last.pieces.append(text)


def _apart(turn: Turn) -> Iterator[Turn]:
    """What a turn says, without its calls: texts of a caller, that were one only around those, are messages again."""
    message = {name: value for name, value in turn.message.items() if name != CALLS}
    if len(turn.texts) == 1 or turn.texts[0].is_said:
        yield Turn(message, turn.texts, pieces=turn.pieces)
        return
    texts = texts_of("".join(turn.pieces) or message["content"], iter(turn.texts))
    for origin, text in texts:
        yield Turn({**message, "content": text}, [replace(origin, length=0)])


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


def texts_of(content: Any, origins: Iterator[Origin]) -> Iterator[tuple[Origin, Any]]:
    """A message's content, in the pieces that are items of their own."""
    origin, begin = next(origins), 0
    while origin.length and type(content) is str and len(content) > begin + origin.length:
        yield origin, content[begin : begin + origin.length]
        begin += origin.length
        origin = next(origins)
    yield origin, content[begin:] if begin else content
