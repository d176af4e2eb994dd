"""Pure: bytes of a batch's input to its lines, and what makes a line, or the whole of them, no valid input."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from common.contracts import JsonObject
from gateway.dialects.bounded import is_list, is_object
from gateway.dialects.embeddings import ENDPOINT as EMBEDDINGS

MOST_LINES: Final = 50_000
MOST_INPUTS: Final = 50_000
MOST_ERRORS: Final = 100
MOST_ID_CHARACTERS: Final = 512
MOST_MODEL_CHARACTERS: Final = 256

_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r"
_FIELDS: Final = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank: its number from 1, its bytes without the end of the line, and where it stands."""

    number: int
    data: bytes
    first_byte: int
    next_byte: int


class LineTooLong(Exception):
    """A line goes on for too long; its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Splitter:
    """Pieces of a file in, its lines out. Blank lines are counted and left out, a byte order mark is no part of one."""

    def __init__(self, *, first_byte: int = 0, first_line: int = 1, most_bytes: int | None = None) -> None:
        self._rest = b""
        self._at_byte = first_byte
        self._line = first_line
        self._most_bytes = most_bytes

    def feed(self, data: bytes) -> list[RawLine]:
        """The lines that end in this piece. Raises LineTooLong."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        found = [line for one in whole if (line := self._take(one, len(one) + 1)) is not None]
        if self._most_bytes is not None and len(self._rest) > self._most_bytes:
            raise LineTooLong(self._line)
        return found

    def end(self) -> list[RawLine]:
        """The last line, where the file does not end with the end of a line. Raises LineTooLong."""
        rest, self._rest = self._rest, b""
        line = self._take(rest, len(rest)) if rest else None
        return [] if line is None else [line]

    def _take(self, data: bytes, size_bytes: int) -> RawLine | None:
        number, first_byte = self._line, self._at_byte
        self._line += 1
        self._at_byte += size_bytes
        if self._most_bytes is not None and len(data) > self._most_bytes:
            raise LineTooLong(number)
        if first_byte == 0:
            data = data.removeprefix(_BOM)
        data = data.strip(_BLANK)
        return RawLine(number, data, first_byte, self._at_byte) if data else None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an input is not valid: one of the batch's `errors`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class InvalidLine(Exception):
    """The line is no request of a batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def request_in(data: bytes, endpoint: str) -> JsonObject:
    """The line's object, its four fields as they must be. Raises InvalidLine."""
    try:
        found: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise InvalidLine("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not is_object(found):
        raise InvalidLine("invalid_json_line", "This line is not a JSON object.")
    for name in _FIELDS:
        if found.get(name) is None:
            raise InvalidLine("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    _check_id(found["custom_id"])
    if found["method"] != "POST":
        raise InvalidLine("invalid_method", "The method must be 'POST'.", "method")
    if found["url"] != endpoint:
        text = f"The URL of this line does not match the batch's endpoint: expected {endpoint!r}."
        raise InvalidLine("mismatched_url", text, "url")
    _check_body(found["body"])
    return found


def _check_id(given: Any) -> None:
    if not isinstance(given, str) or not 0 < len(given) <= MOST_ID_CHARACTERS:
        text = f"The custom_id must be a text of 1 to {MOST_ID_CHARACTERS} characters."
        raise InvalidLine("invalid_custom_id", text, "custom_id")


def _check_body(body: Any) -> None:
    if not is_object(body):
        raise InvalidLine("invalid_request", "The body must be a JSON object.", "body")
    if body.get("stream"):
        raise InvalidLine("unsupported_parameter", "Requests of a batch can't be streamed.", "body.stream")


class InputCheck:
    """Looks at each line of an input in turn, and remembers only what all of them together must keep to."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: set[bytes] = set()
        self._inputs = 0
        self._models: set[Any] = set()
        self.total = 0
        self.faults: list[Fault] = []

    @property
    def full(self) -> bool:
        """Whether it is known well enough that the input is not valid."""
        return len(self.faults) >= MOST_ERRORS or self.total > MOST_LINES or self._inputs > MOST_INPUTS

    @property
    def model(self) -> str | None:
        """The model, where all lines name the same."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    def add(self, line: RawLine) -> None:
        """Looks at the next line."""
        self.total += 1
        try:
            self._add(request_in(line.data, self._endpoint))
        except InvalidLine as fault:
            self.faults.append(Fault(fault.code, fault.message, fault.param, line.number))

    def _add(self, found: JsonObject) -> None:
        custom_id, body = found["custom_id"], found["body"]
        digest = blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._ids:
            text = "The custom_id for this request is a duplicate of another request. Each one must be unique."
            raise InvalidLine("duplicate_custom_id", text, "custom_id")
        self._ids.add(digest)
        if len(self._models) < 2:
            model = body.get("model")
            self._models.add(model if isinstance(model, str) and _is_name(model) else None)
        if self._endpoint == EMBEDDINGS:
            self._inputs += _inputs(body.get("input"))

    def too_long(self, number: int, most_bytes: int) -> None:
        """Notes that a line goes on for too long to be looked at."""
        self.faults.append(Fault("line_too_long", f"A line may have at most {most_bytes} bytes.", None, number))

    def end(self) -> list[Fault]:
        """What is wrong with the input, now that all of it was seen; empty where it is valid."""
        if self.total == 0 and not self.faults:
            return [Fault("empty_file", "The input file is empty. Please ensure that it has at least one request.")]
        if self.total > MOST_LINES:
            return [*self.faults, Fault("too_many_tasks", f"A batch may have at most {MOST_LINES} requests.")]
        if self._inputs > MOST_INPUTS:
            text = f"A batch may have at most {MOST_INPUTS} embedding inputs over all its requests."
            return [*self.faults, Fault("too_many_inputs", text)]
        return self.faults


def _is_name(model: str) -> bool:
    """Whether a model may have this name; what else a line says is told where it is refused, not by the batch."""
    return len(model) <= MOST_MODEL_CHARACTERS and model.isprintable()


def _inputs(given: Any) -> int:
    """How many texts or lists of tokens are to be embedded."""
    return len(given) if is_list(given) and given and not isinstance(given[0], int) else 1
