"""Makes an upstream's own words safe to pass on: short, one line, no keys, no addresses, nothing of the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from common.contracts import JsonObject
from workers.providers.wire import is_list, is_object

MAX_CHARACTERS: Final = 300
# Text this short says nothing about a prompt, and removing it would tear ordinary words out of messages.
MIN_SECRET_CHARACTERS: Final = 8
LONGER_CHARACTERS: Final = 24
MAX_RAW_CHARACTERS: Final = 16_384
# A message in which so many of the prompt's lines might stand is the prompt: nothing of it is passed on.
MOST_CANDIDATES: Final = 200
# Where a line's beginning stands so often in a message, nobody asks any longer at which of them the end cuts it.
MOST_BEGINNINGS: Final = 16

_RULES: Final = (
    # What validation errors repeat of the input: pydantic's `input_value=…`, FastAPI's `'input': …`, to the end.
    (re.compile(r"""['"]?\binput(?:_value)?['"]?\s*[:=].*""", re.IGNORECASE | re.DOTALL), "[input]"),
    (re.compile(r"\b(?:https?|wss?|grpc|unix)://[^\s'\"<>)\]]+", re.IGNORECASE), "[address]"),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b"), "[address]"),
    (re.compile(r"\[(?:[0-9a-f]{0,4}:){2,7}[0-9a-f.]{0,15}(?:%\w{1,15})?\](?::\d{1,5})?", re.IGNORECASE), "[address]"),
    (
        re.compile(
            r"(?<![\w:.])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|::(?:[0-9a-f]{1,4}:){0,5}[0-9a-f]{1,4}"
            r"|(?:[0-9a-f]{1,4}:){1,6}:(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,5})?)(?![\w:])",
            re.IGNORECASE,
        ),
        "[address]",
    ),
    # Names of hosts: with a port, or of a network of one's own.
    (re.compile(r"(?<![\w.-])(?:[\w-]{1,63}\.){1,8}[A-Za-z][A-Za-z0-9-]{0,62}:\d{1,5}\b"), "[address]"),
    (
        re.compile(
            r"(?<![\w.-])(?:[\w-]{1,63}\.){1,8}(?:internal|intranet|local|localdomain|lan|svc|corp|home\.arpa)\b",
            re.IGNORECASE,
        ),
        "[address]",
    ),
    (re.compile(r"\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=*-]+", re.IGNORECASE), "[key]"),
    (re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|nvapi|AIza)[-_]?[A-Za-z0-9_*-]{8,}"), "[key]"),
    (re.compile(r"\b[A-Za-z0-9_-]{32,}\b"), "[key]"),
    # Rate limits are told with the account that has them.
    (re.compile(r"\b(?:org|proj)[-_][A-Za-z0-9]{8,}"), "[account]"),
    (re.compile(r"\s+|[\x00-\x1f\x7f-\x9f\u2028\u2029]+"), " "),
)

_MARK: Final = re.compile(r"['\"`]")
LONG_QUOTATION_CHARACTERS: Final = 40
_BEGINNING: Final = itemgetter(slice(MIN_SECRET_CHARACTERS))


@dataclass(frozen=True, slots=True)
class Secrets(Iterable[str]):
    """What of a call must not come back: `own` are its key and address, however short, the prompt is in `body`."""

    own: tuple[str, ...]
    body: JsonObject

    def __iter__(self) -> Iterator[str]:
        return chain(self.own, prompt_texts(self.body))


def safe(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the secrets given and without what looks like one; at most MAX_CHARACTERS.

    Secrets shorter than MIN_SECRET_CHARACTERS stay, a call's own among them only inside words.
    """
    text = _without_long_quotations(_without(text[:MAX_RAW_CHARACTERS], secrets))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _without(text: str, secrets: Iterable[str]) -> str:
    """The text without these; empty where too many of them may stand in it."""
    candidates = candidates_in(text, secrets)
    if len(candidates) > MOST_CANDIDATES:
        return ""
    own = secrets.own if isinstance(secrets, Secrets) else ()
    places = [place for one in candidates for place in _places(text, one)]
    places += [place for one in own if len(one) < MIN_SECRET_CHARACTERS for place in _words(text, one)]
    kept: list[str] = []
    at = 0
    for start, end in sorted(places):
        # One that begins inside another is removed with it: what is left of neither may stay.
        if start >= at:
            kept += (text[at:start], "[removed]")
        at = max(at, end)
    return "".join((*kept, text[at:]))


def _places(text: str, secret: str) -> Iterator[tuple[int, int]]:
    """Where the secret stands in the text, and where its beginning is the text's end: servers cut what they say."""
    at = text.find(secret)
    while at >= 0:
        yield at, at + len(secret)
        at = text.find(secret, at + len(secret))
    beginning = secret[:MIN_SECRET_CHARACTERS]
    first = at = text.find(beginning, max(0, len(text) - len(secret) + 1))
    for _ in range(MOST_BEGINNINGS):
        if at < 0:
            return
        if secret.startswith(text[at:]):
            yield at, len(text)
            return
        at = text.find(beginning, at + 1)
    if at >= 0:  # it says little else
        yield first, len(text)


def _words(text: str, secret: str) -> Iterator[tuple[int, int]]:
    """Where the secret stands by itself: part of a word it may be by chance."""
    return (found.span() for found in re.finditer(rf"(?<!\w){re.escape(secret)}(?!\w)", text) if secret)


def candidates_in(text: str, secrets: Iterable[str]) -> set[str]:
    """Those of the secrets whose beginning is in the text.

    A prompt may have some 100,000 lines, and all of this is done between two tokens of other callers: nothing here is
    done line by line but what the interpreter does by itself.
    """
    windows = {text[at : at + MIN_SECRET_CHARACTERS] for at in range(len(text) - MIN_SECRET_CHARACTERS + 1)}
    if not windows:
        return set()
    secrets = secrets if isinstance(secrets, Secrets) else tuple(secrets)  # read twice
    beginnings = windows.intersection(map(_BEGINNING, secrets))
    found = {secret for secret in secrets if secret[:MIN_SECRET_CHARACTERS] in beginnings} if beginnings else set[str]()
    return found if len(found) <= MOST_CANDIDATES else _likelier(text, found)


def _likelier(text: str, secrets: set[str]) -> set[str]:
    """Those of which more than a first word is in the text: many lines of a prompt may begin with the same one."""
    sizes = {min(len(secret), LONGER_CHARACTERS) for secret in secrets}
    windows = {text[at : at + size] for size in sizes for at in range(len(text) - size + 1)}
    # Of one that the end of the text cuts off there is less.
    ends: dict[str, list[str]] = {}
    for size in range(MIN_SECRET_CHARACTERS, min(LONGER_CHARACTERS, len(text))):
        ends.setdefault(_BEGINNING(text[-size:]), []).append(text[-size:])
    return {
        secret
        for secret in secrets
        if secret[:LONGER_CHARACTERS] in windows or any(map(secret.startswith, ends.get(_BEGINNING(secret), ())))
    }


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


_NUMBERS: Final = frozenset({int, float})


def prompt_texts(body: JsonObject) -> Iterator[str]:
    """Every text that the caller wrote into this request's prompt, the longest pieces whole, then line by line."""
    texts = _texts([body.get(field) for field in ("messages", "prompt", "input")])
    return chain(texts, chain.from_iterable(map(str.splitlines, texts)))


def _texts(value: Any) -> list[str]:
    """The texts in this, however deep; numbers are not looked at one by one, for a prompt may be tokens."""
    texts: list[str] = []
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            texts.append(value)
        elif is_list(value):
            rest += value if not _NUMBERS.issuperset(map(type, value)) else ()
        elif is_object(value):
            rest += (item for key, item in value.items() if key not in ("role", "type"))
    return texts
