"""A request for a response to the chat request that is queued for it; faults named as they are called there.

What a response was asked with lies in its job: the conversation in the chat request, the rest of it in `Job.asked`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from common.contracts import Failure, JsonObject, pool_of
from common.errors import BadRequest
from gateway.dialects.bounded import is_object, read_object
from gateway.dialects.names import RESPONSES
from gateway.dialects.openai import ChatRequest, chat_request
from gateway.dialects.responses_schema import ResponsesBody, check_response, response_schemas
from gateway.dialects.responses_turns import Turns, check_calls, turns_of

ENDPOINT: Final = "/v1/responses"
_JOB: Final = "job_"
_RESPONSE: Final = "resp_"

# Fields that mean the same in both requests.
_SAME: Final = (
    *("model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "parallel_tool_calls"),
    *("service_tier", "user", "safety_identifier", "prompt_cache_key"),
)
# Fields that have been made something else of, or are nobody's but ours.
_MADE: Final = frozenset(
    {
        *("input", "instructions", "previous_response_id", "tools", "tool_choice", "max_tool_calls", "text"),
        *("reasoning", "max_output_tokens", "truncation", "include", "metadata", "store", "background", "stream"),
        *("stream_options", "prompt_cache_retention", "conversation", "prompt", "context_management", "moderation"),
        *_SAME,
    }
)
# Where a fault of the chat request stands in the caller's; the first that fits.
_PLACES: Final = (
    ("messages", "input"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
)


# --- ids --------------------------------------------------------------------------------------------------------------


def response_id(job_id: str) -> str:
    """The id of the response that a job is."""
    return _RESPONSE + job_id.removeprefix(_JOB)


def job_id_of(text: str) -> str | None:
    """The job that a response's id leads to, or None where it is none of ours."""
    job_id = _JOB + text.removeprefix(_RESPONSE)
    return job_id if text.startswith(_RESPONSE) and pool_of(job_id) is not None else None


# --- in ---------------------------------------------------------------------------------------------------------------


def read_response_request(raw: bytes) -> JsonObject:
    """The checked request in a body. Raises BadRequest naming the field."""
    body = read_object(raw, response_schemas)
    check_response(body)
    return body


def response_request(body: JsonObject, before: Turns | None = None) -> ChatRequest:
    """The chat request for a checked request that goes on from `before`. Raises BadRequest naming the field."""
    instructions = body.get("instructions")
    opening = [{"role": "system", "content": instructions}] if instructions else []
    chat: JsonObject = {name: value for name, value in body.items() if name not in _MADE}
    chat |= {name: body[name] for name in _SAME if body.get(name) is not None}
    chat |= {name: value for name, value in _renamed(body).items() if value is not None}
    turns = turns_of(body["input"], before)
    check_calls(turns.messages)
    chat["messages"] = [*opening, *turns.messages]
    try:
        request = chat_request(chat)
    except BadRequest as error:
        raise in_response(error) from None
    return replace(request, stream=bool(body.get("stream")), dialect=RESPONSES, asked=_asked(body) | turns.asked())


def in_response(error: BadRequest) -> BadRequest:
    """A chat request's fault, named as the field is called in the request for a response."""
    failure = renamed(error.failure)
    return BadRequest(failure.message, param=failure.param, code=failure.code)


def renamed(failure: Failure) -> Failure:
    """A failure whose field, one of a chat request, is named as it is called in the request for a response."""
    param = failure.param or ""
    for theirs, ours in _PLACES:
        if param == theirs or param.startswith((f"{theirs}.", f"{theirs}[")):
            # Several input items may be one message, so that its number says nothing here.
            return _at(failure, ours if ours == "input" else param.replace(theirs, ours, 1))
    return _at(failure, param.replace(".function.", ".", 1)) if ".function." in param else failure


def told(failure: Failure) -> Failure:
    """The failure of a job: what its server calls a field that nobody has here is no field of the caller's."""
    failure = renamed(failure)
    first = re.split(r"[.\[]", failure.param or "", maxsplit=1)[0]
    return failure if first in ResponsesBody.__annotations__ else replace(failure, param=None)


def _at(failure: Failure, place: str) -> Failure:
    return replace(failure, message=failure.message.replace(failure.param or place, place, 1), param=place)


def _asked(body: JsonObject) -> JsonObject:
    reasoning: JsonObject = body.get("reasoning") or {}
    return {
        "instructed": bool(body.get("instructions")),
        "background": bool(body.get("background")),
        "store": body.get("store") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "tool_choice": body.get("tool_choice") or "auto",
        "truncation": body.get("truncation") or "disabled",
        "max_tool_calls": body.get("max_tool_calls"),
        "summary": reasoning.get("summary") or reasoning.get("generate_summary"),
    }


def _renamed(body: JsonObject) -> JsonObject:
    """What the chat request calls otherwise; None where it says nothing of it."""
    text: JsonObject = body.get("text") or {}
    reasoning: JsonObject = body.get("reasoning") or {}
    logprobs = body.get("top_logprobs") or "message.output_text.logprobs" in (body.get("include") or ())
    return {
        "max_completion_tokens": body.get("max_output_tokens"),
        "tools": [_tool(one) for one in body.get("tools") or ()] or None,
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "response_format": _format(text.get("format")),
        "verbosity": text.get("verbosity"),
        "reasoning_effort": reasoning.get("effort"),
        "logprobs": True if logprobs else None,
    }


def _tool(tool: JsonObject) -> JsonObject:
    told = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": told}


def _tool_choice(choice: Any) -> Any:
    if not is_object(choice):
        return choice
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    tools = [
        {"type": "function", "function": {"name": one["name"]}}
        if one.get("type") == "function" and "name" in one
        else one
        for one in choice["tools"]
    ]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}


def _format(form: JsonObject | None) -> JsonObject | None:
    if form is None or form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return {"type": "json_object"}
    told = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"type": "json_schema", "json_schema": told}
