"""A stream's pieces put into Anthropic's content blocks, of which one is open at a time. Pure."""

from __future__ import annotations

from typing import Final

import orjson

from common.contracts import JsonObject
from gateway.dialects.arguments import call_of
from gateway.dialects.nesting import Nesting

Key = tuple[str, int]

_TEXT: Final[Key] = ("text", 0)
_THINKING: Final[Key] = ("thinking", 0)
_REDACTED: Final = "redacted_thinking"
_TOOL: Final = "tool_use"


def event(name: str, data: JsonObject) -> bytes:
    """A named event."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def tool_id(job_id: str, number: int) -> str:
    """The id of a call to which the model's server gave none."""
    return f"toolu_{job_id[-32:]}_{number}"


class Blocks:
    """Makes events of pieces. A block ends where a piece of another one comes.

    A tool's block ends only once its arguments are a whole JSON object: some servers stream several calls in turns.
    Until then what belongs elsewhere is held, so that nothing is ever torn or lost.
    """

    __slots__ = ("_calls", "_held", "_index", "_job_id", "_open", "_prefix", "_redacted", "_thought")

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._index = -1
        self._open: Key | None = None
        self._prefix = b""
        self._redacted = 0
        self._thought: int | None = None
        self._calls: dict[int, _Call] = {}
        self._held: dict[Key, list[str]] = {}

    def text(self, piece: str) -> bytes:
        """The events of a piece of text."""
        return self._add(_TEXT, piece) if piece else b""

    def thinking(self, piece: str, signature: str = "") -> bytes:
        """The events of a piece of thinking, and of its signature, which some servers tell only at the very end.

        A signature may stand for thoughts that were not told. It ends its block, for it fits nothing that comes after.
        """
        said = self._add(_THINKING, piece) if piece or (signature and self._thought is None) else b""
        if not signature or self._thought is None:
            return said
        delta = {"type": "signature_delta", "signature": signature}
        told = event("content_block_delta", {"type": "content_block_delta", "index": self._thought, "delta": delta})
        self._thought = None
        return said + told + (self._close() if self._open == _THINKING else b"")

    def redacted(self, data: str) -> bytes:
        """The events of a block of thinking that only its maker can read."""
        self._redacted += 1
        return self._add((_REDACTED, self._redacted), data)

    def call(self, index: int, piece: JsonObject) -> bytes:
        """The events of a piece of a tool call. Of ids and names that come again the first counts."""
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call(tool_id(self._job_id, index))
        name, arguments = call_of(piece)
        call.add(piece.get("id"), name, arguments)
        # What follows a whole object can only be white space.
        return b"" if call.ended else self._add((_TOOL, index), arguments)

    def finish(self) -> bytes:
        """The events of what is held, and the last block's end."""
        return self._release(at_last=True) + self._close()

    def _add(self, key: Key, piece: str) -> bytes:
        if key == self._open:
            said = self._delta(piece)
            return said + self._release() if self._held else said
        self._held.setdefault(key, []).append(piece)
        return self._release()

    def _release(self, *, at_last: bool = False) -> bytes:
        said: list[bytes] = []
        while self._held and (at_last or self._may_close()):
            key = next(iter(self._held))
            if key[0] == _TOOL and not self._calls[key[1]].name and not at_last:
                break
            piece = "".join(self._held.pop(key))
            said += [self._close(), self._start(key, piece), b"" if key[0] == _REDACTED else self._delta(piece)]
        return b"".join(said)

    def _may_close(self) -> bool:
        return self._open is None or self._open[0] != _TOOL or self._calls[self._open[1]].whole()

    def _start(self, key: Key, piece: str) -> bytes:
        self._open = key
        self._index += 1
        kind, number = key
        if kind == _TOOL:
            call = self._calls[number]
            block: JsonObject = {"type": _TOOL, "id": call.id, "name": call.name, "input": {}}
        elif kind == _REDACTED:
            block = {"type": kind, "data": piece}
        else:
            block = {"type": kind, kind: ""}
        if key == _THINKING:
            self._thought = self._index
            block["signature"] = ""
        self._prefix = self._delta_prefix(kind)
        return event(
            "content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _delta_prefix(self, kind: str) -> bytes:
        """What is the same in each of the block's deltas: a token costs one concatenation."""
        name = {"text": b'text_delta","text":', "thinking": b'thinking_delta","thinking":'}.get(
            kind, b'input_json_delta","partial_json":'
        )
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"'
        return head % self._index + name

    def _delta(self, piece: str) -> bytes:
        return self._prefix + orjson.dumps(piece) + b"}}\n\n" if piece else b""

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        if self._open[0] == _TOOL:
            self._calls[self._open[1]].ended = True
        self._open = None
        return event("content_block_stop", {"type": "content_block_stop", "index": self._index})


class _Call:
    """What is known of a tool call."""

    __slots__ = ("_has_id", "_nesting", "_unread", "ended", "id", "name")

    def __init__(self, own_id: str) -> None:
        self.id = own_id
        self.name = ""
        self.ended = False
        self._has_id = False
        self._nesting = Nesting()
        self._unread: list[str] = []

    def add(self, name_id: str | None, name: str | None, arguments: str) -> None:
        """Takes what a piece says."""
        if name_id and not self._has_id:
            self.id, self._has_id = name_id, True
        self.name = self.name or name or ""
        if arguments:
            self._unread.append(arguments)

    def whole(self) -> bool:
        """Whether the arguments are a whole object. Each of their pieces is read once, and only if this is asked."""
        for piece in self._unread:
            self._nesting.add(piece)
        self._unread.clear()
        return self._nesting.closed
