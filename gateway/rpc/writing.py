"""Pure: results, events and records to the contract's messages. What has no field of its own goes into `extra_json`."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from common.contracts import Job, JsonObject, Outcome, Priority, State, Usage
from common.queue import AttemptError, Place, Record
from common.runs import RUNS
from gateway.dialects.embeddings import ENDPOINT as EMBEDDINGS_ENDPOINT
from gateway.dialects.embeddings import embeddings_object
from gateway.dialects.openai import completion_id
from gateway.dialects.surfaces import answered_by, surface_of
from gateway.rpc.codes import reason_of
from gateway.rpc.headrace.v1 import inference_pb2 as pb

STATUSES: Final = {
    State.DELAYED: pb.JOB_STATUS_DELAYED,
    State.QUEUED: pb.JOB_STATUS_QUEUED,
    State.RUNNING: pb.JOB_STATUS_RUNNING,
    State.SUCCEEDED: pb.JOB_STATUS_SUCCEEDED,
    State.FAILED: pb.JOB_STATUS_FAILED,
    State.CANCELLED: pb.JOB_STATUS_CANCELLED,
    State.EXPIRED: pb.JOB_STATUS_EXPIRED,
}
_PRIORITIES: Final = {
    Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE,
    Priority.STANDARD: pb.PRIORITY_STANDARD,
    Priority.BATCH: pb.PRIORITY_BATCH,
}
# What every whole number of the contract holds; another one is left as it came.
MOST: Final = 2**32 - 1
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")

Taken = TypeVar("Taken", str, int, list[Any], JsonObject)


# --- answers ----------------------------------------------------------------------------------------------------------


def completion_of(job: Job, created_ms: int, result: bytes) -> pb.Completion:
    """A chat job's stored result."""
    rest: JsonObject = orjson.loads(result)
    choices = _take(rest, "choices", list) or []
    usage = _take(rest, "usage", dict)
    return pb.Completion(
        id=completion_id(job.id),
        created=_time(created_ms),
        model=job.model,
        choices=[_choice(choice) for choice in choices],
        usage=usage_of(usage) if usage else None,
        extra_json=_rest(rest, "id", "object", "created", "model"),
    )


def _choice(rest: JsonObject) -> pb.Choice:
    rest.pop(RUNS, None)
    return pb.Choice(
        index=_take(rest, "index", int) or 0,
        message=_message(_take(rest, "message", dict) or {}),
        finish_reason=_take(rest, "finish_reason", str) or "",
        extra_json=_rest(rest),
    )


def chunk_of(event: bytes) -> pb.Chunk:
    """One event of a job's stream."""
    rest: JsonObject = orjson.loads(event)
    choices = _take(rest, "choices", list) or []
    return pb.Chunk(choices=[_delta(choice) for choice in choices], extra_json=_rest(rest))


def _delta(rest: JsonObject) -> pb.ChoiceDelta:
    return pb.ChoiceDelta(
        index=_take(rest, "index", int) or 0,
        delta=_message(_take(rest, "delta", dict) or {}),
        finish_reason=_take(rest, "finish_reason", str) or "",
        extra_json=_rest(rest),
    )


def _message(rest: JsonObject) -> pb.AnswerMessage:
    calls = rest.get("tool_calls")
    typed = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)  # pyright: ignore[reportUnknownVariableType]
    return pb.AnswerMessage(
        role=_take(rest, "role", str) or "",
        content=_take(rest, "content", str),
        refusal=_take(rest, "refusal", str),
        reasoning_content=_take(rest, "reasoning_content", str),
        tool_calls=[_tool_call(call) for call in _take(rest, "tool_calls", list) or []] if typed else None,
        extra_json=_rest(rest),
    )


def _tool_call(rest: JsonObject) -> pb.ToolCall:
    function = _take(rest, "function", dict) or {}
    name, arguments = _take(function, "name", str), _take(function, "arguments", str)
    if function:
        rest["function"] = function
    return pb.ToolCall(
        index=_take(rest, "index", int) or 0,
        id=_take(rest, "id", str) or "",
        type=_take(rest, "type", str) or "",
        name=name or "",
        arguments=arguments or "",
        extra_json=_rest(rest),
    )


def usage_of(usage: JsonObject) -> pb.Usage:
    """OpenAI's usage object."""
    rest = dict(usage)
    counts = {name: _take(rest, name, int) or 0 for name in _COUNTS}
    return pb.Usage(**counts, extra_json=_rest(rest))


def text_of(completion: pb.Completion) -> pb.InferResponse:
    """The first answer's words, also where the model declined in a field apart."""
    first = completion.choices[0] if completion.choices else pb.Choice()
    return pb.InferResponse(
        text=first.message.content + first.message.refusal,
        finish_reason=first.finish_reason,
        model=completion.model,
        usage=completion.usage if completion.HasField("usage") else None,
    )


def words_of(events: list[pb.JobEvent]) -> list[pb.InferStreamResponse]:
    """What events say to who asked by a plain prompt: words that follow each other as one."""
    found: list[pb.InferStreamResponse] = []
    for event in events:
        said = _said(event)
        if said is None:
            continue
        if said.text and found and found[-1].text:
            found[-1].text += said.text
            found[-1].position = said.position
        else:
            found.append(said)
    return found


def _said(event: pb.JobEvent) -> pb.InferStreamResponse | None:
    match event.WhichOneof("event"):
        case "chunk":
            words = "".join(one.delta.content + one.delta.refusal for one in event.chunk.choices if one.index == 0)
            return pb.InferStreamResponse(position=event.position, text=words) if words else None
        case "reset":
            return pb.InferStreamResponse(position=event.position, reset=True)
        case "end":
            return pb.InferStreamResponse(position=event.position, end=event.end)
        case _:
            return None


# --- ends and places --------------------------------------------------------------------------------------------------


def end_of(outcome: Outcome) -> pb.End:
    """How a job ended well."""
    return pb.End(
        finish_reason=outcome.finish_reason or "", usage=_usage(outcome.usage), timings=_timings(outcome.timings_ms)
    )


def place_of(place: Place | None) -> pb.QueuePlace | None:
    """Where a job stands; None where it does not wait or nobody knows."""
    if place is None or place.position is None:
        return None
    return pb.QueuePlace(position=place.position, estimated_wait_ms=place.wait_ms)


def _usage(usage: Usage | None) -> pb.Usage | None:
    return usage_of(usage.to_openai()) if usage else None


def _timings(told: dict[str, int]) -> pb.Timings:
    return pb.Timings(queued_ms=told.get("queued"), first_token_ms=told.get("first_token"), total_ms=told.get("total"))


# --- jobs -------------------------------------------------------------------------------------------------------------


def job_of(record: Record, *, queue: pb.QueuePlace | None, cost_usd: float | None, with_answer: bool = True) -> pb.Job:
    """A job as it stands."""
    outcome = record.outcome
    job = answered_by(record.job, outcome)
    shown = pb.Job(
        id=job.id,
        status=STATUSES[record.state],
        endpoint=surface_of(job).endpoint,
        model=job.model,
        priority=_PRIORITIES[job.priority],
        attempt=record.attempt,
        failed_attempts=[_attempt(one) for one in record.errors],
        created=_time(record.created_ms),
        started=None if record.started_ms is None else _time(record.started_ms),
        finished=None if record.finished_ms is None else _time(record.finished_ms),
        queue=queue,
        metadata_json=orjson.dumps(job.metadata) if job.metadata else b"",
        cost_usd=cost_usd,
        choice=_model_choice(record.job),
        answer_bytes=len(record.result or b""),
    )
    if outcome is not None:
        _add_outcome(shown, outcome)
    if record.result and with_answer:
        _add_answer(shown, job, record.created_ms, record.result)
    return shown


def _model_choice(job: Job) -> pb.ModelChoice | None:
    return (
        pb.ModelChoice(asked=job.choice["asked"], model=job.model, reason=job.choice["reason"]) if job.choice else None
    )


def _add_outcome(shown: pb.Job, outcome: Outcome) -> None:
    shown.backend, shown.upstream_model = outcome.backend, outcome.upstream_model
    shown.failed_targets.extend(
        pb.FailedTarget(backend=one.backend, model=one.model, code=one.code) for one in outcome.failed_targets
    )
    if outcome.failure is not None:
        failure = outcome.failure
        shown.error.CopyFrom(pb.JobError(code=reason_of(failure), message=failure.message, param=failure.param or ""))
    if outcome.usage is not None:
        shown.usage.CopyFrom(usage_of(outcome.usage.to_openai()))
    if outcome.timings_ms:
        shown.timings.CopyFrom(_timings(outcome.timings_ms))


def _add_answer(shown: pb.Job, job: Job, created_ms: int, result: bytes) -> None:
    if job.endpoint == EMBEDDINGS_ENDPOINT:
        shown.embeddings_json = embeddings_object(job.model, job.body, result)
    else:
        shown.completion.CopyFrom(completion_of(job, created_ms, result))


def _attempt(one: AttemptError) -> pb.FailedAttempt:
    return pb.FailedAttempt(
        attempt=one.attempt, code=one.code, message=one.message, backend=one.backend, failed=_time(one.at_ms)
    )


# --- pieces -----------------------------------------------------------------------------------------------------------


def _take(rest: JsonObject, name: str, kind: type[Taken]) -> Taken | None:
    """Takes a value of this kind out of what is left; null counts as not there, another kind stays."""
    value: Any = rest.get(name)
    if type(value) is kind and not (isinstance(value, int) and not 0 <= value <= MOST):
        del rest[name]
        return value
    if value is None:
        rest.pop(name, None)
    return None


def _rest(rest: JsonObject, *without: str) -> bytes:
    """What is left, as JSON; nothing where nothing is. Null counts as not there."""
    left = {name: value for name, value in rest.items() if value is not None and name not in without}
    return orjson.dumps(left) if left else b""


def _time(at_ms: int) -> Timestamp:
    time = Timestamp()
    time.FromMilliseconds(at_ms)
    return time
