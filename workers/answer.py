"""A whole answer out of its chunks, for whoever did not ask for a stream."""

from __future__ import annotations

import binascii
from typing import Any, Final

import orjson

from common.contracts import Chunk, JsonObject, Usage
from common.runs import RUNS, Runs
from common.tokens import likely_tokens, size_bytes, texts_of_message


class Answer:
    """Gathers chunks; adding one costs the same however long the answer is already.

    `text_bytes` is what of the choices' deltas is text so far, in UTF-8, `held_bytes` that with pictures and whatever
    else. `prompt_tokens` is an estimate, used only where the upstream tells no usage and nobody here counted.
    """

    __slots__ = ("_choices", "_counted", "_estimates", "_extra", "_usage", "held_bytes", "text_bytes")

    def __init__(self, prompt_tokens: int = 0) -> None:
        self.text_bytes = self.held_bytes = 0
        self._estimates: JsonObject = {"prompt_tokens": prompt_tokens}
        self._choices: dict[int, _Choice] = {}
        self._usage: Usage | None = None
        self._counted: JsonObject = {}
        self._extra: JsonObject = {}

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        for choice in chunk.choices:
            index: int = choice["index"]
            gathered = self._choices.get(index)
            if gathered is None:
                gathered = self._choices[index] = _Choice(index)
            text_bytes = gathered.add(choice)
            self.text_bytes += text_bytes
            self.held_bytes += text_bytes + gathered.other_bytes
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.counted is not None:
            self._counted |= chunk.counted
        if chunk.extra is not None:
            self._extra.update(chunk.extra)

    @property
    def finish_reason(self) -> str | None:
        """The first choice's, or None while it has none."""
        return self._choices[min(self._choices)].finish_reason if self._choices else None

    @property
    def usage(self) -> Usage:
        """What the upstream counted; else as much of it as it told and an estimate of the rest, which says so.

        (`details["estimated"]`, also where both were told but the answer broke off: more may have been made since.)
        """
        if self._usage is not None and self._counts_what_was_said:
            return self._usage
        told = {"completion_tokens": likely_tokens(self.text_bytes)} | self._estimates | self._told
        return Usage(told.pop("prompt_tokens"), told.pop("completion_tokens"), {**told, "estimated": True})

    @property
    def untold(self) -> frozenset[str]:
        """Which of the counts of prompt and completion the upstream did not tell."""
        return frozenset() if self._counts_what_was_said else _COUNTS.difference(self._told)

    @property
    def _counts_what_was_said(self) -> bool:
        """Whether there is a usage to believe: one of 0 tokens for an answer that said something is none."""
        return self._usage is not None and (self._usage.completion_tokens > 0 or not self.text_bytes)

    @property
    def _told(self) -> JsonObject:
        """What the upstream counted, where that is not all."""
        if self._usage is None:
            return self._counted
        return {**self._counted, "prompt_tokens": self._usage.prompt_tokens, **self._usage.details}

    def estimate(self, **tokens: int) -> None:
        """Takes counts made here, by their names in a usage: they stand for those that the upstream did not tell."""
        self._estimates |= tokens

    def texts(self) -> list[str]:
        """All that the choices say."""
        return [text for choice in self._choices.values() for text in texts_of_message(choice.message())]

    def result(self) -> JsonObject:
        """The answer in OpenAI's shape, but for `id`, `object`, `created` and `model`."""
        choices = [self._choices[index].result() for index in sorted(self._choices)]
        return {"choices": choices, "usage": self.usage.to_openai(), **self._extra}


class Unsaid:
    """The chunks before an answer's first word: many servers name the role long before they know what to say.

    Kept until then, so that what fails meanwhile is tried elsewhere as if nothing had come.
    """

    __slots__ = ("_seen", "chunks")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._seen: set[int] = set()

    def keeps(self, chunk: Chunk) -> bool:
        """Whether the chunk says nothing yet. Of each choice the first such is kept; more of them tell nothing new."""
        if any(map(_says, chunk.choices)):
            return False
        found = {choice["index"] for choice in chunk.choices}
        if not found <= self._seen:
            self._seen |= found
            self.chunks.append(chunk)
        return True


def _says(choice: JsonObject) -> bool:
    if choice["finish_reason"] is not None or any(v for name, v in choice["delta"].items() if name != "role"):
        return True
    logprobs = choice.get("logprobs")
    return bool(logprobs) and any(logprobs.values())  # a token without text is one all the same


_COUNTS: Final = frozenset({"prompt_tokens", "completion_tokens"})
_TEXTS: Final = ("content", "reasoning_content", "refusal")


class _Choice:
    """One choice's message, in pieces."""

    __slots__ = (
        "_audio",
        "_calls",
        "_function_call",
        "_index",
        "_logprobs",
        "_other",
        "_runs",
        "_stopped_by",
        "_texts",
        "finish_reason",
        "other_bytes",
    )

    def __init__(self, index: int) -> None:
        self.finish_reason: str | None = None
        self.other_bytes = 0
        self._index = index
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._calls: dict[int, _Call] = {}
        self._function_call: _Call | None = None
        self._logprobs: dict[str, list[Any]] | None = None
        self._audio: _Audio | None = None
        self._other: JsonObject = {}
        self._runs = Runs()
        self._stopped_by: str | None = None

    def add(self, choice: JsonObject) -> int:
        """Takes a streamed choice; the bytes of text that it brought. `other_bytes` says what it brought beside."""
        if choice["finish_reason"] is not None:
            self.finish_reason = choice["finish_reason"]
            # The stop sequence that was met: vLLM's own word, which Anthropic's clients are told.
            if isinstance(met := choice.get("stop_reason"), str):
                self._stopped_by = met
        if choice.get("logprobs") is not None:
            self._add_logprobs(choice["logprobs"])
        self._runs.add(choice)
        brought_bytes = self.other_bytes = 0
        for name, value in choice["delta"].items():
            if value is None or name == "role":
                continue
            brought_bytes += size_bytes(self._add_field(name, value))
        return brought_bytes

    def _add_field(self, name: str, value: Any) -> str:
        """Takes one field of a delta; its text, for counting."""
        parts = self._texts.get(name)
        if parts is not None:
            parts.append(value)
            return value
        if name == "tool_calls":
            return "".join([self._call(piece["index"]).add(piece) for piece in value])
        if name == "function_call":
            self._function_call = self._function_call or _Call()
            return self._function_call.add({"function": value})
        if name == "audio" and isinstance(value, dict):
            self._audio = self._audio or _Audio()
            return self._audio.add(value)  # pyright: ignore[reportUnknownArgumentType]
        self.other_bytes += len(orjson.dumps(value))
        known = self._other.get(name)
        if isinstance(value, list) and isinstance(known, list):
            known.extend(value)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        else:  # a copy, since the chunk's own is somebody else's
            self._other[name] = [*value] if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType]
        return ""

    def _call(self, index: int) -> _Call:
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call()
        return call

    def _add_logprobs(self, logprobs: JsonObject) -> None:
        gathered = self._logprobs = self._logprobs or {"content": [], "refusal": []}
        for name, entries in gathered.items():
            entries.extend(logprobs.get(name) or ())

    def result(self) -> JsonObject:
        """The choice in OpenAI's shape."""
        return {
            "index": self._index,
            "message": self.message(),
            "logprobs": self._logprobs and {name: entries or None for name, entries in self._logprobs.items()},
            "finish_reason": self.finish_reason,
            **({} if self._stopped_by is None else {"stop_reason": self._stopped_by}),
            **({} if (runs := self._runs.result()) is None else {RUNS: runs}),
        }

    def message(self) -> JsonObject:
        """The message in OpenAI's shape."""
        text, reasoning, refusal = ("".join(self._texts[name]) for name in _TEXTS)
        says_otherwise = bool(self._calls or self._function_call or self._audio or refusal)
        message: JsonObject = {
            "role": "assistant",
            # No text beside a call, a sound or a refusal is null, as OpenAI has it; an empty answer is an empty text.
            "content": None if not text and says_otherwise else text,
            "refusal": refusal or None,
        }
        if self._calls:
            message["tool_calls"] = [self._calls[index].result() for index in sorted(self._calls)]
        if self._function_call is not None:
            message["function_call"] = self._function_call.result()["function"]
        if self._audio is not None:
            message["audio"] = self._audio.result()
        if reasoning:
            message["reasoning_content"] = reasoning
        return {**message, **self._other}


# Where each type of call has its text.
_TEXT_OF: Final = {"function": "arguments", "custom": "input"}


class _Call:
    """One tool call, in pieces: of a function, or of a custom tool, whose input is no JSON but any text."""

    __slots__ = ("_extra", "_id", "_kind", "_name", "_pieces", "_type")

    def __init__(self) -> None:
        self._id: str | None = None
        self._type = ""
        self._kind = "function"
        self._name = ""
        self._pieces: list[str] = []
        self._extra: Any = None  # what a server wants back with the call, as Gemini its signature

    def add(self, piece: JsonObject) -> str:
        """Takes a piece; its text, for counting. Some servers repeat id and name in each: the first counts."""
        if piece.get("custom"):
            self._kind = "custom"
        said: JsonObject = piece.get(self._kind) or {}
        self._id = self._id or piece.get("id")
        self._type = piece.get("type") or self._type
        self._extra = piece.get("extra_content") or self._extra
        name: str = said.get("name") or ""
        self._name = self._name or name
        text: str = said.get(_TEXT_OF[self._kind]) or ""
        if text:
            self._pieces.append(text)
        return text + name

    def result(self) -> JsonObject:
        """The call in OpenAI's shape."""
        said = {"name": self._name, _TEXT_OF[self._kind]: "".join(self._pieces)}
        extra = {} if self._extra is None else {"extra_content": self._extra}
        return {"id": self._id or "", "type": self._type or self._kind, self._kind: said, **extra}


class _Audio:
    """A sound that is said, in pieces: its data in base64 and its words are joined, of the rest the last counts."""

    __slots__ = ("_data", "_other", "_words")

    def __init__(self) -> None:
        self._data: list[str] = []
        self._words: list[str] = []
        self._other: JsonObject = {}

    def add(self, piece: JsonObject) -> str:
        """Takes a piece; what of it takes up room, for counting."""
        joined = {"data": self._data, "transcript": self._words}
        for name, value in piece.items():
            if name in joined and isinstance(value, str):
                joined[name].append(value)
            elif value is not None:
                self._other[name] = value
        return "".join([piece[name] for name in joined if isinstance(piece.get(name), str)])

    def result(self) -> JsonObject:
        """The sound in OpenAI's shape."""
        told: JsonObject = dict(self._other)
        if self._data:
            told["data"] = _joined_base64(self._data)
        if self._words:
            told["transcript"] = "".join(self._words)
        return told


def _joined_base64(pieces: list[str]) -> str:
    """One text of base64 for what the pieces stand for together."""
    if not any(piece.endswith("=") for piece in pieces[:-1]):
        return "".join(pieces)
    try:  # each was filled up by itself: nothing after the first would be read
        return binascii.b2a_base64(b"".join(map(binascii.a2b_base64, pieces)), newline=False).decode()
    except (binascii.Error, ValueError):
        return "".join(pieces)
