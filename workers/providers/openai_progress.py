"""How far an answer of OpenAI's events has come; what a server leaves out or repeats is mended over several. Pure."""

from __future__ import annotations

from typing import Final

from common.contracts import Chunk, JsonObject
from common.errors import UpstreamProtocolError
from workers.providers.openai_calls import Calls

_OF_TEXT: Final = frozenset({"delta", "logprobs"})


class Progress:
    """How far a streamed answer has come; it mends what a server leaves out or says again over several events."""

    __slots__ = ("_begun", "_called", "_counted", "_ends", "_extra", "_functions", "_late", "_wanted", "done")

    def __init__(self, wanted: int = 1) -> None:
        self.done = False
        self._wanted = wanted
        self._counted = False
        self._begun: set[int] = set()
        self._ends: dict[int, JsonObject] = {}  # the choices that ended: what `last` tells of each
        self._late: JsonObject | None = None
        self._called: dict[int, Calls] = {}
        self._functions: set[int] = set()  # the choices that called one in the way before tools
        self._extra: JsonObject | None = None

    def noted(self, chunk: Chunk) -> Chunk:
        """The chunk, with the role in each choice's first delta alone, calls numbered, each extra key told once."""
        for choice in chunk.choices:
            index: int = choice["index"]
            delta: JsonObject = choice["delta"]
            if len(delta) != 1 or "content" not in delta:  # nearly every token is just that
                self._note_more(index, delta)
            if index not in self._begun:
                self._begun.add(index)
                choice["delta"] = {"role": "assistant", **delta}
            if choice["finish_reason"] is not None:
                self._end(index, choice)
        if chunk.extra is not None:
            chunk.extra, self._extra = (None if chunk.extra == self._extra else chunk.extra), chunk.extra
        return chunk

    def _note_more(self, index: int, delta: JsonObject) -> None:
        if "role" in delta:
            del delta["role"]
        if "tool_calls" in delta:
            calls = self._called.get(index)
            if calls is None:
                calls = self._called[index] = Calls()
            delta["tool_calls"] = calls.told(delta["tool_calls"])
        elif function := delta.get("function_call"):
            if index in self._functions:
                function.pop("name", None)
            self._functions.add(index)

    def streamed(self, chunk: Chunk) -> Chunk | None:
        """The chunk as `noted`, but for the ends, which `last` tells; None where nothing is left.

        Some servers end their answer in every event, or say nothing for a while after its end.
        """
        if chunk.usage is not None and all(self._goes_on(one["index"]) and not _says(one) for one in chunk.choices):
            self._counted = True
        self.noted(chunk)
        if not self._ends:
            return chunk
        left = map(_without_end, chunk.choices)
        chunk.choices = [choice for choice in left if choice["index"] not in self._ends or _says(choice)]
        if not chunk.choices and chunk.extra is not None:
            self._late = {**(self._late or {}), **chunk.extra}
        return chunk if chunk.choices or chunk.usage is not None or chunk.counted is not None else None

    @property
    def settled(self) -> bool:
        """Whether all is told but the last word: every choice ended, and after or with that the usage."""
        return self._counted and len(self._ends) >= self._wanted and self._begun == self._ends.keys()

    def _goes_on(self, index: int) -> bool:
        """Whether the choice has begun and not ended: of a server that ends in every event none ever does.

        Usage beside text is not the end's either: such a server counts in every event.
        """
        return index in self._begun and index not in self._ends

    def last(self) -> Chunk:
        """The chunk that ends each choice once, also where the server did not. Raises where the answer broke off."""
        if not self._begun or (not self.done and self._begun - self._ends.keys()):
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")
        return Chunk([self._finish(index) for index in sorted(self._begun)], extra=self._late)

    def _end(self, index: int, choice: JsonObject) -> None:
        """Notes an end; a `stop` that comes after another one tells nothing new."""
        plain = choice["finish_reason"] == "stop"
        if plain:
            choice["finish_reason"] = self._end_of(index)
        if not plain or index not in self._ends:
            self._ends[index] = {key: value for key, value in choice.items() if key not in _OF_TEXT}

    def _finish(self, index: int) -> JsonObject:
        end: JsonObject = {"index": index, "delta": {}, "finish_reason": "stop", **self._ends.get(index, {})}
        return {**end, "finish_reason": self._end_of(index)} if end["finish_reason"] == "stop" else end

    def _end_of(self, index: int) -> str:
        """Why a choice ended that came to its end: what it called is to be done, also where a server says `stop`."""
        return "tool_calls" if index in self._called else "stop"


def _without_end(choice: JsonObject) -> JsonObject:
    """The choice as one that goes on; what stands beside its end is told with that."""
    if choice["finish_reason"] is None:
        return choice
    kept: JsonObject = {"index": choice["index"], "delta": choice["delta"], "finish_reason": None}
    return {**kept, "logprobs": choice["logprobs"]} if "logprobs" in choice else kept


def _says(choice: JsonObject) -> bool:
    return any(choice["delta"].values()) or bool(choice.get("logprobs"))
