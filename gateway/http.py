"""The outermost layer of HTTP: what holds for every request and every answer, whatever the route.

Pure ASGI and no tasks of its own: a request pays a few microseconds for it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from asyncio import TimerHandle, Transport
from typing import ClassVar, Final

import structlog
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.config import Settings
from common.contracts import Failure
from common.errors import CallerError, TooLarge
from common.metrics import GatewayMetrics
from gateway.cors import Cors, RawHeaders
from gateway.errors import answer, answer_in, expects_anthropic

log = structlog.get_logger(__name__)

MAX_HEAD_BYTES: Final = 16 * 1024
HEAD_TIMEOUT_S: Final = 10.0
# Where a scope has the call that ends its connection in mid-answer.
HANG_UP: Final = "headrace.hang_up"

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class UnsupportedMediaType(CallerError):
    """The body must be JSON: send it as 'Content-Type: application/json'."""

    code = "unsupported_media_type"


class RequestTimeout(CallerError):
    """The request's body did not arrive in time."""

    code = "request_timeout"


# What HTTP clients call a body of which their caller said nothing: curl, and aiohttp with a text or bytes.
_UNMEANT_KINDS: Final = frozenset({b"application/x-www-form-urlencoded", b"text/plain", b"application/octet-stream"})

# --- bodies -----------------------------------------------------------------------------------------------------------


def request_id(request: Request) -> str:
    """The id that this request's answer bears as `x-request-id`."""
    return request.scope.get("headrace.request_id", "")


async def read_body(request: Request, *, limit_bytes: int, timeout_s: float, forms: bool = False) -> bytes:
    """A JSON body. Raises TooLarge without reading on, RequestTimeout, UnsupportedMediaType, BadRequest.

    `forms`: JSON that calls itself a form, text or bytes, as HTTP clients do where their caller says nothing, is taken
    from whoever is no page.
    """
    _check_body_headers(request.scope["headers"], limit_bytes, forms=forms)
    try:
        async with asyncio.timeout(timeout_s):
            return await _receive_all(request.receive, limit_bytes)
    except TimeoutError:
        raise RequestTimeout() from None


async def _receive_all(receive: Receive, limit_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        piece: bytes = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_body_headers(headers: RawHeaders, limit_bytes: int, *, forms: bool = False) -> None:
    kind = b""
    from_page = False
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"origin":
            from_page = True
        elif name == b"content-length" and int(value) > limit_bytes:
            raise _too_large(limit_bytes)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            # A few kilobytes can unpack to gigabytes.
            raise UnsupportedMediaType("Compressed bodies are not accepted: send it without Content-Encoding.")
    if forms and kind in _UNMEANT_KINDS and not from_page:
        return
    # A page of another site can send a body of no type without being asked; one that names JSON is asked first.
    if kind != b"application/json" and (kind or from_page):
        raise UnsupportedMediaType()


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The body is too large: at most {limit_bytes} bytes.")


# --- every request ----------------------------------------------------------------------------------------------------


def install(app: FastAPI, settings: Settings, metrics: GatewayMetrics) -> None:
    """Puts this layer around the application."""
    app.add_middleware(Edge, metrics=metrics, origins=settings.cors_origins)  # pyright: ignore[reportArgumentType]


class Edge:
    """Gives each request its id, refuses what no route should see, and answers what no route expected."""

    def __init__(self, app: ASGIApp, *, metrics: GatewayMetrics, origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._cors = Cors(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headrace.request_id"] = name = new_request_id()
        bind_contextvars(request_id=name)
        answering = Answering(scope, send, self._cors)
        try:
            await self._serve(scope, receive, answering)
        finally:
            self._metrics.request(route_of(scope), answering.status, time.perf_counter() - answering.started_s)
            if answering.first_token_s is not None:
                self._metrics.first_token(answering.first_token_s - answering.started_s)

    async def _serve(self, scope: Scope, receive: Receive, answering: Answering) -> None:
        try:
            failure = check_head(scope)
            if failure is not None:
                last = answer_in(scope, failure, extra={"connection": "close"})
                await last(scope, receive, answering.send)
            elif scope["method"] == "OPTIONS" and self._cors.asks(scope["headers"]):
                await answering.send_empty(204, self._cors.preflight(scope["headers"]))
            else:
                await self._app(scope, receive, answering.send)
        except ClientDisconnect:
            # Nobody is left to answer.
            log.debug("request.client_left")
        except Exception:
            # The process's one blind handler, at its outermost loop: whatever went wrong, the caller gets an answer.
            log.exception("request.failed", method=scope["method"], route=route_of(scope))
            if answering.status:
                # Half an answer is out: only closing the connection tells the caller that it is not all.
                await answering.abort()
                return
            text = "Something went wrong on our side."
            await answer_in(scope, Failure("internal_error", text))(scope, receive, answering.send)


class Answering:
    """One answer on its way out: adds the headers that every answer has, and remembers what went."""

    __slots__ = ("_cors", "_scope", "_send", "_streams", "first_token_s", "send", "started_s", "status")

    def __init__(self, scope: Scope, send: Send, cors: Cors) -> None:
        self._scope = scope
        self._send = send
        self._cors = cors
        self._streams = False
        self.started_s = time.perf_counter()
        self.status = 0
        self.first_token_s: float | None = None
        self.send: Send = self._start

    async def _start(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: RawHeaders = [*message["headers"]]
            spent_ms = int((time.perf_counter() - self.started_s) * 1000)
            headers.append((b"x-request-id", self._scope["headrace.request_id"].encode()))
            headers.append((b"openai-processing-ms", b"%d" % spent_ms))
            if expects_anthropic(self._scope):
                headers.append((b"request-id", self._scope["headrace.request_id"].encode()))
            headers += self._cors.headers(self._scope["headers"])
            if self.status in _LAST_WORDS:
                headers.append((b"connection", b"close"))
            self._streams = any(name == b"content-type" and value.startswith(_STREAMS) for name, value in headers)
            message = {**message, "headers": headers}
        elif self._streams and self.first_token_s is None and tells_tokens(message.get("body", b"")):
            self.first_token_s = time.perf_counter()
        await self._send(message)

    async def send_empty(self, status: int, headers: RawHeaders) -> None:
        """An answer without a body."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def abort(self) -> None:
        """Ends what was begun as an error, not as if it were complete."""
        raise ConnectionAbortedError


_STREAMS: Final = (b"text/event-stream", b"application/x-ndjson")
# Events that a stream may begin with, and be kept alive by, before there is any token.
_BEFORE_TOKENS: Final = re.compile(
    rb"event: (?:message_start|ping|queue|response\.(?:created|queued|in_progress))\ndata: "
)


def tells_tokens(piece: bytes) -> bool:
    """Whether a stream's piece has an event, or is a line of JSON, that tells of the answer itself."""
    return piece.startswith(b"{") or piece.count(b"data: ") > len(_BEFORE_TOKENS.findall(piece))


# After these the rest of the request is not read, so the connection can't carry another one.
_LAST_WORDS: Final = frozenset({408, 413, 415})


def new_request_id() -> str:
    """A fresh id; never the client's own, which could be anything."""
    return "req_" + secrets.token_hex(16)


def route_of(scope: Scope) -> str:
    """The route's template, so that ids and typing errors make no new series in the metrics."""
    return getattr(scope.get("route"), "path", "unmatched")


def check_head(scope: Scope) -> Failure | None:
    """What is wrong with the request's head, if anything."""
    hosts = 0
    size_bytes = len(scope["raw_path"]) + len(scope["query_string"])
    for name, value in scope["headers"]:
        size_bytes += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                hosts += 1
    if size_bytes > MAX_HEAD_BYTES:
        return _headers_too_large()
    if hosts != 1 and not (hosts == 0 and scope["http_version"] == "1.0"):
        return Failure("invalid_host", "The Host header is not valid.")
    return None


def _headers_too_large() -> Failure:
    return Failure("headers_too_large", f"The request's headers are too large: at most {MAX_HEAD_BYTES} bytes.")


# --- below ASGI -------------------------------------------------------------------------------------------------------


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on a request's head: how large it may grow, and how long it may take.

    uvicorn itself waits for ever for the end of the headers, and keeps what has come of them.
    """

    head_timeout_s: ClassVar[float] = HEAD_TIMEOUT_S
    _head_timer: TimerHandle | None = None
    _head_bytes: int = 0
    _in_body: bool = False
    _in_head: bool = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; a head that grows too large ends the connection."""
        was_in_body = self._in_body
        super().data_received(data)
        if self._in_head and not was_in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_headers_too_large())

    def on_message_begin(self) -> None:
        """A head begins: it has its time, also on a connection that was used before."""
        self._in_head = True
        self._head_bytes = 0
        if self._head_timer is None:
            self._arm()
        super().on_message_begin()
        self.scope[HANG_UP] = self.hang_up  # pyright: ignore[reportGeneralTypeIssues]

    def on_headers_complete(self) -> None:
        """The head is whole: from here on the route decides how long things may take."""
        self._in_head = False
        self._in_body = True
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes can only begin another head."""
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timer."""
        self._disarm()
        super().connection_lost(exc)

    def hang_up(self, *, at_once: bool = False) -> None:
        """Ends the connection in mid-answer, so that the caller knows there is more. `at_once`: unsent bytes are lost.

        Counted as the client's leaving: uvicorn would call it a fault of the application.
        """
        self.cycle.disconnected = True
        if at_once:
            self.transport.abort()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP as every error is answered."""
        self._refuse(Failure("invalid_request", msg))

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._on_timeout)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_timeout(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(Failure("request_timeout", "The request's headers did not arrive in time."))
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return bool(self.pipeline) or bool(cycle and cycle.response_started and not cycle.response_complete)

    def _refuse(self, failure: Failure) -> None:
        if self.transport.is_closing():
            return
        if self._is_answering():
            # These bytes would land in the middle of another request's answer.
            self.transport.close()
            return
        response = answer(failure, "")
        response.headers["x-request-id"] = new_request_id()
        response.headers["connection"] = "close"
        head = b"".join([b"%b: %b\r\n" % header for header in response.raw_headers])
        body = bytes(response.body)
        self.transport.write(b"HTTP/1.1 %d \r\n%b\r\n%b" % (response.status_code, head, body))
        self.transport.close()
