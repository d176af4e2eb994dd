"""Decoding upstream bytes as they come: server-sent events, JSON lines, JSON objects.

A decoder is fed the reads of one answer, cut anywhere, and gives whole payloads as bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, TypeGuard

import orjson

from common.contracts import JsonObject
from common.errors import UpstreamProtocolError

MAX_LINE_BYTES: Final = 1024 * 1024
DONE: Final = b"[DONE]"
# What is nested deeper can be read and not be written again, some levels further in.
MOST_LEVELS: Final = 200

_NUMBERS: Final = frozenset({int, float})
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# An escape in JSON: a pair of surrogates, a half of one alone, anything else.
_ESCAPE: Final = re.compile(r"\\(?:u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|(u[dD][89a-fA-F]\w\w)|.)")


class LineDecoder:
    """Reads to whole lines, ended by LF, CRLF or CR; a line is at most `most_bytes` long."""

    __slots__ = ("_after_cr", "_most_bytes", "rest")

    def __init__(self, most_bytes: int = MAX_LINE_BYTES) -> None:
        self._most_bytes = most_bytes
        self.rest = bytearray()
        self._after_cr = False

    def feed(self, raw: bytes) -> list[bytes]:
        """The lines that this read completes, without their ends."""
        if self._after_cr and raw:
            # The last read ended in CR, which ended its line; an LF now is the other half of it.
            self._after_cr = False
            raw = raw.removeprefix(b"\n")
        if b"\n" not in raw and b"\r" not in raw:
            self._keep(raw)
            return []
        self._after_cr = raw.endswith(b"\r")
        lines = raw.splitlines()
        if self.rest:
            lines[0] = bytes(self.rest) + lines[0]
            self.rest.clear()
        unfinished = b"" if raw.endswith((b"\n", b"\r")) else lines.pop()
        if max(map(len, lines)) > self._most_bytes:
            raise _too_long(self._most_bytes)
        self._keep(unfinished)
        return lines

    def _keep(self, raw: bytes) -> None:
        self.rest += raw
        if len(self.rest) > self._most_bytes:
            raise _too_long(self._most_bytes)


class SseDecoder:
    """Reads to the `data` of server-sent events without blanks around it.

    Comments and other fields are dropped, and events without data.
    """

    __slots__ = ("_data", "_data_bytes", "_lines", "_most_bytes", "_started")

    def __init__(self, most_bytes: int = MAX_LINE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lines = LineDecoder(most_bytes)
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._started = False

    def feed(self, raw: bytes) -> list[bytes]:
        """The payloads of the events that this read completes, in order."""
        # Nearly every read holds whole `data: …` events and nothing else: one split, and a count that proves it.
        if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and self._idle:
            payloads = raw[6:-2].split(b"\n\ndata: ")
            if raw.count(b"\n") == 2 * len(payloads) and b"\r" not in raw and len(raw) <= MAX_LINE_BYTES:
                self._started = True
                # Nearly every read is one object and nothing around it.
                return payloads if len(payloads) == 1 and raw[6] == 123 and raw[-3] == 125 else _said(payloads)
        return self._decode(raw)

    @property
    def _idle(self) -> bool:
        return not self._lines.rest and not self._data

    def _decode(self, raw: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        for line in self._lines.feed(raw):
            if not line and self._data:
                payloads.append(b"\n".join(self._data))
                self._data = []
                self._data_bytes = 0
            elif line:
                self._take(self._first(line) if not self._started else line)
        return _said(payloads)

    def _first(self, line: bytes) -> bytes:
        self._started = True
        return line.removeprefix(_BYTE_ORDER_MARK)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._data.append(value.removeprefix(b" "))
        self._data_bytes += len(value)
        if self._data_bytes > self._most_bytes:
            raise _too_long(self._most_bytes)


def _said(payloads: list[bytes]) -> list[bytes]:
    return [payload for payload in map(bytes.strip, payloads) if payload]


class JsonLineDecoder:
    """Reads to the lines of newline-delimited JSON; blank lines are dropped."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines = LineDecoder()

    def feed(self, raw: bytes) -> list[bytes]:
        """The lines that this read completes, in order."""
        if raw.endswith(b"\n") and not self._lines.rest and len(raw) <= MAX_LINE_BYTES:
            return [line for line in raw.splitlines() if line]
        return [line for line in self._lines.feed(raw) if line]

    def finish(self) -> list[bytes]:
        """What is left when the body has ended: a last line may lack its end."""
        rest = bytes(self._lines.rest)
        self._lines.rest.clear()
        return [rest] if rest else []


def json_object(raw: bytes) -> JsonObject:
    """The JSON object in these bytes; what is not UTF-8, half a surrogate pair too, becomes U+FFFD.

    Raises UpstreamProtocolError, also for what is nested deeper than MOST_LEVELS.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = _loads_repaired(raw)
    if not is_object(value):
        raise UpstreamProtocolError("The model's server sent JSON that is not an object.")
    if len(raw) > 2 * MOST_LEVELS and _may_be_deep(raw) and is_deep(value):
        raise UpstreamProtocolError("The model's server sent JSON that is nested too deeply.")
    return value


def value_in(text: str) -> Any:
    """The value that a caller's text is in JSON; None where it is none, or is nested deeper than MOST_LEVELS."""
    raw = text.encode("utf-8", "replace")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return None if _may_be_deep(raw) and is_deep(value) else value


def _may_be_deep(raw: bytes) -> bool:
    """Whether it has as many brackets as that takes, which nearly no event has bytes for."""
    return len(raw) > 2 * MOST_LEVELS and raw.count(b"{") + raw.count(b"[") > MOST_LEVELS


def is_deep(value: Any) -> bool:
    """Whether this value out of JSON has objects and arrays in more than MOST_LEVELS of one another."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for one in level if is_object(one) or is_list(one) for inner in _inside(one)]
        if not level:
            return False
    return any(is_object(one) or is_list(one) for one in level)


def _inside(value: JsonObject | list[Any]) -> Iterable[Any]:
    if is_object(value):
        return value.values()
    return () if _NUMBERS.issuperset(map(type, value)) else value  # a vector, which has thousands


def is_object(value: Any) -> TypeGuard[JsonObject]:
    """Whether this value out of JSON is an object."""
    return type(value) is dict


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether this value out of JSON is an array."""
    return type(value) is list


def _loads_repaired(raw: bytes) -> Any:
    try:
        return orjson.loads(_ESCAPE.sub(_whole, raw.decode("utf-8", "replace")))
    except orjson.JSONDecodeError:
        # The text itself stays out of the error: it may hold a prompt or an answer.
        raise UpstreamProtocolError("The model's server sent something that is not JSON.") from None


def _whole(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape[1] else escape[0]


def _too_long(most_bytes: int) -> UpstreamProtocolError:
    return UpstreamProtocolError(f"The model's server sent a line longer than {most_bytes} bytes.")
