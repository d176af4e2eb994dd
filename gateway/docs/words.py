"""The words that a route's description is made of: answers, refusals, headers, parameters, bodies, keys."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import JsonObject
from gateway.dialects.native import MAX_BATCH_KEY_CHARACTERS, MAX_DEADLINE_MS
from gateway.idempotency import HEADER, MAX_CHARACTERS

REFS: Final = "#/components/schemas/{model}"
_HEADER_REFS: Final = "#/components/headers/{name}"

Route = dict[str, Any]


def ref(name: str) -> JsonObject:
    """A schema that stands among the document's components."""
    return {"$ref": REFS.format(model=name)}


def answer(text: str, schema: JsonObject | None = None, kind: str = "application/json") -> JsonObject:
    """An answer of one kind of content."""
    return {"description": text, "content": {kind: {"schema": schema or {"type": "object"}}}}


def told(shape: JsonObject, *headers: str) -> JsonObject:
    """The same answer with these headers of the document's components."""
    found = {name: {"$ref": _HEADER_REFS.format(name=name)} for name in headers}
    return {**shape, "headers": {**shape.get("headers", {}), **found}}


STREAM: Final = "text/event-stream"
PLAIN: Final = "text/plain"
OPENAI_ERROR: Final = answer("What is wrong, in OpenAI's form.", ref("Error"))
ANTHROPIC_ERROR: Final = answer("What is wrong, in Anthropic's form.", ref("AnthropicError"))
OLLAMA_ERROR: Final = answer("What is wrong, in Ollama's form.", ref("OllamaError"))
PROBLEM: Final = answer("What is wrong, by RFC 9457.", ref("Problem"), "application/problem+json")
REFUSALS: Final = {
    400: "The request is not valid.",
    401: "No key, or not one of ours.",
    403: "Not with this key.",
    404: "No such thing, or not yours.",
    408: "The body did not arrive in time.",
    410: "That part of the stream is no longer kept.",
    413: "The body is too large.",
    415: "The body is no JSON, or compressed.",
    422: "The Idempotency-Key came with another request before.",
    429: "The queue is full; see Retry-After.",
    431: "The headers are too large.",
    499: "Somebody cancelled the job meanwhile.",
    500: "Something went wrong on our side.",
    502: "The model's server failed.",
    503: "Not at the moment; see Retry-After.",
    504: "The deadline passed, or the model's server took too long.",
    529: "Too much work at the moment; see Retry-After.",
}
# What any answer has.
_ALWAYS: Final = ("X-Request-ID", "OpenAI-Processing-Ms")
# What any request may be told, any with a key, and any with a body.
_ANYBODY: Final = (400, 431, 500)
_WITH_KEY: Final = (401, 503)
_WITH_BODY: Final = (408, 413, 415)
_HEADERS_OF: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",), 529: ("Retry-After",)}
LIMIT_HEADERS: Final = ("X-RateLimit-Limit-Requests", "X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests")
ANTHROPIC_LIMIT_HEADERS: Final = (
    "Anthropic-RateLimit-Requests-Limit",
    "Anthropic-RateLimit-Requests-Remaining",
    "Anthropic-RateLimit-Requests-Reset",
)


def header(name: str, text: str, schema: JsonObject) -> JsonObject:
    """A header that a request may have."""
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def query(name: str, text: str, schema: JsonObject) -> JsonObject:
    """A parameter that a request's address may have."""
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def path(name: str, text: str, example: str) -> JsonObject:
    """A part of the address."""
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema, "example": example}


# As draft-ietf-httpapi-idempotency-key-header-07 has it, in quotes, or bare.
_KEY_INSIDE: Final = rf"([ -~]{{0,{MAX_CHARACTERS - 2}}}[!-~])?"
IDEMPOTENCY: Final = header(
    HEADER,
    "The same key with the same body gets the same job: the stream that runs, or the answer or error that is stored, "
    "with `x-headrace-replayed: true`.",
    {"type": "string", "pattern": rf'^("[!#-~]{_KEY_INSIDE}"|[!#-~]{_KEY_INSIDE})$'},
)
OPTIONS: Final = [
    IDEMPOTENCY,
    header(
        "x-headrace-priority",
        "The class to queue in.",
        {"type": "string", "enum": ["interactive", "standard", "batch"]},
    ),
    header(
        "x-headrace-deadline-ms",
        "When the answer is of no more use, in milliseconds from now.",
        {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
    ),
    header(
        "x-headrace-batch-key",
        "Jobs of one key are likely to run together, on a backend that knows their common prefix.",
        {"type": "string", "pattern": rf"^[!-~]([ -~]{{0,{MAX_BATCH_KEY_CHARACTERS - 2}}}[!-~])?$"},
    ),
    header(
        "x-headrace-on-disconnect",
        "What happens when the last reader is gone.",
        {"type": "string", "enum": ["cancel", "continue"]},
    ),
    header(
        "x-headrace-on-interrupt",
        "What happens when an answer breaks off.",
        {"type": "string", "enum": ["fail", "restart"]},
    ),
    header(
        "x-headrace-quality",
        "How strong a model a virtual one must choose; `standard` goes by the request.",
        {"type": "string", "enum": ["low", "standard", "high"]},
    ),
]


def route(tag: str, summary: str, responses: dict[int, JsonObject], **extra: Any) -> Route:
    """What FastAPI takes with a route. Nothing is validated or serialised by FastAPI: it only describes.

    What any route may answer is added, in the form that its other refusals have.
    """
    shape = next((one for status, one in responses.items() if status >= 400), PROBLEM)
    statuses = [
        *_ANYBODY,
        *(_WITH_KEY if extra.get("security") else ()),
        *(_WITH_BODY if "requestBody" in extra else ()),
    ]
    whole = {**refusals(shape, *statuses), **responses}
    return {
        "tags": [tag],
        "summary": summary,
        "status_code": min(responses),
        "responses": {status: told(whole[status], *_ALWAYS) for status in sorted(whole)},
        "openapi_extra": extra or None,
    }


def refusals(shape: JsonObject, *statuses: int) -> dict[int, JsonObject]:
    """Refusals of one form, by their status."""
    made = {status: {**shape, "description": REFUSALS[status]} for status in statuses}
    limits = ANTHROPIC_LIMIT_HEADERS if shape is ANTHROPIC_ERROR else LIMIT_HEADERS
    if 429 in made:
        made[429] = told(made[429], *limits)
    return {status: told(one, *_HEADERS_OF.get(status, ())) for status, one in made.items()}


def body(name: str, **examples: JsonObject) -> JsonObject:
    """A request's body, with examples by their names."""
    shown = {"examples": {title: {"value": value} for title, value in examples.items()}} if examples else {}
    return {"required": True, "content": {"application/json": {"schema": ref(name), **shown}}}


KEY: Final[list[JsonObject]] = [{"bearer": []}, {"api_key": []}]
ANYONE: Final[list[JsonObject]] = []
JOB_HEADERS: Final = ("X-Headrace-Job-Id", "X-Headrace-Durability", "X-Headrace-Replayed", "X-Headrace-Model")
MADE_HEADERS: Final = (*JOB_HEADERS, *LIMIT_HEADERS)
"""Of the answer to a request that makes a job, unless an earlier one with its key had made it."""
JSON_LINES: Final = "application/x-ndjson"
EVENT: Final[JsonObject] = {
    "description": "Each event of the stream.",
    "type": "object",
    "required": ["data"],
    "properties": {name: {"type": "string"} for name in ("data", "event", "id")},
}
_LINES: Final[JsonObject] = {"description": "The lines.", "type": "array", "items": {"type": "object"}}
_PIECES: Final = {STREAM: EVENT, JSON_LINES: _LINES}
_COMPLETED: Final = "The answer; with `stream`, its chunks as server-sent events, each with an `id` to resume from."


def completed(
    name: str, text: str = _COMPLETED, *, stream: str = STREAM, limits: tuple[str, ...] = LIMIT_HEADERS
) -> JsonObject:
    """A job's answer: whole, or as a stream of this kind. `limits`: its headers of the tenant's limit."""
    content = {"application/json": {"schema": ref(name)}, stream: {"schema": _PIECES[stream]}}
    return told({"description": text, "content": content}, *JOB_HEADERS, *limits)


def linked(shape: JsonObject, parameter: str, pointer: str, *operations: str) -> JsonObject:
    """The same answer, telling which operations go on from it, and with what of it as their parameter."""
    value = {parameter: f"$response.body#{pointer}"}
    links = {name: {"operationId": name, "parameters": value} for name in operations}
    return {**shape, "links": {**shape.get("links", {}), **links}}


PAGE: Final[list[JsonObject]] = [
    query("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
    query("after", "The page before's last one.", {"type": "string"}),
]
WORK: Final = (400, 401, 404, 408, 413, 415, 422, 429, 499, 502, 503, 504)
