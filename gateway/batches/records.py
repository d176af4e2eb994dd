"""Pure: a line of a batch to the job that it asks for, and a job's end to a line of the output or the error file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, State
from common.errors import BadRequest
from common.ledger.batch_lines import BAD, GOOD, UNDONE, LineEnd
from common.thoughts import told_count
from gateway.dialects.bounded import MAX_NODES, SchemasOf, metadata_with_bodys, read_object
from gateway.dialects.completions import ENDPOINT as COMPLETIONS
from gateway.dialects.completions import completions_request
from gateway.dialects.embeddings import ENDPOINT as EMBEDDINGS
from gateway.dialects.embeddings import MAX_VALUES, embeddings_request
from gateway.dialects.json_lines import in_one_line
from gateway.dialects.names import RESPONSES as RESPONSES_DIALECT
from gateway.dialects.native import Asked
from gateway.dialects.openai import CHAT_ENDPOINT, chat_request, schemas_of
from gateway.dialects.responses_input import ENDPOINT as RESPONSES
from gateway.dialects.responses_input import response_request
from gateway.dialects.responses_output import whole_response
from gateway.dialects.responses_schema import check_response, response_schemas
from gateway.dialects.surfaces import answered_by, surface_of
from gateway.errors import openai_error

EXPIRED: Final = Failure("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED: Final = Failure("batch_cancelled", "This request was not executed because the batch was cancelled.")
UNTOLD: Final = Failure("internal_error", "The model's server gave an answer that cannot be told.")
GONE: Final = Failure("internal_error", "The answer was no longer there when the batch came for it.")

# --- a line to what it asks for ---------------------------------------------------------------------------------------


def line_digest(batch_id: str, number: int) -> str:
    """32 hex digits that stand for this line of this batch, and always will."""
    return blake2b(f"{batch_id}:{number}".encode(), digest_size=16).hexdigest()


def line_job_id(pool: str, batch_id: str, number: int) -> str:
    """The id of the job that this line is: the same whoever makes it, so that it is one job however often."""
    return f"job_{pool}_{line_digest(batch_id, number)}"


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a line asks for, and what its job says of itself: a response's own metadata, else where it comes from."""

    asked: Asked
    metadata: JsonObject


def request_of(batch_id: str, endpoint: str, data: bytes) -> LineRequest:
    """What a line that was found valid asks for. Raises BadRequest naming the field of its body."""
    schemas, most_values = _SCHEMAS[endpoint]
    document = read_object(
        data, lambda found: schemas(found["body"]), most_values=most_values, metadata_of=metadata_with_bodys
    )
    body: JsonObject = document["body"]
    metadata: JsonObject = {"batch_id": batch_id, "custom_id": document["custom_id"]}
    if endpoint == RESPONSES:
        metadata = body.get("metadata") or {}
    return LineRequest(REQUESTS[endpoint](body), metadata)


def _response_request(body: JsonObject) -> Asked:
    for name in ("background", "previous_response_id"):
        if body.get(name):
            raise BadRequest(f"{name}: not available in a batch.", param=name)
    check_response(body)
    return response_request(body)


REQUESTS: Final[dict[str, Callable[[JsonObject], Asked]]] = {
    CHAT_ENDPOINT: chat_request,
    COMPLETIONS: completions_request,
    EMBEDDINGS: embeddings_request,
    RESPONSES: _response_request,
}
"""The endpoints that a batch can be for."""

_SCHEMAS: Final[dict[str, tuple[SchemasOf, int]]] = {
    CHAT_ENDPOINT: (schemas_of, MAX_NODES),
    COMPLETIONS: (schemas_of, MAX_NODES),
    EMBEDDINGS: (lambda _: (), MAX_VALUES),
    RESPONSES: (response_schemas, MAX_NODES),
}


# --- an end to a line -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stub:
    """What every end of a line begins with. `custom_id` is JSON."""

    number: int
    digest: str
    custom_id: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """How a line's job ended."""

    job: Job
    created_ms: int
    outcome: Outcome
    result: bytes


def ended_line(stub: Stub, end: Ending, why: Failure | None) -> LineEnd:
    """How a line ends whose job ended so. `why`: what for the batch's own sake ends jobs now, where something does."""
    job, status = answered_by(end.job, end.outcome), end.outcome.status
    if status is State.SUCCEEDED and end.result:
        return LineEnd(stub.number, GOOD, _record(stub, _response(200, job.id, _whole(job, end)), None))
    if status is State.CANCELLED and why is not None:
        return undone_line(stub, why)
    # A line's deadline is that of its batch.
    if status is State.EXPIRED or (end.outcome.failure and end.outcome.failure.code in _LATE):
        return undone_line(stub, EXPIRED)
    return refused_line(stub, end.outcome.failure or GONE, job)


_LATE: Final = frozenset({"deadline_exceeded", "redis_lost"})


def _whole(job: Job, end: Ending) -> bytes:
    created_s = end.created_ms // 1000
    if job.dialect == RESPONSES_DIALECT:
        return whole_response(job, created_s, end.result, end.outcome)
    return surface_of(job).whole(job, created_s, end.result)


def refused_line(stub: Stub, failure: Failure, job: Job | None = None) -> LineEnd:
    """How a line ends that was refused, or whose job failed: as the answer that a request of its own would have got."""
    status, body, _ = surface_of(job).refused(failure) if job else openai_error(failure)
    request_id = job.id if job else f"req_{stub.digest}"
    return LineEnd(stub.number, BAD, _record(stub, _response(status, request_id, body), None))


def undone_line(stub: Stub, why: Failure) -> LineEnd:
    """How a line ends that was not run to its end."""
    return LineEnd(stub.number, UNDONE, _record(stub, None, {"code": why.code, "message": why.message}))


def _response(status: int, request_id: str, body: bytes) -> JsonObject:
    return {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}


def _record(stub: Stub, response: JsonObject | None, error: JsonObject | None) -> bytes:
    """A line of a file, with its end, however its readers split lines."""
    shown: dict[str, Any] = {"id": f"batch_req_{stub.digest}", "custom_id": orjson.Fragment(stub.custom_id)}
    line = {**shown, "response": response, "error": error}
    # As a whole: the answer and the custom_id in it are JSON already.
    return in_one_line(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


# --- what the ends add up to ------------------------------------------------------------------------------------------


def used_tokens(outcome: Outcome) -> dict[str, int]:
    """What a job's usage adds to its batch's, by the batch's columns."""
    usage = outcome.usage
    if usage is None:
        return {}
    prompt: JsonObject = usage.details.get("prompt_tokens_details") or {}
    answer: JsonObject = usage.details.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.prompt_tokens,
        "cached_tokens": told_count(prompt.get("cached_tokens")),
        "output_tokens": usage.completion_tokens,
        "reasoning_tokens": told_count(answer.get("reasoning_tokens")),
    }
