"""A whole answer out of its chunks, for whoever did not ask for a stream."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import Chunk, JsonObject, Usage

# The usual rule of thumb for English, where the upstream did not count.
CHARACTERS_A_TOKEN: Final = 4


class Answer:
    """Gathers chunks; adding one costs the same however long the answer is already.

    `text_bytes` is what the choices' deltas hold so far, in UTF-8. `prompt_tokens` is an estimate, used only where the
    upstream tells no usage.
    """

    __slots__ = ("_choices", "_counted", "_extra", "_prompt_tokens", "_usage", "text_bytes")

    def __init__(self, prompt_tokens: int = 0) -> None:
        self.text_bytes = 0
        self._prompt_tokens = prompt_tokens
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
            self.text_bytes += gathered.add(choice)
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
        if self._usage is not None:
            return self._usage
        rest = dict(self._counted)
        prompt, made = rest.pop("prompt_tokens", None), rest.pop("completion_tokens", None)
        if made is None:
            made = sum(choice.tokens for choice in self._choices.values())
        return Usage(self._prompt_tokens if prompt is None else prompt, made, {**rest, "estimated": True})

    def result(self) -> JsonObject:
        """The answer in OpenAI's shape, but for `id`, `object`, `created` and `model`."""
        choices = [self._choices[index].result() for index in sorted(self._choices)]
        return {"choices": choices, "usage": self.usage.to_openai(), **self._extra}


_TEXTS: Final = ("content", "reasoning_content", "refusal")


class _Choice:
    """One choice's message, in pieces."""

    __slots__ = (
        "_calls",
        "_function_call",
        "_index",
        "_logprobs",
        "_other",
        "_stopped_by",
        "_texts",
        "characters",
        "finish_reason",
        "pieces",
    )

    def __init__(self, index: int) -> None:
        self.characters = 0
        self.pieces = 0
        self.finish_reason: str | None = None
        self._index = index
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._calls: dict[int, _Call] = {}
        self._function_call: _Call | None = None
        self._logprobs: dict[str, list[Any]] | None = None
        self._other: JsonObject = {}
        self._stopped_by: str | None = None

    def add(self, choice: JsonObject) -> int:
        """Takes a streamed choice; the bytes of text that it brought."""
        if choice["finish_reason"] is not None:
            self.finish_reason = choice["finish_reason"]
            # The stop sequence that was met: vLLM's own word, which Anthropic's clients are told.
            if isinstance(met := choice.get("stop_reason"), str):
                self._stopped_by = met
        if choice.get("logprobs") is not None:
            self._add_logprobs(choice["logprobs"])
        size_bytes = 0
        for name, value in choice["delta"].items():
            if value is None or name == "role":
                continue
            text = self._add_field(name, value)
            self.characters += len(text)
            size_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        self.pieces += size_bytes > 0
        return size_bytes

    @property
    def tokens(self) -> int:
        """An estimate: as a stream's piece is one token, never more than there were pieces of it."""
        by_length = -(-self.characters // CHARACTERS_A_TOKEN)
        return min(by_length, self.pieces) if self.pieces > 1 else by_length

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
        if isinstance(value, list):
            self._other[name] = [*self._other.get(name, ()), *value]  # pyright: ignore[reportUnknownArgumentType]
        else:
            self._other[name] = value
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
            "message": self._message(),
            "logprobs": self._logprobs and {name: entries or None for name, entries in self._logprobs.items()},
            "finish_reason": self.finish_reason,
            **({} if self._stopped_by is None else {"stop_reason": self._stopped_by}),
        }

    def _message(self) -> JsonObject:
        text, reasoning, refusal = ("".join(self._texts[name]) for name in _TEXTS)
        called = bool(self._calls or self._function_call)
        message: JsonObject = {
            "role": "assistant",
            # No text beside a tool call or a refusal is null, as OpenAI has it; an empty answer is an empty text.
            "content": None if not text and (called or refusal) else text,
            "refusal": refusal or None,
        }
        if self._calls:
            message["tool_calls"] = [self._calls[index].result() for index in sorted(self._calls)]
        if self._function_call is not None:
            message["function_call"] = self._function_call.result()["function"]
        if reasoning:
            message["reasoning_content"] = reasoning
        return {**message, **self._other}


class _Call:
    """One tool call, in pieces."""

    __slots__ = ("_arguments", "_extra", "_id", "_name", "_type")

    def __init__(self) -> None:
        self._id: str | None = None
        self._type = "function"
        self._name = ""
        self._arguments: list[str] = []
        self._extra: Any = None  # what a server wants back with the call, as Gemini its signature

    def add(self, piece: JsonObject) -> str:
        """Takes a piece; its text, for counting. Some servers repeat id and name in each: the first counts."""
        function: JsonObject = piece.get("function") or {}
        self._id = self._id or piece.get("id")
        self._type = piece.get("type") or self._type
        self._extra = piece.get("extra_content") or self._extra
        name: str = function.get("name") or ""
        self._name = self._name or name
        arguments: str = function.get("arguments") or ""
        if arguments:
            self._arguments.append(arguments)
        return arguments + name

    def result(self) -> JsonObject:
        """The call in OpenAI's shape."""
        function = {"name": self._name, "arguments": "".join(self._arguments)}
        extra = {} if self._extra is None else {"extra_content": self._extra}
        return {"id": self._id or "", "type": self._type, "function": function, **extra}
