"""A conversation as input items and as chat messages, made of each other; an item has the same id for good. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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

    def entry(self) -> str:
        """It as a text, without its response."""
        return f"{self.place}:{self.length}" if self.length else self.place

    @classmethod
    def of(cls, item: JsonObject, length: int = 0) -> Origin:
        """An item's origin."""
        found = ITEM_ID.fullmatch(item["id"]) if isinstance(item, Known) else None
        return cls(found[1], found[2], length) if found else cls(length=length)


@dataclass(frozen=True, slots=True)
class Turns:
    """Chat messages, and where each of the items comes from that they stand for: in each the texts, then the calls."""

    messages: list[JsonObject] = field(default_factory=list[JsonObject])
    origins: list[Origin] = field(default_factory=list[Origin])

    def followed_by(self, others: Turns) -> Turns:
        """These and then the others."""
        return Turns([*self.messages, *others.messages], [*self.origins, *others.origins])

    def asked(self) -> JsonObject:
        """What a job has to keep of the origins."""
        if not any(one.response or one.length for one in self.origins):
            return {}
        groups = groupby(self.origins, key=lambda one: one.response)
        return {_ITEMS: [[response, [one.entry() for one in group]] for response, group in groups]}


# --- items to messages ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turn:
    """A message that is being made."""

    message: JsonObject
    texts: list[Origin]
    calls: list[Origin] = field(default_factory=list[Origin])


def turns_of(given: str | list[JsonObject]) -> Turns:
    """The turns that checked input stands for. Raises BadRequest where there are none.

    What one turn of the assistant says and calls is one message. Reasoning is not passed on: few servers take it back.
    """
    if isinstance(given, str):
        return Turns([{"role": "user", "content": given}], [Origin()])
    turns: list[_Turn] = []
    for item in given:
        _add_item(turns, item)
    if not turns:
        raise BadRequest("input: holds no message.", param="input")
    return Turns([turn.message for turn in turns], [one for turn in turns for one in (*turn.texts, *turn.calls)])


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
    said = _said(item["content"])
    last = turns[-1] if turns else None
    if last is None or not _goes_on(last, item):
        turns.append(_Turn({"role": "assistant", **said}, [Origin.of(item)]))
    elif said == {"content": ""}:
        pass
    elif not last.message.get("content") and not last.message.get("refusal"):
        last.message |= said
        last.texts = [Origin.of(item)]
    elif _is_text(last.message) and _is_text(said):
        if len(last.texts) == 1:
            first = last.texts[0]
            last.texts = [Origin(first.response, first.place, len(last.message["content"]))]
        last.texts.append(Origin.of(item, len(said["content"])))
        last.message["content"] += said["content"]
    else:
        # What was said first goes before: nothing may stand between calls and their outputs.
        calls = last.message.pop("tool_calls")
        turns.insert(-1, _Turn(last.message, last.texts))
        last.message, last.texts = {"role": "assistant", **said, "tool_calls": calls}, [Origin.of(item)]


def _goes_on(last: _Turn, item: JsonObject) -> bool:
    """Whether an item that is said belongs to the message before: one of calls, or of the same earlier response."""
    if last.message["role"] != "assistant":
        return False
    if last.message.get("tool_calls"):
        return True
    response = Origin.of(item).response
    return response != "" and response == last.texts[-1].response and _is_text(last.message)


def _is_text(message: JsonObject) -> bool:
    return bool(message.get("content")) and type(message["content"]) is str and not message.get("refusal")


def _said(content: str | list[JsonObject]) -> JsonObject:
    """An assistant's content: a refusal stands beside a text, as servers know it."""
    if is_list(content) and (not content or content[-1]["type"] == "refusal") and len(content) <= 2:
        texts: list[str] = [part.get("text", "") for part in content[:-1]]
        refusal = {"refusal": content[-1]["refusal"]} if content else {}
        return {"content": "".join(texts), **refusal}
    return {"content": _content(content)}


def _add_call(turns: list[_Turn], item: JsonObject) -> None:
    function = {"name": item["name"], "arguments": item["arguments"]}
    if not turns or turns[-1].message["role"] != "assistant":
        turns.append(_Turn({"role": "assistant", "content": None}, []))
    last = turns[-1]
    if last.message["content"] == "" and not last.message.get("refusal"):
        last.message["content"], last.texts = None, []
    call = {"id": item["call_id"], "type": "function", "function": function}
    last.message.setdefault("tool_calls", []).append(call)
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
            detail = {"detail": part["detail"]} if part.get("detail") else {}
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


def input_turns(job: Job) -> Turns:
    """The turns that a response was made from, but for its instructions; what it goes on from is among them."""
    pairs = _pairs(job)
    return Turns(_spoken(job), [origin for message in pairs for origin, _ in message])


def input_items(job: Job) -> list[JsonObject]:
    """The items that the response was made from, the oldest first; what it goes on from is among them."""
    return [_named(*pair) for message in _pairs(job) for pair in _as_said(message)]


def _pairs(job: Job) -> list[list[tuple[Origin, JsonObject]]]:
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


def _as_said(pairs: list[tuple[Origin, JsonObject]]) -> list[tuple[Origin, JsonObject]]:
    """One message's items; those that a response said as it said them, where calls and texts took turns."""
    if len({origin.response for origin, _ in pairs}) > 1 or any(origin.place.startswith("in") for origin, _ in pairs):
        return pairs
    return sorted(pairs, key=lambda pair: int(pair[0].place))


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
    origin = next(origins)
    while origin.length and type(content) is str and len(content) > origin.length:
        yield origin, content[: origin.length]
        content = content[origin.length :]
        origin = next(origins)
    yield origin, content


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
