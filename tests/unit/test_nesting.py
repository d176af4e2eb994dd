"""Where an object ends that comes in pieces."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import orjson
import pytest

from gateway.dialects.nesting import Nesting

OBJECTS: list[dict[str, Any]] = [
    {},
    {"a": 1, "b": [2, {"c": None}], "d": {}},
    {"a": 'quoted " here', "b": "{[", 'k"}': "]}"},
    {"ends in a backslash \\": "\\", "two": "\\\\", "both": '\\"}'},
    {"a": "é汉\n\t\u2028", "}": "{"},
]


@pytest.mark.parametrize("found", OBJECTS)
def test_an_object_is_whole_at_its_last_brace_and_not_before(found: dict[str, Any]) -> None:
    text = orjson.dumps(found).decode()
    for cuts in combinations(range(1, len(text)), min(2, len(text) - 1)):
        nesting = Nesting()
        for begin, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
            assert not nesting.closed
            nesting.add(text[begin:end])
        assert nesting.closed


def test_what_is_no_object_is_never_whole() -> None:
    for text in ("null", '"{}"', "[1]", "5"):
        nesting = Nesting()
        nesting.add(text)
        assert not nesting.closed
