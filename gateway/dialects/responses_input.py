"""A request for a response to the chat request that is queued for it, and the conversation back to input items.

What a response was asked with lies in its job: the conversation in the chat request, the rest of it in `Job.asked`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from common.contracts import Job, JsonObject, pool_of
from common.errors import BadRequest
from gateway.dialects.bounded import is_list, is_object, read_object
from gateway.dialects.openai import ChatRequest, chat_request
from gateway.dialects.responses_schema import check_response, kind_of, response_schemas

DIALECT: Final = "responses"
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


def response_request(body: JsonObject, before: Sequence[JsonObject] = ()) -> ChatRequest:
    """The chat request for a checked request that goes on from `before`. Raises BadRequest naming the field."""
    instructions = body.get("instructions")
    opening = [{"role": "system", "content": instructions}] if instructions else []
    chat: JsonObject = {name: value for name, value in body.items() if name not in _MADE}
    chat |= {name: body[name] for name in _SAME if body.get(name) is not None}
    chat |= {name: value for name, value in _renamed(body).items() if value is not None}
    chat["messages"] = [*opening, *before, *messages_of(body["input"])]
    try:
        request = chat_request(chat)
    except BadRequest as error:
        raise in_response(error) from None
    return replace(request, stream=bool(body.get("stream")), dialect=DIALECT, asked=_asked(body))


def in_response(error: BadRequest) -> BadRequest:
    """A chat request's fault, named as the field is called in the request for a response."""
    failure = error.failure
    param = failure.param or ""
    for theirs, ours in _PLACES:
        if param == theirs or param.startswith((f"{theirs}.", f"{theirs}[")):
            # Several input items may be one message, so that its number says nothing here.
            place = ours if ours == "input" else param.replace(theirs, ours, 1)
            text = failure.message.replace(param, place, 1)
            return BadRequest(text, param=place, code=failure.code)
    if ".function." in param:
        place = param.replace(".function.", ".", 1)
        return BadRequest(failure.message.replace(param, place, 1), param=place, code=failure.code)
    return error


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
    logprobs = body.get("top_logprobs") is not None or "message.output_text.logprobs" in (body.get("include") or ())
    return {
        "max_completion_tokens": body.get("max_output_tokens"),
        "tools": [_tool(one) for one in body.get("tools") or ()] or None,
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "response_format": _format(text.get("format")),
        "verbosity": text.get("verbosity"),
        "reasoning_effort": reasoning.get("effort"),
        "logprobs": logprobs or None,
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


# --- items to messages ------------------------------------------------------------------------------------------------


def messages_of(given: str | list[JsonObject]) -> list[JsonObject]:
    """The chat messages that checked input stands for. Raises BadRequest where there are none.

    What one turn of the assistant says and calls is one message. Reasoning is not passed on: few servers take it back.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[JsonObject] = []
    for item in given:
        _add_item(messages, item)
    if not messages:
        raise BadRequest("input: holds no message.", param="input")
    return messages


def _add_item(messages: list[JsonObject], item: JsonObject) -> None:
    match kind_of(item):
        case "message" if item["role"] == "assistant":
            _add_said(messages, _content(item["content"]))
        case "message":
            messages.append({"role": item["role"], "content": _content(item["content"])})
        case "function_call":
            _add_call(messages, item)
        case "function_call_output":
            content = _content(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        case "item_reference":
            raise BadRequest("input: items of type 'item_reference' are not available here.", param="input")
        case _:
            pass


def _add_said(messages: list[JsonObject], content: Any) -> None:
    last = messages[-1] if messages else {}
    if last.get("tool_calls") and last.get("content") is None:
        last["content"] = content
    else:
        messages.append({"role": "assistant", "content": content})


def _add_call(messages: list[JsonObject], item: JsonObject) -> None:
    function = {"name": item["name"], "arguments": item["arguments"]}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _content(content: str | list[JsonObject]) -> Any:
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    # Plain text goes everywhere; parts do not.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: JsonObject) -> JsonObject:
    match part["type"]:
        case "input_image":
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_file":
            file = {name: part[name] for name in ("filename", "file_data") if part.get(name) is not None}
            return {"type": "file", "file": file}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}


# --- messages to items ------------------------------------------------------------------------------------------------


def conversation(job: Job, result: bytes) -> list[JsonObject]:
    """What a response that goes on from this one begins with: all but its instructions, and what it said."""
    message: JsonObject = orjson.loads(result)["choices"][0]["message"]
    calls = message.get("tool_calls")
    said: JsonObject = {"role": "assistant", "content": message.get("content") or (None if calls else "")}
    if calls:
        said["tool_calls"] = [_repeated(call, response_item_id(job.id, "call", n)) for n, call in enumerate(calls)]
    if message.get("refusal"):
        said["refusal"] = message["refusal"]
    return [*_spoken(job), said]


def _repeated(call: JsonObject, own_id: str) -> JsonObject:
    return {"id": call.get("id") or own_id, "type": "function", "function": call["function"]}


def response_item_id(job_id: str, kind: str, number: int | str) -> str:
    """An item's id: the same for every reader."""
    return f"{kind}_{job_id[-32:]}_{number}"


def input_items(job: Job) -> list[JsonObject]:
    """The items that the response was made from, the oldest first; what it goes on from is among them."""
    items: list[JsonObject] = []
    for message in _spoken(job):
        for item in _items(message):
            kind = {"message": "msg", "function_call": "fc"}.get(item["type"], "fco")
            items.append({"id": response_item_id(job.id, kind, f"in{len(items)}"), **item, "status": "completed"})
    return items


def _spoken(job: Job) -> list[JsonObject]:
    messages: list[JsonObject] = job.body["messages"]
    return messages[1:] if job.asked.get("instructed") else messages


def _items(message: JsonObject) -> Iterable[JsonObject]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": _output(content)}
        return
    if content or not message.get("tool_calls"):
        yield {"type": "message", "role": role, "content": _shown(content, said=role == "assistant")}
    for call in message.get("tool_calls") or ():
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _output(content: Any) -> Any:
    return _shown(content, said=False) if is_list(content) else content


def _shown(content: Any, *, said: bool) -> list[JsonObject]:
    parts: list[JsonObject] = content if is_list(content) else [{"type": "text", "text": content or ""}]
    return [_shown_part(part, said=said) for part in parts]


def _shown_part(part: JsonObject, *, said: bool) -> JsonObject:
    match part["type"]:
        case "image_url":
            return {"type": "input_image", "detail": "auto", "image_url": part["image_url"]["url"]} | {
                name: value for name, value in part["image_url"].items() if name == "detail"
            }
        case "file":
            return {"type": "input_file", **part["file"]}
        case "text" if said:
            return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
        case "text":
            return {"type": "input_text", "text": part["text"]}
        case _:
            return part
