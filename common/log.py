"""Logs: one JSON object a line, with the ids that belong together, and never a prompt, an answer or a key.

Every module takes its logger with `structlog.get_logger(__name__)`; each process calls `configure` once.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable, MutableMapping
from itertools import islice
from types import TracebackType
from typing import Any, BinaryIO, Final

import orjson
import structlog

from common.errors import HeadraceError

MAX_TEXT_CHARACTERS: Final = 2_000
MAX_FRAMES: Final = 12
MAX_ENTRIES: Final = 50
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1

Event = MutableMapping[str, Any]

# Fields by these names would hold somebody's text or a secret: whoever logs one by mistake logs nothing.
_PRIVATE: Final = frozenset(
    {
        *("api_key", "api_keys", "authorization", "key", "password", "secret", "token", "headers"),
        *("body", "messages", "prompt", "content", "text", "result", "answer", "events", "metadata"),
    }
)
REMOVED: Final = "[removed]"
# JSON escapes the first 32 control characters itself; these, too, can rewrite a terminal or break a line.
_CONTROLS: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# They say too much, or repeat what they work on.
_QUIETER: Final = ("arq", "asyncio", "httpx", "httpcore", "aiohttp", "uvicorn.access", "urllib3")


def configure(level: str, *, process: str, file: BinaryIO | None = None) -> None:
    """Sends this process's logs to `file` (standard error) from a level on: ours and the libraries'."""
    out = file or sys.stderr.buffer
    structlog.configure(
        processors=_processors(process),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    _take_over(_LEVELS[level], out, process)


def render(_: object, __: str, event: Event) -> bytes:
    """The event as a line of JSON in which nothing can end the line or move the cursor."""
    line = orjson.dumps(event, default=_shown, option=orjson.OPT_NON_STR_KEYS).decode()
    if not line.isascii() and _CONTROLS.search(line):
        line = _CONTROLS.sub(_escaped, line)
    return line.replace("\x7f", "\\u007f").encode()


def keep_private(_: object, __: str, event: Event) -> Event:
    """The event without what must not be logged, and with long texts cut."""
    for name, value in event.items():
        if name in _PRIVATE and not isinstance(value, int | float | None):
            event[name] = REMOVED
        elif name != "exc_info":
            event[name] = _bounded(value)
    return event


def tell_exception(_: object, __: str, event: Event) -> Event:
    """The event with its exception's type and place; with its text only where that is ours: others repeat the input."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(error, BaseException):
        event["exception"] = _chain(error)
    return event


def _processors(process: str) -> list[Any]:
    def name_process(_: object, __: str, event: Event) -> Event:
        event["process"] = process
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
        keep_private,
        tell_exception,
        render,
    ]


def _chain(error: BaseException) -> list[dict[str, Any]]:
    """The exception and its causes, the last one first."""
    told: list[dict[str, Any]] = []
    link: BaseException | None = error
    while link is not None and len(told) < 5:
        entry: dict[str, Any] = {"type": type(link).__qualname__, "at": _frames(link.__traceback__)}
        if isinstance(link, HeadraceError):
            entry["code"], entry["message"] = link.failure.code, _plain(link.failure.message)
        elif isinstance(link, OSError) and link.strerror:
            entry["message"] = link.strerror
        told.append(entry)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return told


def _frames(trace: TracebackType | None) -> list[str]:
    found = traceback.extract_tb(trace)[-MAX_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in found]


def _bounded(value: Any) -> Any:
    """A value that is cut where it is too long, one level deep; what lies deeper is told by its type only."""
    if isinstance(value, dict):
        pairs = islice(_items(value), MAX_ENTRIES)  # pyright: ignore[reportUnknownArgumentType]
        return {str(_plain(name)): REMOVED if name in _PRIVATE else _plain(item) for name, item in pairs}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:MAX_ENTRIES]]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return _plain(value)


def _items(value: dict[object, object]) -> Iterable[tuple[object, object]]:
    return value.items()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        text = value if len(value) <= MAX_TEXT_CHARACTERS else value[:MAX_TEXT_CHARACTERS] + "…"
        # A lone surrogate is no UTF-8.
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        return "[beyond 64 bits]"
    return value if isinstance(value, int | float | None) else _shown(value)


def _shown(value: object) -> str:
    """What stands for a value that JSON has no form for: its type, since its own text might say too much."""
    return f"<{type(value).__qualname__}>"


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


# --- what libraries say -----------------------------------------------------------------------------------------------


class _Forwarding(logging.Handler):
    """Libraries' log records as lines of ours."""

    def __init__(self, out: BinaryIO, process: str) -> None:
        super().__init__()
        self._out = out
        self._processors = _processors(process)

    def emit(self, record: logging.LogRecord) -> None:
        event: Event = {"event": "library", "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            event["exc_info"] = record.exc_info[1]
        for processor in self._processors:
            event = processor(None, record.levelname.lower(), event)
        self._out.write(bytes(event) + b"\n")  # pyright: ignore[reportArgumentType]
        self._out.flush()


def _take_over(level: int, out: BinaryIO, process: str) -> None:
    root = logging.getLogger()
    root.handlers = [_Forwarding(out, process)]
    root.setLevel(max(level, logging.INFO))
    logging.captureWarnings(True)
    for name in _QUIETER:
        logging.getLogger(name).setLevel(logging.WARNING)
