"""The order in which a choice was said, which its message alone doesn't tell: runs of text, notes and calls. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from common.contracts import JsonObject
from common.thoughts import BLOCKS, TEXT, Thought, thoughts_of
from common.thoughts import in_order as as_said

RUNS: Final = "runs"
CALLS: Final = "tool_calls"
_TEXT: Final = "content"
# A delta may hold several, which count as said in this order; so does a message without runs.
NAMES: Final = ("reasoning_content", _TEXT, "annotations", "refusal", CALLS)
_TEXTS: Final = frozenset({"reasoning_content", _TEXT, "refusal"})
# Log probabilities that came with no text of the answer, as some servers tell them of thoughts.
_APART: Final = "logprobs"


class Runs:
    """Gathers the order from a stream's choices.

    A run is [a message's field, how much of it], a call's [`tool_calls`, its number] where it begins. With log
    probabilities a text's says as a third how many came with it.
    """

    __slots__ = ("_begun", "_runs")

    def __init__(self) -> None:
        self._runs: list[list[Any]] = []
        self._begun: dict[int, None] = {}

    def add(self, choice: JsonObject) -> None:
        """Takes the next streamed choice."""
        delta: JsonObject = choice["delta"]
        if len(delta) == 1 and self._runs and not choice.get("logprobs"):
            # Nearly every token of a stream: some more of what was said last.
            [(name, value)] = delta.items()
            if name in _TEXTS and name == self._runs[-1][0] and isinstance(value, str):
                self._runs[-1][1] += len(value)
                return
        for name in NAMES:
            if not (value := delta.get(name)):
                continue
            if name == CALLS:
                self._add_calls(value)
            elif isinstance(value, (str, list)):
                self._extend(name, len(value))  # pyright: ignore[reportUnknownArgumentType]
        if logprobs := choice.get("logprobs"):
            self._add_entries(len(logprobs.get("content") or ()), said=bool(delta.get(_TEXT)))

    def result(self) -> list[list[Any]] | None:
        """The runs; None where they are just a message's fields in their usual order."""
        numbers = {index: number for number, index in enumerate(sorted(self._begun))}
        runs = [[CALLS, numbers[run[1]]] if run[0] == CALLS else run for run in self._runs]
        places = [(NAMES.index(run[0]), run[1] if run[0] == CALLS else 0) for run in runs if run[0] in NAMES]
        usual = len(places) == len(runs) and all(one < other for one, other in pairwise(places))
        return None if usual else runs

    def _extend(self, name: str, length: int) -> None:
        if self._runs and self._runs[-1][0] == name:
            self._runs[-1][1] += length
        else:
            self._runs.append([name, length])

    def _add_calls(self, pieces: list[JsonObject]) -> None:
        for piece in pieces:
            if piece["index"] not in self._begun:
                self._begun[piece["index"]] = None
                self._runs.append([CALLS, piece["index"]])

    def _add_entries(self, count: int, *, said: bool) -> None:
        if not count:
            return
        if not said:
            self._extend(_APART, count)
            return
        run = next(run for run in reversed(self._runs) if run[0] == _TEXT)
        if len(run) == 2:
            run.append(0)
        run[2] += count


def in_order(choice: JsonObject) -> Iterator[JsonObject]:
    """A stored choice as streamed ones, in the order in which it was said; just one where that is the usual one."""
    runs: list[list[Any]] = choice.get(RUNS) or []
    message: JsonObject = choice["message"]
    if not runs or not _tell_all(runs, message):
        yield from _by_thoughts(choice)
        return
    taken: dict[str, int] = {}
    others = {name: value for name, value in message.items() if name not in NAMES}
    for name, length, *told in runs:
        if name == CALLS:
            delta: JsonObject = {CALLS: [{**message[CALLS][length], "index": length}]}
        else:
            delta = {} if name == _APART else {name: _next(message[name], taken, name, length)}
        count = length if name == _APART else told[0] if told else 0
        entries = _next(_entries(choice), taken, _APART, count)
        yield {"index": choice.get("index", 0), "delta": {**others, **delta}, **_logprobs(entries and {_TEXT: entries})}
        others = {}


def _tell_all(runs: list[list[Any]], message: JsonObject) -> bool:
    """Whether the runs tell each field of the message to its end, and each call once."""
    told: dict[str, int] = dict.fromkeys((*NAMES, _APART), 0)
    for name, length, *_ in runs:
        told[name] += 1 if name == CALLS else length
    numbers = {length for name, length, *_ in runs if name == CALLS}
    if numbers != {*range(told[CALLS])}:
        return False
    return all(told[name] == _length(message.get(name)) for name in NAMES)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list)) else 0  # pyright: ignore[reportUnknownArgumentType]


def _by_thoughts(choice: JsonObject) -> Iterator[JsonObject]:
    """A choice that was said in one piece: its thoughts know their places, if anything does."""
    message: JsonObject = choice["message"]
    thoughts = thoughts_of(message) if message.get(BLOCKS) else []
    told = "".join(thought.text for thought in thoughts) == message.get(TEXT)
    if choice.get("logprobs") or not told or all(thought.is_first for thought in thoughts):
        yield from in_one(choice)
        return
    text: str = message.get(_TEXT) or ""
    calls: list[JsonObject] = message.get(CALLS) or []
    others = {name: value for name, value in message.items() if name not in (TEXT, _TEXT, CALLS)}
    deltas: list[JsonObject] = []
    for piece in as_said(thoughts, len(text), len(calls)):
        if isinstance(piece, Thought):
            deltas.append({TEXT: piece.text})
        elif isinstance(piece, slice):
            deltas.append({_TEXT: text[piece]})
        else:
            deltas.append({CALLS: [{**calls[piece], "index": piece}]})
    for delta in (*deltas, others):
        yield {"index": choice.get("index", 0), "delta": delta}


def in_one(choice: JsonObject) -> Iterator[JsonObject]:
    """A stored choice as one streamed one."""
    yield {"index": choice.get("index", 0), "delta": choice["message"], **_logprobs(choice.get("logprobs"))}


def _next(value: Any, taken: dict[str, int], name: str, length: int) -> Any:
    """The next so many of a field."""
    here = taken.get(name, 0)
    taken[name] = here + length
    return value[here : here + length]


def _entries(choice: JsonObject) -> list[Any]:
    logprobs: JsonObject = choice.get("logprobs") or {}
    return logprobs.get(_TEXT) or []


def _logprobs(told: JsonObject | list[Any] | None) -> JsonObject:
    return {"logprobs": told} if told else {}
