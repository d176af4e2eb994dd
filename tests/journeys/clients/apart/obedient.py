"""A stand-in for a model that understands: it calls tools with what the question names, and fills in schemas.

What others test their own clients with needs a model that does as it is told. It speaks chat completions, whole or as a
stream in small pieces; a gateway is in front of it, and is what is tested.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from tests.support.upstream import Reply, Request

NAMES: Final = {"id": "chatcmpl-obedient", "created": 1_700_000_000, "model": "obedient-1"}
WORDS: Final = "Here is what you asked for."
_PIECE_CHARACTERS: Final = 6
_NUMBER: Final = re.compile(r"\((-?\d+)\)")
_QUOTED: Final = re.compile(r"'([^']+)'")


def answer(request: Request) -> Reply:
    """The reply to a request of a worker or the prober."""
    if request.method == "GET":
        return _whole({"object": "list", "data": [{"id": NAMES["model"], "object": "model"}]})
    body = request.json()
    message = _message(body)
    reason = "tool_calls" if "tool_calls" in message else "stop"
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    if body.get("stream"):
        return Reply([*_events(message, reason), _event([], usage), b"data: [DONE]\n\n"])
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": reason}
    return _whole({**NAMES, "object": "chat.completion", "choices": [choice], "usage": usage})


# --- what to say ------------------------------------------------------------------------------------------------------


def _message(body: dict[str, Any]) -> dict[str, Any]:
    said = _text(body["messages"][-1])
    if (function := _function(body)) is not None:
        arguments = orjson.dumps(instance(function.get("parameters") or {}, said)).decode()
        called = {"name": function["name"], "arguments": arguments}
        return {"tool_calls": [{"id": "call_obedient", "type": "function", "function": called}]}
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return {"content": orjson.dumps(instance(form["json_schema"]["schema"], said)).decode()}
    if form.get("type") == "json_object":
        return {"content": orjson.dumps(dict.fromkeys(_QUOTED.findall(said), "some words")).decode()}
    return {"content": WORDS}


def _function(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function to call: the one that must be, else the first where the user asks something."""
    functions = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or "auto"
    if not functions or choice == "none" or (choice == "auto" and body["messages"][-1]["role"] != "user"):
        return None
    wanted = choice["function"]["name"] if isinstance(choice, dict) else functions[0]["name"]
    return next(function for function in functions if function["name"] == wanted)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def instance(schema: dict[str, Any], said: str = "", root: dict[str, Any] | None = None) -> Any:
    """Something that a JSON schema allows; numbers and strings from the question, where it has any."""
    root = schema if root is None else root
    if "$ref" in schema:
        return instance(root["$defs"][schema["$ref"].rpartition("/")[2]], said, root)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return instance(schema[several][0], said, root)
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    return _of_type(schema, said, root)


def _of_type(schema: dict[str, Any], said: str, root: dict[str, Any]) -> Any:
    number, quoted = _NUMBER.search(said), _QUOTED.search(said)
    match schema.get("type"):
        case "array":
            return [instance(schema.get("items") or {}, said, root)]
        case "integer" | "number":
            return int(number[1]) if number else 1
        case "boolean":
            return True
        case "string":
            return quoted[1] if quoted else "some words"
        case _:
            return {name: instance(part, said, root) for name, part in (schema.get("properties") or {}).items()}


# --- how to say it ----------------------------------------------------------------------------------------------------


def _whole(document: dict[str, Any]) -> Reply:
    return Reply([orjson.dumps(document)], content_type="application/json", chunked=False)


def _event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {**NAMES, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _events(message: dict[str, Any], reason: str) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(message.get("content") or "")]
    for call in message.get("tool_calls", ()):
        named = {**call, "function": {**call["function"], "arguments": ""}}
        deltas.append({"tool_calls": [{"index": 0, **named}]})
        deltas += [_arguments(piece) for piece in _pieces(call["function"]["arguments"])]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    return [_event([choice]) for choice in [*choices, {"index": 0, "delta": {}, "finish_reason": reason}]]


def _arguments(piece: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _pieces(text: str) -> list[str]:
    return [text[start : start + _PIECE_CHARACTERS] for start in range(0, len(text), _PIECE_CHARACTERS)]
