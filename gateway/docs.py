"""The API's description at /docs/api, Swagger UI at /docs/swagger (its assets from our own process), and what each
route says of itself there.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any, Final

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import JsonObject
from common.errors import NotFound
from gateway.dialects import ollama
from gateway.dialects.anthropic_schema import COUNT_TOKENS_BODY, MESSAGES_BODY
from gateway.dialects.chat_schema import CHAT_BODY
from gateway.dialects.completions import COMPLETIONS_BODY
from gateway.dialects.embeddings import EMBEDDINGS_BODY
from gateway.dialects.native import JOB_BODY, MAX_BATCH_KEY_CHARACTERS, MAX_DEADLINE_MS, PROMPT_BODY
from gateway.dialects.responses_schema import RESPONSES_BODY
from gateway.idempotency import HEADER, MAX_CHARACTERS

API_PATH: Final = "/docs/api"
SWAGGER_PATH: Final = "/docs/swagger"
ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_REFS: Final = "#/components/schemas/{model}"
# Swagger UI is started by a script in the page, and draws with styles and pictures that it holds as data.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)

Route = dict[str, Any]
_BODIES: Final = {
    "ChatBody": CHAT_BODY,
    "CompletionsBody": COMPLETIONS_BODY,
    "CountTokensBody": COUNT_TOKENS_BODY,
    "EmbeddingsBody": EMBEDDINGS_BODY,
    "JobBody": JOB_BODY,
    "MessagesBody": MESSAGES_BODY,
    "OllamaChatBody": ollama.CHAT_BODY,
    "OllamaEmbedBody": ollama.EMBED_BODY,
    "OllamaEmbeddingsBody": ollama.EMBEDDINGS_BODY,
    "OllamaGenerateBody": ollama.GENERATE_BODY,
    "OllamaShowBody": ollama.SHOW_BODY,
    "PromptBody": PROMPT_BODY,
    "ResponsesBody": RESPONSES_BODY,
}


# --- what the routes say of themselves --------------------------------------------------------------------------------


def _ref(name: str) -> JsonObject:
    return {"$ref": _REFS.format(model=name)}


def _answer(text: str, schema: JsonObject | None = None, kind: str = "application/json") -> JsonObject:
    return {"description": text, "content": {kind: {"schema": schema or {"type": "object"}}}}


_STREAM: Final = "text/event-stream"
_OPENAI_ERROR: Final = _answer("What is wrong, in OpenAI's form.", _ref("Error"))
_ANTHROPIC_ERROR: Final = _answer("What is wrong, in Anthropic's form.", _ref("AnthropicError"))
_PROBLEM: Final = _answer("What is wrong, by RFC 9457.", _ref("Problem"), "application/problem+json")
_REFUSALS: Final = {
    400: "The request is not valid.",
    401: "No key, or not one of ours.",
    403: "Not with this key.",
    404: "No such thing, or not yours.",
    413: "The body is too large.",
    422: "The Idempotency-Key came with another request before.",
    429: "The queue is full; see Retry-After.",
    503: "Not at the moment; see Retry-After.",
    529: "Too much work at the moment; see Retry-After.",
}


def _header(name: str, text: str, schema: JsonObject) -> JsonObject:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


_IDEMPOTENCY: Final = _header(
    HEADER,
    "The same key with the same body gets the same job: the stream that runs, or the answer or error that is stored, "
    "with `x-headrace-replayed: true`.",
    {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS},
)
_OPTIONS: Final = [
    _IDEMPOTENCY,
    _header("x-headrace-priority", "The class to queue in.", {"enum": ["interactive", "standard", "batch"]}),
    _header(
        "x-headrace-deadline-ms",
        "When the answer is of no more use, in milliseconds from now.",
        {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
    ),
    _header(
        "x-headrace-batch-key",
        "Jobs of one key are likely to run together, on a backend that knows their common prefix.",
        {"type": "string", "maxLength": MAX_BATCH_KEY_CHARACTERS},
    ),
    _header("x-headrace-on-disconnect", "What happens when the last reader is gone.", {"enum": ["cancel", "continue"]}),
    _header("x-headrace-on-interrupt", "What happens when an answer breaks off.", {"enum": ["fail", "restart"]}),
    _header(
        "x-headrace-quality",
        "How strong a model a virtual one must choose; `standard` goes by the request.",
        {"enum": ["low", "standard", "high"]},
    ),
]


def _route(tag: str, summary: str, responses: dict[int, JsonObject], **extra: Any) -> Route:
    """What FastAPI takes with a route. Nothing is validated or serialised by FastAPI: it only describes."""
    return {
        "tags": [tag],
        "summary": summary,
        "status_code": min(responses),
        "responses": responses,
        "openapi_extra": extra or None,
    }


def _refusals(shape: JsonObject, *statuses: int) -> dict[int, JsonObject]:
    return {status: {**shape, "description": _REFUSALS[status]} for status in statuses}


def _body(name: str) -> JsonObject:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


_KEY: Final[list[JsonObject]] = [{"bearer": []}, {"api_key": []}]
_ANYONE: Final[list[JsonObject]] = []
_COMPLETION: Final = {
    "description": "The completion; with `stream`, its chunks as server-sent events, each with an `id` to resume from.",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        _STREAM: {"schema": {"type": "string"}},
    },
}
_EVENTS: Final = _answer("Chunks as server-sent events, ended by `data: [DONE]`.", {"type": "string"}, _STREAM)
_LAST_EVENT: Final = [
    _header("Last-Event-ID", "The last `id` that was seen; what comes after it is sent.", {"type": "string"}),
    {"name": "last_event_id", "in": "query", "required": False, "schema": {"type": "string"}},
]
_PAGE: Final[list[JsonObject]] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}},
    {"name": "after", "in": "query", "description": "The page before's last one.", "schema": {"type": "string"}},
]
_WORK: Final = (400, 401, 404, 413, 422, 429, 503)

CHAT: Final = _route(
    "OpenAI",
    "Create a chat completion",
    {200: _COMPLETION, **_refusals(_OPENAI_ERROR, *_WORK)},
    requestBody=_body("ChatBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
COMPLETIONS: Final = _route(
    "OpenAI",
    "Complete a prompt: a chat of one message, answered as text",
    {200: _COMPLETION, **_refusals(_OPENAI_ERROR, *_WORK)},
    requestBody=_body("CompletionsBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
EMBEDDINGS: Final = _route(
    "OpenAI",
    "Create embeddings",
    {200: _answer("One embedding for each input."), **_refusals(_OPENAI_ERROR, *_WORK)},
    requestBody=_body("EmbeddingsBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
MESSAGES: Final = _route(
    "Anthropic",
    "Create a message",
    {
        200: {
            "description": "The message; with `stream`, its named events.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                _STREAM: {"schema": {"type": "string"}},
            },
        },
        **_refusals(_ANTHROPIC_ERROR, *_WORK, 529),
    },
    requestBody=_body("MessagesBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
COUNT_TOKENS: Final = _route(
    "Anthropic",
    "Estimate the tokens of a prompt",
    {
        200: _answer("About how many there are, by the gateway's own count: no model is asked."),
        **_refusals(_ANTHROPIC_ERROR, 400, 401, 404, 413),
    },
    requestBody=_body("CountTokensBody"),
    security=_KEY,
)
_RESPONSE_ANSWER: Final = {
    "description": "The response; with `stream`, its typed events, numbered from 0.",
    "content": {"application/json": {"schema": {"type": "object"}}, _STREAM: {"schema": {"type": "string"}}},
}
CREATE_RESPONSE: Final = _route(
    "OpenAI",
    "Create a response",
    {200: _RESPONSE_ANSWER, **_refusals(_OPENAI_ERROR, *_WORK)},
    requestBody=_body("ResponsesBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
RESPONSE: Final = _route(
    "OpenAI",
    "A response; with `stream`, its events after any of them, live where it still runs",
    {
        200: _RESPONSE_ANSWER,
        **_refusals(_OPENAI_ERROR, 400, 401, 404),
        410: {**_OPENAI_ERROR, "description": "The stream is no longer kept."},
    },
    parameters=[
        {"name": "stream", "in": "query", "schema": {"type": "boolean", "default": False}},
        {
            "name": "starting_after",
            "in": "query",
            "description": "The `sequence_number` of the last event that was seen; only with `stream`.",
            "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        },
    ],
    security=_KEY,
)
DELETE_RESPONSE: Final = _route(
    "OpenAI",
    "Delete a response; one that runs is cancelled first",
    {200: _answer("Deleted."), **_refusals(_OPENAI_ERROR, 401, 404, 503)},
    security=_KEY,
)
CANCEL_RESPONSE: Final = _route(
    "OpenAI",
    "Cancel a response",
    {200: _answer("The response as it ended."), **_refusals(_OPENAI_ERROR, 401, 404)},
    security=_KEY,
)
INPUT_ITEMS: Final = _route(
    "OpenAI",
    "The items that a response was made from",
    {200: _answer("Items."), **_refusals(_OPENAI_ERROR, 400, 401, 404)},
    parameters=[*_PAGE, {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"], "default": "desc"}}],
    security=_KEY,
)
MODELS: Final = _route(
    "OpenAI", "List the models", {200: _answer("The models."), **_refusals(_OPENAI_ERROR, 401)}, security=_KEY
)
MODEL: Final = _route(
    "OpenAI", "One model", {200: _answer("The model."), **_refusals(_OPENAI_ERROR, 401, 404)}, security=_KEY
)
PROMPT: Final = _route(
    "Prompt",
    "Ask a question, without ceremony",
    {200: _COMPLETION, **_refusals(_PROBLEM, *_WORK)},
    requestBody=_body("PromptBody"),
    parameters=_OPTIONS,
    security=_KEY,
)
_OLLAMA_ERROR: Final = _answer("What is wrong, in Ollama's form.", _ref("OllamaError"))
_LINES: Final = {
    "description": "The answer's pieces, a line of JSON each; without `stream`, the answer.",
    "content": {
        "application/x-ndjson": {"schema": {"type": "string"}},
        "application/json": {"schema": {"type": "object"}},
    },
}


def _ollama_work(summary: str, body: str, answer: JsonObject) -> Route:
    return _route(
        "Ollama",
        summary,
        {200: answer, **_refusals(_OLLAMA_ERROR, *_WORK)},
        requestBody=_body(body),
        parameters=_OPTIONS,
        security=_KEY,
    )


def _ollama_list(summary: str, text: str) -> Route:
    return _route("Ollama", summary, {200: _answer(text), **_refusals(_OLLAMA_ERROR, 401)}, security=_KEY)


OLLAMA_CHAT: Final = _ollama_work("The next message of a chat", "OllamaChatBody", _LINES)
OLLAMA_GENERATE: Final = _ollama_work("What comes after a prompt", "OllamaGenerateBody", _LINES)
OLLAMA_EMBED: Final = _ollama_work("Embed texts", "OllamaEmbedBody", _answer("One embedding for each text."))
OLLAMA_EMBEDDINGS: Final = _ollama_work("Embed a text, the older way", "OllamaEmbeddingsBody", _answer("An embedding."))
OLLAMA_SHOW: Final = _route(
    "Ollama",
    "What is known of a model",
    {200: _answer("Its context and abilities."), **_refusals(_OLLAMA_ERROR, 400, 401, 404, 413)},
    requestBody=_body("OllamaShowBody"),
    security=_KEY,
)
OLLAMA_TAGS: Final = _ollama_list("List the models", "The models.")
OLLAMA_PS: Final = _ollama_list("List the models that are ready", "The models.")
OLLAMA_VERSION: Final = _ollama_list("The release of Ollama whose API this is", "The version.")
SUBMIT_JOB: Final = _route(
    "Jobs",
    "Submit a job",
    {202: _answer("Accepted: its id, and where to ask for it."), **_refusals(_OPENAI_ERROR, *_WORK)},
    requestBody=_body("JobBody"),
    parameters=[_IDEMPOTENCY],
    security=_KEY,
)
JOBS: Final = _route(
    "Jobs",
    "List your jobs, the newest first",
    {200: _answer("Jobs."), **_refusals(_OPENAI_ERROR, 400, 401)},
    parameters=_PAGE,
    security=_KEY,
)
JOB: Final = _route("Jobs", "A job", {200: _answer("The job."), **_refusals(_OPENAI_ERROR, 401, 404)}, security=_KEY)
CANCEL_JOB: Final = _route(
    "Jobs", "Cancel a job", {200: _answer("The job."), **_refusals(_OPENAI_ERROR, 401, 404)}, security=_KEY
)
JOB_EVENTS: Final = _route(
    "Jobs",
    "Follow a job's tokens, from any place in them",
    {
        200: _EVENTS,
        204: {"description": "The job has ended and there is nothing after this position: do not come back."},
        **_refusals(_OPENAI_ERROR, 400, 401, 404),
        410: {**_OPENAI_ERROR, "description": "That part of the stream is no longer kept."},
    },
    parameters=_LAST_EVENT,
    security=_KEY,
)
_PLAIN: Final = "text/plain"
LIVEZ: Final = _route("Operations", "Alive", {200: _answer("Yes.", kind=_PLAIN)}, security=_ANYONE)
READYZ: Final = _route(
    "Operations",
    "Ready for work",
    {200: _answer("Yes.", kind=_PLAIN), 503: _answer("No, and why.", kind=_PLAIN)},
    security=_ANYONE,
)
HEALTH: Final = _route(
    "Operations", "How this deployment is", {200: _answer("Well."), 503: _answer("Not well.")}, security=_ANYONE
)
METRICS: Final = _route("Operations", "Prometheus", {200: _answer("Metrics.", kind=_PLAIN)}, security=_ANYONE)
WORKERS: Final = _route(
    "Operations", "Workers and their backends", {200: _answer("Workers."), **_refusals(_PROBLEM, 401)}, security=_KEY
)
DRAIN_WORKER: Final = _route(
    "Operations",
    "Have a worker end its work and leave",
    {
        202: _answer("It was told: it takes nothing new, lets what runs end for a while, puts back the rest."),
        **_refusals(_OPENAI_ERROR, 401, 403, 404),
    },
    security=_KEY,
)
DEAD_LETTERS: Final = _route(
    "Dead letters",
    "Your jobs whose attempts were used up, the newest first",
    {200: _answer("Dead letters."), **_refusals(_OPENAI_ERROR, 400, 401)},
    parameters=[
        *_PAGE,
        {"name": "pool", "in": "query", "description": "Only those of this pool.", "schema": {"type": "string"}},
    ],
    security=_KEY,
)
DEAD_LETTER: Final = _route(
    "Dead letters",
    "A dead letter: its request, its reason, and each attempt's error",
    {200: _answer("The dead letter."), **_refusals(_OPENAI_ERROR, 401, 404)},
    security=_KEY,
)
REPLAY: Final = _route(
    "Dead letters",
    "Run a dead letter anew",
    {
        202: _answer("The new job; asked again, the same one."),
        **_refusals(_OPENAI_ERROR, 401, 404, 429, 503),
    },
    security=_KEY,
)
QUEUES: Final = _route(
    "Operations", "What waits, and since when", {200: _answer("Pools."), **_refusals(_OPENAI_ERROR, 401)}, security=_KEY
)


# --- the pages --------------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Adds the description and the page that shows it. Call it after the routes are there."""
    files = {name: _asset(name) for name in ASSETS}
    made: list[bytes] = []

    @app.get(API_PATH, include_in_schema=False)
    async def api() -> Response:  # pyright: ignore[reportUnusedFunction]
        # Made when it is first asked for: it takes longer than a gateway otherwise needs to start.
        if not made:
            made.append(orjson.dumps(describe(app)))
        return Response(made[0], media_type="application/json")

    @app.get(SWAGGER_PATH, include_in_schema=False)
    async def swagger(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=root + API_PATH,
            title="Headrace: API",
            swagger_js_url=f"{root}{SWAGGER_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{SWAGGER_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{root}{SWAGGER_PATH}/favicon-32x32.png",
        )
        page.headers["content-security-policy"] = _POLICY
        return page

    @app.get(SWAGGER_PATH + "/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        if name not in files:
            raise NotFound()
        return Response(files[name], headers={"cache-control": "public, max-age=86400"}, media_type=ASSETS[name])


def describe(app: FastAPI) -> JsonObject:
    """The OpenAPI document: FastAPI's, with the bodies that our own parsers check."""
    document: JsonObject = app.openapi()
    schemas: JsonObject = document.setdefault("components", {}).setdefault("schemas", {})
    _without_fastapis_errors(document, schemas)
    schemas.update(_body_schemas(_BODIES.items()))
    schemas["Error"] = _ERROR
    schemas["AnthropicError"] = _ANTHROPIC_ERROR_SCHEMA
    schemas["OllamaError"] = _OLLAMA_ERROR_SCHEMA
    schemas["Problem"] = _PROBLEM_SCHEMA
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return document


def _without_fastapis_errors(document: JsonObject, schemas: JsonObject) -> None:
    """Takes out the 422 that FastAPI adds to every route with a parameter: ours answer such faults as 400."""
    for methods in document["paths"].values():
        for route in methods.values():
            if "HTTPValidationError" in str(route["responses"].get("422")):
                del route["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


_TEXT_OR_NULL: Final[JsonObject] = {"type": ["string", "null"]}
_ERROR: Final[JsonObject] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_ANTHROPIC_ERROR_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": _TEXT_OR_NULL,
    },
}
_OLLAMA_ERROR_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_PROBLEM_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "param": {"type": "string"},
    },
}


def _body_schemas(bodies: Iterable[tuple[str, TypeAdapter[Any]]]) -> JsonObject:
    found: JsonObject = {}
    for name, adapter in bodies:
        schema = adapter.json_schema(ref_template=_REFS)
        found.update(schema.pop("$defs", {}))
        found[name] = schema
    return found


def _asset(name: str) -> bytes:
    return (resources.files("fastapi_swagger.resources") / name).read_bytes()
