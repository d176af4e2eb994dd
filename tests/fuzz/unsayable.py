"""What Schemathesis has to know of the API beyond its document: what JSON Schema can't say."""

from __future__ import annotations

import json
from typing import Any

import pytest

# What a body may hold, in all; and a length at which no request gets there.
MOST_VALUES = 50_000
FEW = 100

schemathesis: Any = pytest.importorskip("schemathesis")


@schemathesis.check  # type: ignore[misc]
def server_errors_are_deadlines(context: Any, response: Any, case: Any) -> None:
    """Of server errors only a passed deadline is allowed, and only to who gave one."""
    if response.status_code < 500:
        return
    told = response.json()
    error = told.get("error", told)
    code = error.get("code") if isinstance(error, dict) else None
    assert _has_deadline(case), f"{response.status_code} without a deadline: {told}"
    assert code in ("timeout", "wait_exceeds_deadline", None), f"{response.status_code}: {told}"


def _has_deadline(case: Any) -> bool:
    names = {name.lower() for name in case.headers or {}}
    body = case.body if isinstance(case.body, dict) else {}
    # An earlier request with this Idempotency-Key may have had one.
    return not names.isdisjoint({"x-headrace-deadline-ms", "idempotency-key"}) or "deadline_ms" in body


@schemathesis.deserializer("application/x-ndjson")  # type: ignore[misc]
def lines(context: Any, response: Any) -> Any:
    """Each line of a stream."""
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook  # type: ignore[misc]
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Takes out of sound requests what can't be known to be sound, and spares the only worker."""
    operation = case.operation.definition.raw.get("operationId")
    if operation == "drainWorker":
        case.path_parameters["worker_id"] = "nobody"
    if "x-schemathesis-unknown-property" in (case.headers or {}):
        # A header that nobody knows is no fault, and Schemathesis says so too, unless another one is a number.
        case.headers.pop("x-headrace-deadline-ms", None)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _mend_query(case.query or {})
        if operation == "listModels":
            # A number, but only for clients of Anthropic's.
            (case.query or {}).pop("limit", None)
        if isinstance(case.body, dict):
            if sum(map(json.dumps(case.body).count, ",[{")) > MOST_VALUES:
                case.body = _few(case.body, FEW)
            _mend_body(case.body, has_deadline=_has_deadline(case))


def _mend_query(query: dict[str, Any]) -> None:
    # They must name something of the caller's, or of this deployment.
    for name in ("after", "pool", "after_id", "before_id"):
        query.pop(name, None)
    # Only with `stream`.
    if query.get("stream") is not True:
        query.pop("starting_after", None)


def _mend_body(body: dict[str, Any], *, has_deadline: bool) -> None:
    # An earlier response, of which there is none.
    body.pop("previous_response_id", None)
    # Nor any item of one.
    if isinstance(body.get("input"), list):
        items = [one for one in body["input"] if not isinstance(one, dict) or not _named_only(one)]
        # Each call with its output.
        items = [one for item in items for one in _with_output(item)]
        # Nor thoughts alone, of which nothing is left.
        thinks = all(isinstance(one, dict) and one.get("type") == "reasoning" for one in items)
        body["input"] = "a" if thinks else items
    # No longer than the deadline, which may stand in a header.
    if body.get("delay_ms") and has_deadline:
        body["delay_ms"] = 0
    # As many as there are to be.
    if body.get("best_of"):
        body["best_of"] = body.get("n") or 1
    if isinstance(body.get("messages"), list):
        _mend_messages(body["messages"])
    # One of the tools.
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "tool":
        body["tool_choice"] = {**choice, "name": body["tools"][0]["name"]}


def _named_only(item: dict[str, Any]) -> bool:
    return item.get("type") in ("item_reference", None) and "role" not in item


def _with_output(item: Any) -> list[Any]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call_output":
        return [{"type": "function_call", "call_id": item["call_id"], "name": "f", "arguments": "{}"}, item]
    if kind == "function_call":
        return [item, {"type": "function_call_output", "call_id": item["call_id"], "output": "a"}]
    return [item]


def _mend_messages(messages: list[Any]) -> None:
    # Of empty texts alone nothing is left of a turn, and of thoughts alone nothing of a conversation.
    for one in messages:
        content = one.get("content")
        if isinstance(content, list) and all(part["type"] == "text" and not part["text"] for part in content):
            one["content"] = "a"
    if _only_thinks(messages):
        messages.append({"role": "user", "content": "a"})


def _few(value: Any, most: int) -> Any:
    """The same with no list longer than that."""
    if isinstance(value, list):
        return [_few(one, most) for one in value[:most]]
    return {name: _few(one, most) for name, one in value.items()} if isinstance(value, dict) else value


def _only_thinks(messages: list[Any]) -> bool:
    return bool(messages) and all(
        one["role"] == "assistant" and isinstance(one.get("content"), list) for one in messages
    )
