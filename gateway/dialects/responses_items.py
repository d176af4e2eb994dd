"""A response's output items as they grow, with the events that tell of each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any, Final

from common.contracts import JsonObject
from gateway.dialects.arguments import call_of
from gateway.dialects.bounded import is_list, is_object
from gateway.dialects.responses_turns import response_item_id

Event = tuple[str, JsonObject]
"""An event's type and its fields, all but its number."""

INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer was cut, by its finish reason."""

_TEXT: Final = "output_text"
# A text's kind: the field that holds it, and what its events' names begin with.
_FIELDS: Final = {_TEXT: "text", "refusal": "refusal", "reasoning_text": "text"}


class Output:
    """The output as it grows. Each method gives the events that tell of what it did.

    Reasoning ends where anything else begins, a message where a call does; calls stay open to the end, since some
    servers send several in turns. Items of an answer that began anew have the ids of those that are void.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._items: list[JsonObject] = []
        self._void = 0
        self._spoken: _Spoken | None = None
        self._calls: dict[int, _Called] = {}
        self._text: _Place | None = None
        self._cited: list[JsonObject] = []
        self.reason: str | None = None

    @property
    def said(self) -> list[JsonObject]:
        """The items of the answer that counts."""
        return self._items[self._void :]

    def add(self, choice: JsonObject) -> Iterator[Event]:
        """Takes a streamed choice."""
        delta: JsonObject = choice["delta"]
        logprobs: JsonObject = choice.get("logprobs") or {}
        if delta.get("reasoning_content"):
            yield from self._say("reasoning_text", delta["reasoning_content"], ())
        if delta.get("content"):
            yield from self._say(_TEXT, delta["content"], logprobs.get("content") or ())
        if delta.get("annotations"):
            yield from self._cite(delta["annotations"])
        if delta.get("refusal"):
            yield from self._say("refusal", delta["refusal"], ())
        for number, call in enumerate(delta.get("tool_calls") or ()):
            yield from self._call(call.get("index", number), call)
        self.reason = choice.get("finish_reason") or self.reason

    def close(self, *, broken: bool = False) -> Iterator[Event]:
        """Ends every item. What the answer broke off in, or was cut in, is incomplete: its last item."""
        cut = broken or self.reason in INCOMPLETE
        if not self.said and not broken:
            yield from self._say(_TEXT, "", ())
        last = len(self._items) - 1
        for one in (self._spoken, *self._calls.values()):
            if one is not None:
                yield from one.close("incomplete" if cut and one.index == last else "completed")
        self._spoken, self._calls, self._text, self._cited = None, {}, None, []

    def begin_anew(self) -> Iterator[Event]:
        """Ends what was said so far as void: only what comes now will be the answer."""
        yield from self.close(broken=True)
        self._void = len(self._items)
        self.reason = None

    def _say(self, kind: str, text: str, logprobs: Iterable[JsonObject]) -> Iterator[Event]:
        wanted = "reasoning" if kind == "reasoning_text" else "message"
        if self._spoken is None or self._spoken.item["type"] != wanted:
            yield from self._hush()
            self._spoken = _Spoken(self._new(wanted), len(self._items) - 1)
            yield self._added()
        yield from self._spoken.say(kind, text, logprobs)
        if kind == _TEXT:
            self._text = self._spoken.place
            yield from self._cite(())

    def _cite(self, given: Any) -> Iterator[Event]:
        """Notes belong to the last text; those that come before any wait for one."""
        self._cited += [found for one in (given if is_list(given) else ()) if (found := _citation(one)) is not None]
        if self._text is not None:
            for note in self._cited:
                yield self._text.cite(note)
            self._cited = []

    def _call(self, index: int, piece: JsonObject) -> Iterator[Event]:
        name, arguments = call_of(piece)
        call = self._calls.get(index)
        if call is None:
            yield from self._hush()
            item = self._new("function_call")
            item["call_id"] = piece.get("id") or response_item_id(self._job_id, "call", len(self._calls))
            item["name"] = name
            call = self._calls[index] = _Called(item, len(self._items) - 1, named=bool(piece.get("id")))
            yield self._added()
        call.name(piece.get("id"), name)
        if arguments:
            yield call.say(arguments)

    def _hush(self) -> Iterator[Event]:
        if self._spoken is not None:
            yield from self._spoken.close("completed")
            self._spoken = None

    def _new(self, kind: str) -> JsonObject:
        number = len(self.said)
        prefix, more = _KINDS[kind]
        item_id = response_item_id(self._job_id, prefix, number)
        self._items.append({"id": item_id, "type": kind, "status": "in_progress", **deepcopy(more)})
        return self._items[-1]

    def _added(self) -> Event:
        item = self._items[-1]
        return "response.output_item.added", {"output_index": len(self._items) - 1, "item": dict(item)}


_KINDS: Final[dict[str, tuple[str, JsonObject]]] = {
    "message": ("msg", {"role": "assistant", "content": []}),
    "reasoning": ("rs", {"summary": [], "content": []}),
    "function_call": ("fc", {"call_id": "", "name": "", "arguments": ""}),
}


class _Place:
    """A part of an item where notes may stand."""

    __slots__ = ("_content_index", "_index", "_item")

    def __init__(self, item: JsonObject, index: int, content_index: int) -> None:
        self._item = item
        self._index = index
        self._content_index = content_index

    def cite(self, note: JsonObject) -> Event:
        """Takes a note, also where the part has ended."""
        notes: list[JsonObject] = self._item["content"][self._content_index]["annotations"]
        notes.append(note)
        place = {"output_index": self._index, "content_index": self._content_index}
        told = {"item_id": self._item["id"], **place, "annotation_index": len(notes) - 1, "annotation": note}
        return "response.output_text.annotation.added", told


class _Spoken:
    """A message or a reasoning that is being said: parts, of which the last is open."""

    __slots__ = ("_kind", "_logprobs", "_pieces", "index", "item")

    def __init__(self, item: JsonObject, index: int) -> None:
        self.item = item
        self.index = index
        self._kind = ""
        self._pieces: list[str] = []
        self._logprobs: list[JsonObject] = []

    @property
    def place(self) -> _Place:
        """Of the part that is open."""
        return _Place(self.item, self.index, len(self.item["content"]) - 1)

    def say(self, kind: str, text: str, logprobs: Iterable[JsonObject]) -> Iterator[Event]:
        """Takes a piece of a part of this kind, which begins where another one was open."""
        if kind != self._kind:
            yield from self._end_part()
            self._kind = kind
            self.item["content"].append(self._part(""))
            yield "response.content_part.added", self._here({"part": self._part("")})
        entries = [_logprob(entry) for entry in logprobs]
        self._logprobs += entries
        self._pieces.append(text)
        if text:
            yield f"response.{kind}.delta", self._here({"delta": text, **self._with(entries)})

    def close(self, status: str) -> Iterator[Event]:
        """Ends the item."""
        yield from self._end_part()
        self.item["status"] = status
        yield "response.output_item.done", {"output_index": self.index, "item": self.item}

    def _end_part(self) -> Iterator[Event]:
        if not self._kind:
            return
        text = "".join(self._pieces)
        part: JsonObject = self.item["content"][-1]
        part |= self._part(text) | {name: value for name, value in part.items() if name == "annotations"}
        logprobs = self._with(self._logprobs)
        yield f"response.{self._kind}.done", self._here({_FIELDS[self._kind]: text, **logprobs})
        yield "response.content_part.done", self._here({"part": part})
        self._kind, self._pieces, self._logprobs = "", [], []

    def _part(self, text: str) -> JsonObject:
        part: JsonObject = {"type": self._kind, _FIELDS[self._kind]: text}
        return part | {"annotations": [], "logprobs": list(self._logprobs)} if self._kind == _TEXT else part

    def _with(self, entries: list[JsonObject]) -> JsonObject:
        return {"logprobs": entries} if self._kind == _TEXT else {}

    def _here(self, fields: JsonObject) -> JsonObject:
        place = {"output_index": self.index, "content_index": len(self.item["content"]) - 1}
        return {"item_id": self.item["id"], **place, **fields}


class _Called:
    """A function call whose arguments come in pieces."""

    __slots__ = ("_named", "_pieces", "index", "item")

    def __init__(self, item: JsonObject, index: int, *, named: bool) -> None:
        self.item = item
        self.index = index
        self._named = named
        self._pieces: list[str] = []

    def name(self, call_id: str | None, name: str | None) -> None:
        """Takes what some servers tell late: as in the stored call the first that there is counts."""
        if call_id and not self._named:
            self.item["call_id"], self._named = call_id, True
        self.item["name"] = self.item["name"] or name or ""

    def say(self, arguments: str) -> Event:
        """Takes a piece of the arguments."""
        self._pieces.append(arguments)
        return "response.function_call_arguments.delta", {**self._here(), "delta": arguments}

    def close(self, status: str) -> Iterator[Event]:
        """Ends the item."""
        arguments = self.item["arguments"] = "".join(self._pieces)
        self.item["status"] = status
        told = {**self._here(), "name": self.item["name"], "arguments": arguments}
        yield "response.function_call_arguments.done", told
        yield "response.output_item.done", {"output_index": self.index, "item": self.item}

    def _here(self) -> JsonObject:
        return {"item_id": self.item["id"], "output_index": self.index}


def _logprob(entry: JsonObject) -> JsonObject:
    """A token's log probability with every key that must be there."""
    own: JsonObject = {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry.get("bytes") or []}
    others: list[JsonObject] = entry.get("top_logprobs") or []
    return {
        **own,
        "top_logprobs": [
            {name: one.get(name) or [] if name == "bytes" else one[name] for name in own} for one in others
        ],
    }


def _citation(given: Any) -> JsonObject | None:
    """A note of a chat message as a response has it; None where it names no page."""
    told: Any = given.get("url_citation") if is_object(given) else None
    if not is_object(told) or type(url := told.get("url")) is not str:
        return None
    places = {name: n if type(n := told.get(name)) is int else 0 for name in ("start_index", "end_index")}
    title: Any = told.get("title")
    return {"type": "url_citation", "url": url, **places, "title": title if type(title) is str else ""}
