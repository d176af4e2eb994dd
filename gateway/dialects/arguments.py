"""What dialects share of a tool's call: whatever its type its name and text, and its arguments as an object. Pure."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic_core import from_json

from common.contracts import JsonObject


def call_of(call: JsonObject) -> tuple[str, str]:
    """The name and the text of a call or of a piece of one: a function's arguments, or a custom tool's input.

    Only OpenAI's chats let a caller ask for custom tools, but a server may call one unasked.
    """
    said: JsonObject = call.get("function") or call.get("custom") or {}
    return said.get("name") or "", said.get("arguments") or said.get("input") or ""


def arguments_of(text: str) -> Any:
    """A call's arguments: as the model wrote them, or of what broke off in the middle the part that can be read."""
    try:
        if type(orjson.loads(text)) is dict:
            # Not read and written anew: numbers stay as long as they are. An end of a line, which can only be white
            # space here, would end the one that this becomes a part of.
            return orjson.Fragment(text.replace("\n", " ").replace("\r", " "))
        return {}
    except orjson.JSONDecodeError:
        pass
    try:
        found = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
        return orjson.Fragment(orjson.dumps(found)) if isinstance(found, dict) else {}
    except (ValueError, orjson.JSONEncodeError):
        return {}
