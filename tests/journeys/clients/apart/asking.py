"""What several clients are asked: scripts for the echo model, a picture, a place that answers are parsed to."""

from __future__ import annotations

from typing import Any, Final

import orjson
from pydantic import BaseModel

PICTURE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CITIES: Final = ("Saint-Étienne", "東京")


class Place(BaseModel):
    """A place."""

    city: str
    people: int


def script(**words: Any) -> str:
    """Words that have the echo model answer by a script."""
    return "echo: " + orjson.dumps(words).decode()


LYON: Final = Place(city="Lyon", people=522_250)
SAYS_LYON: Final = script(text=LYON.model_dump_json())
"""The answer is the place as JSON."""
CALLS: Final = script(tool_calls=[{"name": "weather", "arguments": {"city": city}} for city in CITIES])
"""The answer is two calls of the tool `weather`."""
