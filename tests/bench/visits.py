"""What a stand-in upstream saw of each request, told at `/log`: when it came, when it ended, what its prompt cost.

Times are the machine's monotonic clock in seconds, which all processes of a run share.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

_MARK: Final = "#"


@dataclass(slots=True)
class Visit:
    """One request at a stand-in. `number` is what its caller wrote in front of its text, or -1."""

    number: int
    came_s: float
    first_s: float | None = None
    ended_s: float | None = None
    whole: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def marked(number: int, text: str) -> str:
    """A user's text that bears its request's number."""
    return f"{_MARK}{number} {text}"


def number_of(body: dict[str, Any]) -> int:
    """The number in a chat request's last message; -1 where there is none."""
    try:
        word = str(body["messages"][-1]["content"]).split(" ", 1)[0]
    except (LookupError, TypeError):
        return -1
    digits = word.removeprefix(_MARK)
    return int(digits) if word.startswith(_MARK) and digits.isdigit() else -1


def encode(visits: list[Visit]) -> list[dict[str, Any]]:
    """Visits as JSON objects."""
    return [asdict(visit) for visit in visits]


def decode(raw: bytes) -> list[Visit]:
    """The visits that a stand-in's `/log` told."""
    return [Visit(**row) for row in orjson.loads(raw)["visits"]]
