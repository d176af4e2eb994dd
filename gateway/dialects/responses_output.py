"""The response object, as it was accepted, stands or has ended; its output items out of a stored result."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, State
from common.queue import Record
from common.runs import in_order
from gateway.dialects.responses_input import response_id
from gateway.dialects.responses_items import INCOMPLETE, Event, Output
from gateway.dialects.responses_listed import input_turns, listed
from gateway.dialects.responses_turns import ITEM_ID, Known, Turns, gone_on
from gateway.errors import row_of

_STATUSES: Final = {
    State.DELAYED: "queued",
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.CANCELLED: "cancelled",
}


# --- the object -------------------------------------------------------------------------------------------------------


def response_object(
    job: Job, created_s: int, status: str, output: list[JsonObject] | None = None, **told: Any
) -> JsonObject:
    """The response with every key that must be there. `told`: what is known at the end, by its key."""
    body, asked = job.body, job.asked
    named: JsonObject = {name: body.get(name) for name in ("user", "safety_identifier", "prompt_cache_key")}
    tier = body.get("service_tier")
    return {
        "id": response_id(job.id),
        "object": "response",
        "created_at": created_s,
        "completed_at": None,
        "status": status,
        "incomplete_details": None,
        "model": job.model,
        "previous_response_id": asked.get("previous_response_id"),
        "instructions": body["messages"][0]["content"] if asked.get("instructed") else None,
        "output": output or [],
        "error": None,
        "tools": [_tool(tool) for tool in body.get("tools") or ()],
        "tool_choice": asked.get("tool_choice", "auto"),
        "truncation": asked.get("truncation", "disabled"),
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "text": _text(body),
        **_sampling(body),
        "reasoning": {"effort": body.get("reasoning_effort"), "summary": asked.get("summary")},
        "usage": None,
        "max_output_tokens": body.get("max_completion_tokens"),
        "max_tool_calls": asked.get("max_tool_calls"),
        "store": asked.get("store", True),
        "background": asked.get("background", False),
        "service_tier": "default" if tier in (None, "auto") else tier,
        "metadata": job.metadata,
        **named,
        **told,
    }


def _sampling(body: JsonObject) -> JsonObject:
    defaults = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_logprobs": 0}
    return {name: body.get(name, default) for name, default in defaults.items()}


def _tool(tool: JsonObject) -> JsonObject:
    function: JsonObject = {"description": None, "parameters": None, "strict": None, **tool["function"]}
    return {"type": "function", **function}


def _text(body: JsonObject) -> JsonObject:
    form: JsonObject = body.get("response_format") or {"type": "text"}
    text: JsonObject = {"format": {"type": form["type"], **form.get("json_schema", {})}}
    if body.get("verbosity"):
        text["verbosity"] = body["verbosity"]
    return text


def ended_object(
    job: Job,
    created_s: int,
    output: list[JsonObject],
    reason: str | None,
    usage: JsonObject | None,
    end: Outcome | None,
) -> JsonObject:
    """The response of a job that succeeded, completed or cut short. `end`: how it ended, where that is known."""
    why = INCOMPLETE.get(reason or "")
    total_ms = end.timings_ms.get("total") if end else None
    return response_object(
        job,
        created_s,
        "incomplete" if why else "completed",
        output,
        model=(end.model if end else "") or job.model,
        incomplete_details={"reason": why} if why else None,
        usage=usage_object(usage) if usage else None,
        completed_at=None if total_ms is None else created_s + total_ms // 1000,
    )


def failed_object(job: Job, created_s: int, output: list[JsonObject], failure: Failure) -> JsonObject:
    """The response of a job that ended badly; one that was cancelled bears no error."""
    if failure.code == "cancelled":
        return response_object(job, created_s, "cancelled", output)
    return response_object(job, created_s, "failed", output, error=_error(failure))


_IMAGE_CODES: Final = frozenset(
    {
        *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url", "invalid_image_mode"),
        *("image_too_large", "image_too_small", "image_parse_error", "image_content_policy_violation"),
        *("image_file_too_large", "unsupported_image_media_type", "empty_image_file", "failed_to_download_image"),
        "image_file_not_found",
    }
)


def _error(failure: Failure) -> JsonObject:
    # OpenAI's list of codes is closed, and its clients check it; ours stands in the sentence.
    if failure.upstream_code in _IMAGE_CODES:
        return {"code": failure.upstream_code, "message": failure.message}
    status = row_of(failure.code).status
    code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 429 else "server_error"
    return {"code": code, "message": f"{failure.message} ({failure.code})"}


def usage_object(usage: JsonObject) -> JsonObject:
    """The usage in this dialect, with both objects of details."""
    prompt: JsonObject = usage.get("prompt_tokens_details") or {}
    completion: JsonObject = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens") or 0,
            "cache_write_tokens": prompt.get("cache_write_tokens") or 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }


# --- of a stored result -----------------------------------------------------------------------------------------------


def whole_response(job: Job, created_s: int, result: bytes, outcome: Outcome | None = None) -> bytes:
    """The body of an answer of one piece."""
    stored: JsonObject = orjson.loads(result)
    choice: JsonObject = stored["choices"][0]
    reason, usage = choice.get("finish_reason"), stored.get("usage")
    return orjson.dumps(ended_object(job, created_s, _stored_items(job.id, choice), reason, usage, outcome))


def recorded_response(record: Record) -> bytes:
    """A response as it stands."""
    job, created_s, outcome = record.job, record.created_ms // 1000, record.outcome
    if outcome is None:
        return orjson.dumps(response_object(job, created_s, _STATUSES.get(record.state, "in_progress")))
    if record.state is State.SUCCEEDED and record.result:
        return whole_response(job, created_s, record.result, outcome)
    choice = orjson.loads(record.result)["choices"][0] if record.result else None
    failure = outcome.failure or Failure("internal_error", "The answer is no longer kept.")
    if record.state is State.CANCELLED:
        failure = Failure("cancelled", "")
    return orjson.dumps(failed_object(job, created_s, _stored_items(job.id, choice, broken=True), failure))


def conversation(job: Job, result: bytes) -> Turns:
    """What a response that goes on from this one begins with: all but its instructions, and what it said."""
    said = _stored_items(job.id, orjson.loads(result)["choices"][0])
    return gone_on(input_turns(job), [*map(Known, said)])


def named_items(record: Record, ids: Collection[str]) -> dict[str, Known]:
    """Those of these items that a response was made from, or said, where an answer is kept, by their ids.

    A conversation may hold thousands of items: only what is asked for is looked through, and made.
    """
    wanted = {item_id: ITEM_ID.fullmatch(item_id) for item_id in ids}
    said = {item_id for item_id, found in wanted.items() if found and found[2].isdecimal()}
    given = wanted.keys() - said
    items = [one.made() for one in listed(record.job) if one.id in given] if given else []
    if said and record.result:
        broken = record.state is not State.SUCCEEDED
        items += _stored_items(record.job.id, orjson.loads(record.result)["choices"][0], broken=broken)
    return {item["id"]: Known(item) for item in items if item["id"] in wanted}


def _stored_items(job_id: str, choice: JsonObject | None, *, broken: bool = False) -> list[JsonObject]:
    """The items of a stored choice: what its stream tells in the end."""
    output = Output(job_id)
    for piece in in_order(choice) if choice is not None else ():
        _tell_nobody(output.add(piece))
    output.reason = choice.get("finish_reason") if choice else None
    _tell_nobody(output.close(broken=broken))
    return output.said


def _tell_nobody(events: Iterable[Event]) -> None:
    """Takes the steps, whose events nobody hears."""
    deque(events, maxlen=0)
