"""Headrace's own shapes: request options in headers, submitted jobs, the plain prompt; and a job's record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Required

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject, OnDisconnect, OnInterrupt, Priority, State
from common.errors import BadRequest, CallerError
from common.queue import Record
from gateway.choice import QUALITIES, Quality
from gateway.dialects.bounded import metadata_with_bodys, read_object
from gateway.dialects.chat_schema import TokenLimit, check
from gateway.dialects.embeddings import ENDPOINT as EMBEDDINGS_ENDPOINT
from gateway.dialects.embeddings import EmbeddingsRequest, embeddings_object, embeddings_request
from gateway.dialects.names import PROMPT
from gateway.dialects.openai import (
    CHAT_ENDPOINT,
    ChatRequest,
    chat_request,
    check_metadata,
    completion_object,
    schemas_of,
)
from gateway.dialects.surfaces import answered_by, surface_of
from gateway.errors import error_fields
from gateway.idempotency import parse_key

MAX_DEADLINE_MS: Final = 7 * 86_400_000
MAX_BATCH_KEY_CHARACTERS: Final = 128

_PREFIX: Final = b"x-headrace-"
_BATCH_KEY: Final = re.compile(rf"[\x20-\x7e]{{1,{MAX_BATCH_KEY_CHARACTERS}}}")
_PRIORITIES: Final = {priority.label: priority for priority in Priority}


Shown = Callable[[str], str]
"""Gives a field's public name: a header's, or a body's field."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a caller wants beyond the endpoint's own request; None leaves it to the route."""

    priority: Priority | None = None
    deadline_ms: int | None = None
    delay_ms: int = 0
    batch_key: str = ""
    on_disconnect: OnDisconnect | None = None
    on_interrupt: OnInterrupt | None = None
    idempotency_key: str = ""
    quality: Quality | None = None


Asked = ChatRequest | EmbeddingsRequest
"""What an endpoint of ours was asked for."""


@dataclass(frozen=True, slots=True)
class JobSubmission:
    """A job asked for by `POST /v1/jobs`."""

    asked: Asked
    options: JobOptions
    metadata: JsonObject


# --- options ----------------------------------------------------------------------------------------------------------

_NONE: Final = JobOptions()


def parse_options(headers: Iterable[tuple[bytes, bytes]]) -> JobOptions:
    """The options in a request's raw headers. Raises BadRequest naming the header.

    An unknown `x-headrace-` header is refused: a misspelt priority that is silently none is worse.
    """
    headers = list(headers)
    key = parse_key(headers)
    found = [(name, value) for name, value in headers if name.startswith(_PREFIX)]
    if not found:
        return JobOptions(idempotency_key=key) if key else _NONE
    options: dict[str, str] = {}
    for raw_name, raw_value in found:
        header = raw_name.decode("latin-1")
        name = header[len(_PREFIX) :].replace("-", "_")
        if name not in _OPTION_HEADERS:
            raise BadRequest(f"{header[:64]}: there is no such option.", param=header[:64])
        if name in options:
            raise BadRequest(f"{header}: given more than once.", param=header)
        options[name] = raw_value.decode("latin-1").strip()
    return replace(_options(options, lambda name: "x-headrace-" + name.replace("_", "-")), idempotency_key=key)


_OPTION_HEADERS: Final = frozenset({"priority", "deadline_ms", "batch_key", "on_disconnect", "on_interrupt", "quality"})


def _options(given: dict[str, Any], shown: Shown) -> JobOptions:
    """The options, from texts in headers or from values in a body."""
    return JobOptions(
        priority=_choice(given, "priority", _PRIORITIES, shown),
        deadline_ms=_milliseconds(given, "deadline_ms", 1, shown),
        delay_ms=_milliseconds(given, "delay_ms", 0, shown) or 0,
        batch_key=_batch_key(given, shown),
        on_disconnect=_choice(given, "on_disconnect", {one.value: one for one in OnDisconnect}, shown),
        on_interrupt=_choice(given, "on_interrupt", {one.value: one for one in OnInterrupt}, shown),
        quality=_choice(given, "quality", {one: one for one in QUALITIES}, shown),
    )


def _choice(given: dict[str, Any], name: str, known: dict[str, Any], shown: Shown) -> Any:
    value = given.get(name)
    if value is None:
        return None
    if value not in known:
        raise BadRequest(f"{shown(name)}: must be one of {', '.join(known)}.", param=shown(name))
    return known[value]


def _milliseconds(given: dict[str, Any], name: str, least: int, shown: Shown) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and least <= int(text) <= MAX_DEADLINE_MS):
        reason = f"{shown(name)}: must be a whole number of milliseconds from {least} to {MAX_DEADLINE_MS}."
        raise BadRequest(reason, param=shown(name))
    return int(text)


def _batch_key(given: dict[str, Any], shown: Shown) -> str:
    value = given.get("batch_key")
    if value is None:
        return ""
    if not _BATCH_KEY.fullmatch(value):
        reason = f"{shown('batch_key')}: must be 1 to {MAX_BATCH_KEY_CHARACTERS} printable ASCII characters."
        raise BadRequest(reason, param=shown("batch_key"))
    return value


# --- jobs -------------------------------------------------------------------------------------------------------------

_CLOSED: Final = ConfigDict(strict=True, extra="forbid")


@with_config(_CLOSED)
class JobBody(TypedDict, total=False):
    """A job to be done later, or in the background."""

    endpoint: Required[Literal["/v1/chat/completions", "/v1/embeddings"]]
    body: Required[dict[str, Any]]
    priority: str | None
    deadline_ms: int | None
    delay_ms: int | None
    batch_key: str | None
    on_disconnect: str | None
    on_interrupt: str | None
    quality: str | None
    metadata: dict[str, Any] | None


@with_config(_CLOSED)
class PromptBody(TypedDict, total=False):
    """A question without ceremony."""

    prompt: Required[Annotated[str, Field(min_length=1)]]
    model: Annotated[str, Field(min_length=1, max_length=256)] | None
    system: str | None
    stream: bool | None
    max_tokens: TokenLimit | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None


JOB_BODY: Final = TypeAdapter(JobBody)
PROMPT_BODY: Final = TypeAdapter(PromptBody)


def parse_job_submission(raw: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> JobSubmission:
    """The job in a body; options that the body leaves out may stand in headers. Raises BadRequest naming the field."""
    document = read_object(
        raw,
        lambda found: schemas_of(found["body"]) if type(found.get("body")) is dict else (),
        metadata_of=metadata_with_bodys,
    )
    if document.get("webhook") is not None:
        raise BadRequest("webhook: not available yet; poll the job or follow its events.", param="webhook")
    document.pop("webhook", None)
    check(JOB_BODY, document)
    check_metadata(document.get("metadata"))
    options = options_in(document, headers)
    asked = _inner(document["endpoint"], document["body"])
    return JobSubmission(asked, options, document.get("metadata") or {})


def options_in(given: JsonObject, headers: Iterable[tuple[bytes, bytes]]) -> JobOptions:
    """The options in a body; those that it leaves out may stand in headers. Raises BadRequest naming the field."""
    options = _either(_options(given, lambda name: name), parse_options(headers))
    if options.deadline_ms is not None and options.delay_ms >= options.deadline_ms:
        raise BadRequest("delay_ms: must be smaller than deadline_ms.", param="delay_ms")
    return options


def _either(body: JobOptions, headers: JobOptions) -> JobOptions:
    """The options of the body, and from the headers those that it leaves out."""
    return JobOptions(
        priority=headers.priority if body.priority is None else body.priority,
        deadline_ms=body.deadline_ms or headers.deadline_ms,
        delay_ms=body.delay_ms,
        batch_key=body.batch_key or headers.batch_key,
        on_disconnect=body.on_disconnect or headers.on_disconnect,
        on_interrupt=body.on_interrupt or headers.on_interrupt,
        idempotency_key=headers.idempotency_key,
        quality=body.quality or headers.quality,
    )


_REQUESTS: Final[dict[str, Callable[[JsonObject], Asked]]] = {
    CHAT_ENDPOINT: chat_request,
    EMBEDDINGS_ENDPOINT: embeddings_request,
}


def _inner(endpoint: str, body: JsonObject) -> Asked:
    """The request inside a job, with faults named as they stand in the job."""
    try:
        return _REQUESTS[endpoint](body)
    except CallerError as error:
        raise in_body(error) from None


def in_body(error: CallerError) -> CallerError:
    """The fault of a request inside a job, its field named as it stands in the job."""
    inner = error.failure
    param = f"body.{inner.param}" if inner.param else "body"
    begins = inner.param is not None and inner.message.startswith(inner.param)
    return type(error)(f"body.{inner.message}" if begins else inner.message, param=param, code=inner.code)


def parse_prompt(raw: bytes, *, default_model: str | None) -> ChatRequest:
    """The chat request that a plain prompt stands for. Raises BadRequest naming the field."""
    asked = prompt_request(read_object(raw, lambda _: ()), default_model=default_model)
    return replace(asked, dialect=PROMPT)


def prompt_request(document: JsonObject, *, default_model: str | None) -> ChatRequest:
    """The chat request that a plain prompt's fields stand for. Raises BadRequest naming the field."""
    check(PROMPT_BODY, document)
    model = document.get("model") or default_model
    if model is None:
        raise BadRequest("model: this field is required.", param="model")
    messages = [{"role": "user", "content": document["prompt"]}]
    if document.get("system"):
        messages.insert(0, {"role": "system", "content": document["system"]})
    body: JsonObject = {"model": model, "messages": messages}
    for name in ("stream", "max_tokens", "temperature"):
        if document.get(name) is not None:
            body[name] = document[name]
    return chat_request(body)


# --- answers and records ----------------------------------------------------------------------------------------------


def job_record(record: Record) -> JsonObject:
    """A job as `GET /v1/jobs/{id}` shows it; the route adds what it must ask for: queue, links, cost."""
    job, outcome = record.job, record.outcome
    usage = outcome.usage if outcome else None
    succeeded = record.state is State.SUCCEEDED
    answer = _answer(record)
    return {
        "id": job.id,
        "object": "job",
        "endpoint": surface_of(job).endpoint,
        "status": record.state.value,
        "model": answered_by(job, outcome).model,
        "choice": {**job.choice, "model": job.model} if job.choice else None,
        "backend": outcome.backend or None if outcome else None,
        "upstream_model": outcome.upstream_model or None if outcome else None,
        "failed_targets": outcome.failed_targets if outcome else [],
        "priority": job.priority.label,
        "queue": None,
        "attempt": record.attempt,
        "attempts": attempt_errors(record),
        "created_at": record.created_ms // 1000,
        "started_at": _seconds(record.started_ms),
        "finished_at": _seconds(record.finished_ms),
        "result": answer if succeeded else None,
        "partial_result": None if succeeded else answer,
        "error": error_fields(outcome.failure) if outcome and outcome.failure else None,
        "usage": usage.to_openai() if usage else None,
        "timings_ms": outcome.timings_ms if outcome else None,
        "metadata": job.metadata,
    }


def listed(record: Record) -> Record:
    """The record as lists show it: embeddings, of which a page would be gigabytes, only the job itself shows."""
    return replace(record, result=None) if record.job.endpoint == EMBEDDINGS_ENDPOINT else record


def _answer(record: Record) -> JsonObject | orjson.Fragment | None:
    if not record.result:
        return None
    if record.job.endpoint == EMBEDDINGS_ENDPOINT:
        return orjson.Fragment(embeddings_object(record.job.model, record.job.body, record.result))
    job = answered_by(record.job, record.outcome)
    return completion_object(job.id, record.created_ms // 1000, job.model, orjson.loads(record.result))


def attempt_errors(record: Record) -> list[JsonObject]:
    """The attempts that failed, the first one first."""
    return [
        {"attempt": one.attempt, "code": one.code, "message": one.message, "backend": one.backend, "at_ms": one.at_ms}
        for one in record.errors
    ]


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
