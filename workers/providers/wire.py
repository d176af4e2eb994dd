"""Decoding upstream bytes as they come: server-sent events, JSON lines, JSON objects.

A decoder is fed the reads of one answer, cut anywhere, and gives whole payloads as bytes.
"""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import orjson

from common.contracts import JsonObject
from common.errors import UpstreamProtocolError

MAX_LINE_BYTES: Final = 1024 * 1024
DONE: Final = b"[DONE]"

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class LineDecoder:
    """Reads to whole lines, ended by LF, CRLF or CR; a line is at most MAX_LINE_BYTES long."""

    __slots__ = ("_after_cr", "rest")

    def __init__(self) -> None:
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
        if max(map(len, lines)) > MAX_LINE_BYTES:
            raise _too_long()
        self._keep(unfinished)
        return lines

    def _keep(self, raw: bytes) -> None:
        self.rest += raw
        if len(self.rest) > MAX_LINE_BYTES:
            raise _too_long()


class SseDecoder:
    """Reads to the `data` of server-sent events; comments and other fields are dropped."""

    __slots__ = ("_data", "_data_bytes", "_lines", "_started")

    def __init__(self) -> None:
        self._lines = LineDecoder()
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
                return payloads
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
        return payloads

    def _first(self, line: bytes) -> bytes:
        self._started = True
        return line.removeprefix(_BYTE_ORDER_MARK)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._data.append(value.removeprefix(b" "))
        self._data_bytes += len(value)
        if self._data_bytes > MAX_LINE_BYTES:
            raise _too_long()


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
    """The JSON object in these bytes; bytes that are not UTF-8 become U+FFFD. Raises UpstreamProtocolError."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = _loads_repaired(raw)
    if not is_object(value):
        raise UpstreamProtocolError("The model's server sent JSON that is not an object.")
    return value


def is_object(value: Any) -> TypeGuard[JsonObject]:
    """Whether this value out of JSON is an object."""
    return type(value) is dict


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether this value out of JSON is an array."""
    return type(value) is list


def _loads_repaired(raw: bytes) -> Any:
    try:
        return orjson.loads(raw.decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        # The text itself stays out of the error: it may hold a prompt or an answer.
        raise UpstreamProtocolError("The model's server sent something that is not JSON.") from None


def _too_long() -> UpstreamProtocolError:
    return UpstreamProtocolError(f"The model's server sent a line longer than {MAX_LINE_BYTES} bytes.")
