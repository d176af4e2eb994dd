"""Server-sent events from bytes: a decoder without I/O, by the WHATWG standard."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name, its data, and the id in force when it was sent."""

    data: str
    id: str
    name: str = "message"


class Decoder:
    """Feeds on pieces cut anywhere, gives whole events; an event that never ended is never given."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._data: list[str] = []
        self._id = ""
        self._name = ""

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        self._rest += self._text.decode(piece)
        # A carriage return at the very end may be half of a CRLF: it waits for the next piece.
        held = "\r" if self._rest.endswith("\r") else ""
        lines = self._rest.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        data, self._data = self._data, []
        name, self._name = self._name, ""
        return Event("\n".join(data), self._id, name or "message") if data else None
