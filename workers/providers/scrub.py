"""Makes an upstream's own words safe to pass on: short, one line, no keys, no addresses, nothing of the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from common.contracts import JsonObject
from workers.providers.wire import is_list, is_object

MAX_CHARACTERS: Final = 300
# Text this short says nothing about a prompt, and removing it would tear ordinary words out of messages.
MIN_SECRET_CHARACTERS: Final = 8
MAX_RAW_CHARACTERS: Final = 16_384

_RULES: Final = (
    # What validation errors repeat of the input: pydantic's `input_value=…`, FastAPI's `'input': …`, to the end.
    (re.compile(r"""['"]?\binput(?:_value)?['"]?\s*[:=].*""", re.IGNORECASE | re.DOTALL), "[input]"),
    (re.compile(r"\b(?:https?|wss?|grpc|unix)://[^\s'\"<>)\]]+", re.IGNORECASE), "[address]"),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b"), "[address]"),
    (re.compile(r"\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=*-]+", re.IGNORECASE), "[key]"),
    (re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|nvapi|AIza)[-_]?[A-Za-z0-9_*-]{8,}"), "[key]"),
    (re.compile(r"\b[A-Za-z0-9_-]{32,}\b"), "[key]"),
    # Rate limits are told with the account that has them.
    (re.compile(r"\b(?:org|proj)[-_][A-Za-z0-9]{8,}"), "[account]"),
    (re.compile(r"\s+|[\x00-\x1f\x7f-\x9f\u2028\u2029]+"), " "),
)

_MARK: Final = re.compile(r"['\"`]")
LONG_QUOTATION_CHARACTERS: Final = 40


def safe(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the secrets given and without what looks like one; at most MAX_CHARACTERS."""
    text = text[:MAX_RAW_CHARACTERS]
    for secret in secrets:
        if len(secret) >= MIN_SECRET_CHARACTERS:
            text = text.replace(secret, "[removed]")
    text = _without_long_quotations(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _without_long_quotations(text: str) -> str:
    """The text without what is more likely the caller's than the server's.

    Quotations are taken in their order, so that one's end is not the next one's beginning, nor an apostrophe either.
    """
    marks = [found.start() for found in _MARK.finditer(text)]
    kept: list[str] = []
    lone: set[str] = set()
    at = number = 0
    while number < len(marks):
        start = marks[number]
        mark = text[start]
        number += 1
        if mark in lone or text[max(0, start - 1) : start].isalnum():
            continue
        last = next((n for n in range(number, len(marks)) if text[marks[n]] == mark and _closes(text, marks[n])), None)
        if last is None:
            lone.add(mark)  # nor does any later one of its kind end
            continue
        if marks[last] - start > LONG_QUOTATION_CHARACTERS + 1:
            kept += (text[at:start], "[text]")
            at = marks[last] + 1
        number = last + 1
    return "".join((*kept, text[at:]))


def _closes(text: str, place: int) -> bool:
    return not text[place + 1 : place + 2].isalnum()


def prompt_texts(body: JsonObject) -> Iterator[str]:
    """Every text that the caller wrote into this request's prompt, the longest pieces whole."""
    for field in ("messages", "prompt", "input"):
        yield from _texts(body.get(field))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        yield from (line for line in value.splitlines() if line != value)
    elif is_list(value):
        for item in value:
            yield from _texts(item)
    elif is_object(value):
        for key, item in value.items():
            if key not in ("role", "type"):
                yield from _texts(item)
