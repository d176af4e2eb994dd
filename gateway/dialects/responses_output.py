"""The response object, and its output items: of a stored result at once, or piece by piece with the events of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, State
from common.queue import Record
from gateway.dialects.responses_input import response_id, response_item_id
from gateway.errors import row_of

Event = tuple[str, JsonObject]
"""An event's type and its fields, all but its number."""

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
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
    why = _INCOMPLETE.get(reason or "")
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


def _error(failure: Failure) -> JsonObject:
    # OpenAI's list of codes is closed, and its clients check it; ours stands in the sentence.
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


def items_by_id(record: Record) -> dict[str, JsonObject]:
    """What a response said, by the ids of its items; nothing where no answer is kept."""
    if not record.result:
        return {}
    broken = record.state is not State.SUCCEEDED
    items = _stored_items(record.job.id, orjson.loads(record.result)["choices"][0], broken=broken)
    return {item["id"]: item for item in items}


def _stored_items(job_id: str, choice: JsonObject | None, *, broken: bool = False) -> list[JsonObject]:
    """The items of a stored choice: what its stream tells in the end, where the model spoke in the usual order."""
    output = Output(job_id)
    events: list[Event] = []
    if choice is not None:
        events += output.add({**choice, "delta": choice["message"]})
    events += output.close(broken=broken)
    return output.said


# --- piece by piece ---------------------------------------------------------------------------------------------------

_TEXT: Final = "output_text"
# A text's kind: the field that holds it, and what its events' names begin with.
_FIELDS: Final = {_TEXT: "text", "refusal": "refusal", "reasoning_text": "text"}


class Output:
    """The output as it grows. Each method gives the events that tell of what it did.

    Reasoning ends where anything else begins, a message where a call does; calls stay open to the end, since some
    servers send several in turns.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._items: list[JsonObject] = []
        self._void = 0
        self._spoken: _Spoken | None = None
        self._calls: dict[int, _Called] = {}
        self.reason: str | None = None

    @property
    def said(self) -> list[JsonObject]:
        """The items of the answer that counts."""
        return self._items[self._void :]

    def add(self, choice: JsonObject) -> Iterator[Event]:
        """Takes a streamed choice."""
        delta: JsonObject = choice["delta"]
        logprobs: JsonObject = choice.get("logprobs") or {}
        for name, kind in (("reasoning_content", "reasoning_text"), ("content", _TEXT), ("refusal", "refusal")):
            if delta.get(name):
                yield from self._say(kind, delta[name], logprobs.get("content") or () if kind == _TEXT else ())
        for number, call in enumerate(delta.get("tool_calls") or ()):
            yield from self._call(call.get("index", number), call)
        self.reason = choice.get("finish_reason") or self.reason

    def close(self, *, broken: bool = False) -> Iterator[Event]:
        """Ends every item. What the answer broke off in, or was cut in, is incomplete: its last item."""
        cut = broken or self.reason in _INCOMPLETE
        if not self.said and not broken:
            yield from self._say(_TEXT, "", ())
        last = len(self._items) - 1
        for one in (self._spoken, *self._calls.values()):
            if one is not None:
                yield from one.close("incomplete" if cut and one.index == last else "completed")
        self._spoken, self._calls = None, {}

    def begin_anew(self) -> Iterator[Event]:
        """Ends what was said so far as void: only what comes now will be the answer."""
        yield from self.close(broken=True)
        self._void = len(self._items)
        self.reason = None

    def _say(self, kind: str, text: str, logprobs: Iterable[JsonObject]) -> Iterator[Event]:
        wanted = "reasoning" if kind == "reasoning_text" else "message"
        if self._spoken is None or self._spoken.item["type"] != wanted:
            yield from self._hush()
            self._spoken = _Spoken(self._new(wanted), len(self._items) - 1)
            yield self._added()
        yield from self._spoken.say(kind, text, logprobs)

    def _call(self, index: int, piece: JsonObject) -> Iterator[Event]:
        function: JsonObject = piece.get("function") or {}
        call = self._calls.get(index)
        if call is None:
            yield from self._hush()
            item = self._new("function_call")
            item["call_id"] = piece.get("id") or response_item_id(self._job_id, "call", len(self._calls))
            item["name"] = function.get("name") or ""
            call = self._calls[index] = _Called(item, len(self._items) - 1)
            yield self._added()
        if function.get("arguments"):
            yield call.say(function["arguments"])

    def _hush(self) -> Iterator[Event]:
        if self._spoken is not None:
            yield from self._spoken.close("completed")
            self._spoken = None

    def _new(self, kind: str) -> JsonObject:
        number = len(self._items)
        prefix, more = _KINDS[kind]
        item_id = response_item_id(self._job_id, prefix, number)
        self._items.append({"id": item_id, "type": kind, "status": "in_progress", **deepcopy(more)})
        return self._items[-1]

    def _added(self) -> Event:
        item = self._items[-1]
        return "response.output_item.added", {"output_index": len(self._items) - 1, "item": dict(item)}


_KINDS: Final[dict[str, tuple[str, JsonObject]]] = {
    "message": ("msg", {"role": "assistant", "content": []}),
    "reasoning": ("rs", {"summary": [], "content": []}),
    "function_call": ("fc", {"call_id": "", "name": "", "arguments": ""}),
}


class _Spoken:
    """A message or a reasoning that is being said: parts, of which the last is open."""

    __slots__ = ("_kind", "_logprobs", "_pieces", "index", "item")

    def __init__(self, item: JsonObject, index: int) -> None:
        self.item = item
        self.index = index
        self._kind = ""
        self._pieces: list[str] = []
        self._logprobs: list[JsonObject] = []

    def say(self, kind: str, text: str, logprobs: Iterable[JsonObject]) -> Iterator[Event]:
        """Takes a piece of a part of this kind, which begins where another one was open."""
        if kind != self._kind:
            yield from self._end_part()
            self._kind = kind
            self.item["content"].append(self._part(""))
            yield "response.content_part.added", self._here({"part": self._part("")})
        entries = [_logprob(entry) for entry in logprobs]
        self._logprobs += entries
        self._pieces.append(text)
        if text:
            yield f"response.{kind}.delta", self._here({"delta": text, **self._with(entries)})

    def close(self, status: str) -> Iterator[Event]:
        """Ends the item."""
        yield from self._end_part()
        self.item["status"] = status
        yield "response.output_item.done", {"output_index": self.index, "item": self.item}

    def _end_part(self) -> Iterator[Event]:
        if not self._kind:
            return
        text = "".join(self._pieces)
        part = self.item["content"][-1] = self._part(text)
        logprobs = self._with(self._logprobs)
        yield f"response.{self._kind}.done", self._here({_FIELDS[self._kind]: text, **logprobs})
        yield "response.content_part.done", self._here({"part": part})
        self._kind, self._pieces, self._logprobs = "", [], []

    def _part(self, text: str) -> JsonObject:
        part: JsonObject = {"type": self._kind, _FIELDS[self._kind]: text}
        return part | {"annotations": [], "logprobs": list(self._logprobs)} if self._kind == _TEXT else part

    def _with(self, entries: list[JsonObject]) -> JsonObject:
        return {"logprobs": entries} if self._kind == _TEXT else {}

    def _here(self, fields: JsonObject) -> JsonObject:
        place = {"output_index": self.index, "content_index": len(self.item["content"]) - 1}
        return {"item_id": self.item["id"], **place, **fields}


class _Called:
    """A function call whose arguments come in pieces."""

    __slots__ = ("_pieces", "index", "item")

    def __init__(self, item: JsonObject, index: int) -> None:
        self.item = item
        self.index = index
        self._pieces: list[str] = []

    def say(self, arguments: str) -> Event:
        """Takes a piece of the arguments."""
        self._pieces.append(arguments)
        return "response.function_call_arguments.delta", {**self._here(), "delta": arguments}

    def close(self, status: str) -> Iterator[Event]:
        """Ends the item."""
        arguments = self.item["arguments"] = "".join(self._pieces)
        self.item["status"] = status
        told = {**self._here(), "name": self.item["name"], "arguments": arguments}
        yield "response.function_call_arguments.done", told
        yield "response.output_item.done", {"output_index": self.index, "item": self.item}

    def _here(self) -> JsonObject:
        return {"item_id": self.item["id"], "output_index": self.index}


def _logprob(entry: JsonObject) -> JsonObject:
    """A token's log probability with every key that must be there."""
    own: JsonObject = {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry.get("bytes") or []}
    others: list[JsonObject] = entry.get("top_logprobs") or []
    return {
        **own,
        "top_logprobs": [
            {name: one.get(name) or [] if name == "bytes" else one[name] for name in own} for one in others
        ],
    }
