"""One table: our error codes to HTTP status and OpenAI's error type; and the bodies that carry them, per dialect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope
from structlog.contextvars import get_contextvars

from common.contracts import Failure, JsonObject
from common.errors import HeadraceError
from common.metrics import GatewayMetrics
from gateway.fitting import PROMPT_TOO_LONG, TOO_LONG
from gateway.limits import TenantFull

Headers = dict[str, str]

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Row:
    """What a code becomes. `sent` is the code that callers see, where it is another or none.

    `retry` overrules the SDKs' own rule (they retry 408, 409, 429 and 5xx): where trying again can't help, or would
    only add to the load that broke it.
    """

    status: int
    type: str = "invalid_request_error"
    sent: str | None = ""
    retry: bool | None = None


_SERVER: Final = "server_error"

TABLE: Final = {
    # the caller must change something
    "invalid_request": Row(400, sent=None),
    "invalid_json": Row(400),
    "unknown_parameter": Row(400),
    "unsupported_parameter": Row(400),
    "previous_response_not_found": Row(400),
    "thread_unsupported_request": Row(400),
    "invalid_host": Row(400),
    "invalid_api_key": Row(401),
    "permission_denied": Row(403, "permission_error"),
    "not_found": Row(404),
    "unknown_url": Row(404),
    "job_not_found": Row(404),
    "worker_not_found": Row(404),
    "dead_letter_not_found": Row(404),
    "model_not_found": Row(404),
    "method_not_allowed": Row(405),
    "request_timeout": Row(408),
    "stream_expired": Row(410),
    "stream_lost": Row(410),
    "request_too_large": Row(413),
    "answer_too_large": Row(413),
    "unsupported_media_type": Row(415),
    "idempotency_key_reused": Row(422),
    "headers_too_large": Row(431),
    # Somebody cancelled the job that this request waited for. 409 would be nearer, but SDKs try a 409 again.
    "cancelled": Row(499),
    # the caller should come back later
    "queue_full": Row(429, "requests", retry=True),
    "tenant_queue_full": Row(429, "requests", retry=True),
    "wait_exceeds_deadline": Row(503, _SERVER, retry=True),
    "server_overloaded": Row(503, _SERVER, retry=True),
    "store_unavailable": Row(503, _SERVER, retry=True),
    "store_full": Row(503, _SERVER, retry=True),
    "ledger_unavailable": Row(503, _SERVER, retry=True),
    # An accepted job whose deadline passed while the store that lost it had nothing to run.
    "redis_lost": Row(503, _SERVER, retry=True),
    "slow_reader": Row(503, _SERVER),
    # the upstream failed
    "upstream_error": Row(502, _SERVER),
    "upstream_unreachable": Row(502, _SERVER),
    "upstream_protocol_error": Row(502, _SERVER),
    "upstream_interrupted": Row(502, _SERVER),
    "upstream_timeout": Row(504, _SERVER),
    "upstream_unavailable": Row(503, _SERVER, retry=True),
    "upstream_busy": Row(503, _SERVER, retry=True),
    "upstream_credentials": Row(502, _SERVER, retry=False),
    "attempts_exhausted": Row(502, _SERVER),
    "upstream_refused": Row(400),
    "context_length_exceeded": Row(400),
    "content_filter": Row(400),
    # The time that the caller gave is over: the same request would only queue again.
    "deadline_exceeded": Row(504, _SERVER, sent="timeout", retry=False),
    "timeout": Row(504, _SERVER, retry=False),
    # we are broken
    "internal_error": Row(500, _SERVER),
    "fenced": Row(500, _SERVER, sent="internal_error"),
}

_BY_STATUS: Final = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}


def row_of(code: str) -> Row:
    """The table's row; an unknown code is our own mistake."""
    return TABLE.get(code, TABLE["internal_error"])


def error_fields(failure: Failure) -> JsonObject:
    """OpenAI's error: four keys, all of them always there. Where a model's server had its own code, that is told."""
    row = row_of(failure.code)
    code = failure.upstream_code or (_shown_code(failure) if row.sent == "" else row.sent)
    return {"message": failure.message, "type": row.type, "param": failure.param, "code": code}


def _shown_code(failure: Failure) -> str:
    return failure.code if failure.code in TABLE else "internal_error"


def error_object(failure: Failure) -> bytes:
    """OpenAI's error object as JSON: the body of an answer, or the data of a stream's last event."""
    return orjson.dumps({"error": error_fields(failure)})


def openai_error(failure: Failure) -> tuple[int, bytes, Headers]:
    """(status, body, headers) of an answer in OpenAI's dialect."""
    return row_of(failure.code).status, error_object(failure), _headers(failure)


_MESSAGES: Final = "/v1/messages"
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Anthropic's clients act on these.
_TOLD_BY_CODE: Final = frozenset({"thread_unsupported_request"})
# Of our 503s those that mean too much work. Where something is away, 503 stays.
_OVERLOADED: Final = frozenset({"wait_exceeds_deadline", "server_overloaded", "store_full", "upstream_busy"})


def anthropic_error_object(failure: Failure) -> bytes:
    """Anthropic's error object as JSON: the body of an answer, or the data of a stream's last event."""
    status = _anthropic_status(failure)
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: JsonObject = {"type": kind, "message": _in_anthropics_words(failure)}
    if failure.code in _TOLD_BY_CODE:
        error["details"] = {"error_code": failure.code, "unsupported": [failure.param]}
    # The request's own id, as its log lines have it.
    return orjson.dumps({"type": "error", "error": error, "request_id": get_contextvars().get("request_id")})


def _in_anthropics_words(failure: Failure) -> str:
    """The message; Anthropic's clients know by words alone that they have to shorten the conversation."""
    # Where `max_tokens` is too much, that would not help.
    shorten = failure.code == TOO_LONG and failure.param != "max_tokens"
    unsaid = shorten and PROMPT_TOO_LONG not in failure.message
    return f"{PROMPT_TOO_LONG}: {failure.message}" if unsaid else failure.message


def anthropic_error(failure: Failure) -> tuple[int, bytes, Headers]:
    """(status, body, headers) of an answer in Anthropic's dialect."""
    return _anthropic_status(failure), anthropic_error_object(failure), _headers(failure)


def _anthropic_status(failure: Failure) -> int:
    return 529 if failure.code in _OVERLOADED else row_of(failure.code).status


def speaks_anthropic(path: str) -> bool:
    """Whether this path's callers expect Anthropic's errors and headers."""
    return path == _MESSAGES or path.startswith(_MESSAGES + "/")


# By these paths OpenAI's clients ask as well as Anthropic's.
_SHARED: Final = ("/v1/models", "/v1/files")


def asks_anthropic(scope: Scope) -> bool:
    """Whether a client of Anthropic's asks, where others ask by the same path."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def expects_anthropic(scope: Scope) -> bool:
    """Whether this request's caller expects Anthropic's errors and headers."""
    path: str = scope["path"]
    return speaks_anthropic(path) or (path.startswith(_SHARED) and asks_anthropic(scope))


def answer_in(scope: Scope, failure: Failure, *, extra: Headers | None = None) -> Response:
    """A failure as the answer that this request's caller expects."""
    return answer(failure, _MESSAGES if expects_anthropic(scope) else scope["path"], extra=extra)


def ollama_error_object(failure: Failure) -> bytes:
    """Ollama's error object as JSON: the body of an answer, or a stream's last line."""
    return orjson.dumps({"error": failure.message})


def ollama_error(failure: Failure) -> tuple[int, bytes, Headers]:
    """(status, body, headers) of an answer in Ollama's dialect."""
    return row_of(failure.code).status, ollama_error_object(failure), _headers(failure)


def problem(failure: Failure, instance: str) -> tuple[int, bytes, Headers]:
    """(status, body, headers) of an answer by RFC 9457, for paths that are nobody's dialect."""
    row = row_of(failure.code)
    code = row.sent or _shown_code(failure)
    body: JsonObject = {
        "type": "about:blank",
        "title": code.replace("_", " ").capitalize(),
        "status": row.status,
        "detail": failure.message,
        "instance": instance[:256],
        "code": code,
    }
    if failure.param is not None:
        body["param"] = failure.param
    return row.status, orjson.dumps(body), _headers(failure)


def _headers(failure: Failure) -> Headers:
    row = row_of(failure.code)
    headers: Headers = {}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(failure.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(failure.retry_after_s * 1000)))
    if row.retry is not None:
        headers["x-should-retry"] = "true" if row.retry else "false"
    if row.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def answer(failure: Failure, path: str, *, extra: Headers | None = None) -> Response:
    """A failure as the answer that this path's callers expect."""
    if speaks_anthropic(path):
        status, body, headers = anthropic_error(failure)
        return Response(body, status, {**(extra or {}), **headers}, JSON)
    if path.startswith("/v1/"):
        status, body, headers = openai_error(failure)
        return Response(body, status, {**(extra or {}), **headers}, JSON)
    if path.startswith("/api/"):
        status, body, headers = ollama_error(failure)
        return Response(body, status, {**(extra or {}), **headers}, JSON)
    status, body, headers = problem(failure, path)
    return Response(body, status, {**(extra or {}), **headers}, PROBLEM_JSON)


# --- where FastAPI would answer in its own way ------------------------------------------------------------------------


def install(app: FastAPI, metrics: GatewayMetrics, routers: Sequence[APIRouter] = ()) -> None:
    """Has every refusal of this application, with these routers, answered by the table, and counted.

    What nobody expected is not answered here but in `gateway.http`, the outermost layer, so that it has a request id.
    """

    async def on_headrace_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HeadraceError)
        metrics.refused(error.failure.code)
        anthropic = expects_anthropic(request.scope)
        told = error.headers(anthropic=anthropic) if isinstance(error, TenantFull) else None
        return answer_in(request.scope, error.failure, extra=told)

    routes = [one for router in (app, *routers) for one in router.routes if isinstance(one, Route)]

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 405:
            return _http_answer(request, error)
        return _http_answer(request, HTTPException(405, headers={"Allow": _allowed(routes, request)}))

    app.add_exception_handler(HeadraceError, on_headrace_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


def _allowed(routes: Sequence[Route], request: Request) -> str:
    """The methods of what is at this address, which several routes may serve.

    Where it fits more than one template, as `/v1/responses/input_tokens` does, the one with the fewest blanks counts.
    """
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    blanks = min((len(route.param_convertors) for route in fitting), default=0)
    methods = [route.methods or () for route in fitting if len(route.param_convertors) == blanks]
    names = {name for of_route in methods for name in of_route}
    return ", ".join(sorted(names | {"HEAD"} if "GET" in names else names))


# Of what OpenAI's clients can ask for and is not there.
_CHATS: Final = "/v1/chat/completions"
_CHATS_ARE_NOT_KEPT: Final = " Chat completions are not stored, so none can be listed or asked for again."


def _http_answer(request: Request, error: HTTPException) -> Response:
    path: str = request.scope["path"]
    code = _BY_STATUS.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal_error")
    text = {
        "unknown_url": f"Unknown request URL: {request.method} {path[:128]}.",
        "method_not_allowed": f"{request.method} is not allowed here.",
    }.get(code, "The request cannot be served as it is.")
    if path == _CHATS or path.startswith(_CHATS + "/"):
        text += _CHATS_ARE_NOT_KEPT
    return answer_in(request.scope, Failure(code, text), extra=dict(error.headers or {}))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault: JsonObject = error.errors()[0]
    # FastAPI's location begins with where the field stands: path, query, header.
    param = ".".join(str(step) for step in fault["loc"][1:])[:64] or None
    return answer_in(request.scope, Failure("invalid_request", f"{param}: {fault['msg']}.", param))
