"""What holds for every request and every answer, over real sockets against the real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

import httpx
import orjson
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from common import log
from common.config import Settings
from common.metrics import GatewayMetrics
from gateway import errors
from gateway.docs import pages
from gateway.http import MAX_HEAD_BYTES, BoundedProtocol, check_head, install, read_body, request_id, tells_tokens
from gateway.limits import ANTHROPIC_LIMITS, OPENAI_LIMITS
from tests.support.runner import until

LIMIT_BYTES = 1_000
PAGE = "https://page.example"


class ImpatientProtocol(BoundedProtocol):
    """As in production, but for how long it waits."""

    head_timeout_s = 0.2


@dataclass
class Answer:
    """A whole answer, as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.headers if other == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    @property
    def error(self) -> dict[str, str | None]:
        return orjson.loads(self.body)["error"]


@dataclass
class Site:
    """A server under test."""

    port: int
    metrics: GatewayMetrics

    async def send(self, *pieces: bytes, host: str = "127.0.0.1") -> bytes:
        """What comes back until the server closes."""
        reader, writer = await asyncio.open_connection(host, self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    async def ask(self, method: str, path: str, *headers: str, body: bytes = b"", host: str = "a") -> Answer:
        """The answer to one request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return parsed(await self.send("\r\n".join([*lines, "", ""]).encode() + body))

    async def post(self, body: bytes, *headers: str) -> Answer:
        """The answer to a JSON body."""
        return await self.ask("POST", "/v1/echo", "Content-Type: application/json", *headers, body=body)


def parsed(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Answer(int(first.split()[1]), [(name.lower(), value.strip()) for name, _, value in pairs], body)


def application(metrics: GatewayMetrics, origins: str = "", timeout_s: float = 5) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/echo")
    async def echo(request: Request) -> Response:
        body = await read_body(request, limit_bytes=LIMIT_BYTES, timeout_s=timeout_s)
        return Response(body, headers={"x-seen": request_id(request)})

    @app.get("/v1/items/{item}")
    async def item(item: int) -> dict[str, int]:
        return {"item": item}

    @app.get("/broken")
    async def broken() -> Response:
        raise KeyError("a secret of the caller")

    @app.get("/v1/stream")
    async def stream() -> Response:
        async def pieces() -> AsyncGenerator[bytes]:
            yield b": waiting\n\n"
            yield b"data: x\n\n"
            raise ValueError("half way")

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/v1/slow")
    async def slow() -> Response:
        async def pieces() -> AsyncGenerator[bytes]:
            yield b"begun"
            await asyncio.Event().wait()

        return StreamingResponse(pieces())

    pages.install(app, ["a-model"])
    errors.install(app, metrics)
    install(app, Settings(cors_origins=origins), metrics)  # pyright: ignore[reportArgumentType]
    return app


@asynccontextmanager
async def serving(
    *, origins: str = "", timeout_s: float = 5, http: type[BoundedProtocol] = BoundedProtocol
) -> AsyncGenerator[Site]:
    log.configure("error", process="test", file=BytesIO())
    metrics = GatewayMetrics()
    config = uvicorn.Config(
        application(metrics, origins, timeout_s),
        host="127.0.0.1",
        port=0,
        loop="none",
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
    )
    # As `serve` does, but for its pauses of a tenth of a second.
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()

    async def left() -> bool:
        return not server.server_state.connections

    try:
        yield Site(server.servers[0].sockets[0].getsockname()[1], metrics)
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await until(left)


# --- every answer -----------------------------------------------------------------------------------------------------


async def test_every_answer_has_a_fresh_request_id_that_is_not_the_clients() -> None:
    async with serving() as site:
        answers = [
            await site.post(b"{}", "x-request-id: mine"),
            await site.post(b"{}"),
            await site.ask("GET", "/nowhere"),
            await site.ask("DELETE", "/v1/echo"),
            await site.ask("GET", "/broken"),
            await site.ask("GET", "/", host="a/b"),
            parsed(await site.send(b"no http at all\r\n\r\n")),
            parsed(await site.send(b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 20_000)),
        ]
        assert [answer.status for answer in answers] == [200, 200, 404, 405, 500, 400, 400, 431]
        ids = [answer["x-request-id"] for answer in answers]
        assert all(re.fullmatch("req_[0-9a-f]{32}", one) for one in ids)
        assert len(set(ids)) == len(ids)
        assert answers[0]["x-seen"] == ids[0]
        assert all(answer["openai-processing-ms"].isdigit() for answer in answers[:6])


async def test_unknown_paths_methods_and_values_are_answered_in_the_callers_dialect() -> None:
    async with serving() as site:
        unknown = await site.ask("GET", "/v1/nowhere")
        assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (404, "unknown_url", None)
        method = await site.ask("DELETE", "/v1/echo")
        assert (method.status, method.error["code"], method["allow"]) == (405, "method_not_allowed", "POST")
        value = await site.ask("GET", "/v1/items/x")
        assert (value.status, value.error["param"], value.error["type"]) == (400, "item", "invalid_request_error")
        plain = await site.ask("GET", "/nowhere")
        assert (plain.status, plain["content-type"]) == (404, "application/problem+json")
        assert orjson.loads(plain.body)["instance"] == "/nowhere"


async def test_what_nobody_expected_is_a_500_that_tells_nothing() -> None:
    async with serving() as site:
        answer = await site.ask("GET", "/broken")
        assert (answer.status, b"secret" in answer.body, b"KeyError" in answer.body) == (500, False, False)
        assert (await site.ask("GET", "/v1/items/1")).status == 200


async def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole() -> None:
    async with serving() as site:
        raw = await site.send(b"GET /v1/stream HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"data: x" in raw
        assert not raw.endswith(b"0\r\n\r\n")


async def test_requests_are_counted_by_route_and_never_by_path() -> None:
    async with serving() as site:
        for path in ("/v1/items/1", "/v1/items/2", "/v1/items/x", "/a", "/b", "/v1/stream"):
            await site.ask("GET", path)
        count = site.metrics.registry.get_sample_value
        name = "headrace_requests_total"
        assert count(name, {"route": "/v1/items/{item}", "status": "200"}) == 2
        assert count(name, {"route": "/v1/items/{item}", "status": "400"}) == 1
        assert count(name, {"route": "unmatched", "status": "404"}) == 2
        assert count("headrace_request_seconds_count", {"route": "/v1/items/{item}"}) == 3
        assert count("headrace_ttft_seconds_count") == 1


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_body_comes_through_whole_however_it_is_cut() -> None:
    body = b'{"a":"' + b"x" * 500 + b'"}'
    start = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head = start + b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    async with serving() as site:
        assert parsed(await site.send(head, body[:7], body[7:300], body[300:])).body == body
        assert parsed(await site.send(chunked, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")).body == b"abcde"


async def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_refused() -> None:
    async with serving() as site:
        assert (await site.post(b"x" * LIMIT_BYTES)).status == 200
        answer = await site.post(b"x" * (LIMIT_BYTES + 1))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert str(LIMIT_BYTES) in str(answer.error["message"])


async def test_a_body_too_large_is_refused_without_reading_on() -> None:
    declared = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n"
    chunked = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n" + b"x" * 0x500
    async with serving() as site:
        for raw in (declared, chunked):
            # The rest never comes: only a server that doesn't wait for it answers and closes.
            answer = parsed(await site.send(raw))
            assert (answer.status, answer["connection"]) == (413, "close")


async def test_a_body_that_does_not_arrive_in_time_is_a_408() -> None:
    async with serving(timeout_s=0.1) as site:
        raw = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"
        answer = parsed(await site.send(raw))
        assert (answer.status, answer.error["code"], answer["connection"]) == (408, "request_timeout", "close")


async def test_a_body_that_is_not_plain_json_is_a_415() -> None:
    async with serving() as site:
        for headers in (
            ["Content-Type: application/json", "Content-Encoding: gzip"],
            ["Content-Encoding: br"],
            ["Content-Type: text/plain"],
            ["Content-Type: application/x-www-form-urlencoded"],
            ["Content-Type: multipart/form-data; boundary=x"],
            [f"Origin: {PAGE}"],
        ):
            answer = await site.ask("POST", "/v1/echo", *headers, body=b"{}")
            assert (headers, answer.status, answer.error["code"]) == (headers, 415, "unsupported_media_type")


async def test_a_program_may_leave_the_type_of_its_body_out() -> None:
    async with serving() as site:
        assert (await site.ask("POST", "/v1/echo", "Content-Encoding: identity", body=b"{}")).status == 200


# --- heads ------------------------------------------------------------------------------------------------------------


async def test_a_host_that_could_mislead_is_refused_and_the_connection_ended() -> None:
    async with serving() as site:
        for host in ("a/b", "a#b", "a?b", "u@a", "a b", "", "a:b", "[::1", "é", "a,b", "a:123456"):
            answer = parsed(await site.send(f"GET /v1/items/1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))
            assert (host, answer.status, answer["connection"]) == (host, 400, "close")


async def test_ordinary_hosts_are_served() -> None:
    async with serving() as site:
        for host in ("localhost:8080", "[::1]:8080", "127.0.0.1", "api.example.com", "my_service:80", "[::1]"):
            assert (host, (await site.ask("GET", "/v1/items/1", host=host)).status) == (host, 200)


MISLEADING = (
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\nX-Folded: b\r\n c\r\n\r\n",
    b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /v1/items/1 HTTP/1.1\r\n\r\n",
    b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}",
)


async def test_requests_whose_end_two_readers_could_see_differently_are_refused() -> None:
    async with serving() as site:
        for raw in MISLEADING:
            answer = parsed(await site.send(raw))
            assert (raw, answer.status, answer["connection"]) == (raw, 400, "close")


async def test_headers_beyond_the_limit_are_a_431() -> None:
    async with serving() as site:
        short = await site.ask("GET", "/v1/items/1", f"x: {'y' * 15_000}")
        assert short.status == 200
        for raw in (
            b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
            b"GET /v1/items/1?" + b"y" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 6_000,
        ):
            answer = parsed(await site.send(raw))
            assert (answer.status, answer["connection"]) == (431, "close")


async def test_a_head_that_does_not_end_in_time_is_a_408_also_on_a_connection_used_before() -> None:
    async with serving(http=ImpatientProtocol) as site:
        partial = b"GET /v1/items/1 HTTP/1.1\r\nHost:"
        assert parsed(await site.send(partial)).status == 408
        raw = await site.send(b"GET /v1/items/1 HTTP/1.1\r\nHost: a\r\n\r\n" + partial)
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in raw
        # One that says nothing at all is let go without a word.
        assert await site.send() == b""


async def test_an_answer_under_way_outlives_the_limit_for_heads_and_is_not_mixed_with_a_refusal() -> None:
    async with serving(http=ImpatientProtocol) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(b"GET /v1/slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"begun" in await asyncio.wait_for(reader.readuntil(b"begun"), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"HTTP/1.1"), 2 * ImpatientProtocol.head_timeout_s)
        writer.write(b"GET /v1/items/1 HTTP/1.1\r\nHost:")
        rest = await asyncio.wait_for(reader.read(), 5)
        assert b"HTTP/1.1" not in rest
        writer.close()


async def test_a_slow_body_has_its_own_limit_not_that_for_heads() -> None:
    body = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{"
    async with serving(http=ImpatientProtocol) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(body)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 2 * ImpatientProtocol.head_timeout_s)
        writer.write(b"}")
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"{}")
        writer.close()


@settings(max_examples=200, deadline=None)
@given(host=st.binary(max_size=20))
def test_a_host_that_passes_can_only_be_a_name_or_an_address_and_a_port(host: bytes) -> None:
    scope = {"raw_path": b"/", "query_string": b"", "http_version": "1.1", "headers": [(b"host", host)]}
    if check_head(scope) is None:
        assert re.fullmatch(rb"[A-Za-z0-9._\-:\[\]]+", host)


# --- other sites' pages -----------------------------------------------------------------------------------------------


async def test_no_page_of_another_site_may_call_by_default() -> None:
    async with serving() as site:
        preflight = await site.ask("OPTIONS", "/v1/echo", f"Origin: {PAGE}", "Access-Control-Request-Method: POST")
        assert preflight.status == 405
        answer = await site.post(b"{}", f"Origin: {PAGE}")
        for one in (preflight, answer):
            assert not [name for name, _ in one.headers if name.startswith("access-control")]


async def test_a_page_that_is_allowed_may_send_what_the_sdks_send_and_read_what_they_read() -> None:
    wanted = "authorization, content-type, x-stainless-os, x-headrace-priority, openai-beta, idempotency-key, x-evil"
    async with serving(origins=f"{PAGE}, https://other.example") as site:
        preflight = await site.ask(
            "OPTIONS",
            "/v1/echo",
            f"Origin: {PAGE}",
            "Access-Control-Request-Method: POST",
            f"Access-Control-Request-Headers: {wanted}",
        )
        assert (preflight.status, preflight["access-control-allow-origin"]) == (204, PAGE)
        assert preflight["access-control-allow-headers"] == wanted.removesuffix(", x-evil")
        answer = await site.post(b"{}", f"Origin: {PAGE}")
        assert answer["access-control-allow-origin"] == PAGE
        exposed = set(answer["access-control-expose-headers"].split(", "))
        assert {"x-request-id", "retry-after", "x-headrace-job-id"} <= exposed
        assert {*OPENAI_LIMITS, *ANTHROPIC_LIMITS} <= exposed
        refused = await site.ask("GET", "/broken", f"Origin: {PAGE}")
        assert (refused.status, refused["access-control-allow-origin"]) == (500, PAGE)
        stranger = await site.post(b"{}", "Origin: https://evil.example")
        assert (stranger.all("access-control-allow-origin"), stranger["vary"]) == ([], "Origin")


async def test_any_page_may_call_where_that_is_set() -> None:
    async with serving(origins="*") as site:
        assert (await site.post(b"{}", f"Origin: {PAGE}"))["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("piece", "tells"),
    [
        (b"", False),
        (b": keep-alive\n", False),
        (b"retry: 1000\n: queue position=1\n", False),
        (b'event: ping\ndata: {"type":"ping"}\n\n', False),
        (b"event: message_start\ndata: {}\n\n: queue position=1\nevent: ping\ndata: {}\n\n", False),
        (b"event: response.created\ndata: {}\n\nevent: response.in_progress\ndata: {}\n\n", False),
        (b"event: message_start\ndata: {}\n\nevent: content_block_start\ndata: {}\n\n", True),
        (b'id: 1-1\ndata: {"choices":[]}\n\n', True),
        (b'{"message":{"content":"a"},"done":false}\n', True),
    ],
)
def test_a_stream_has_its_first_token_when_it_tells_of_the_answer(piece: bytes, *, tells: bool) -> None:
    assert tells_tokens(piece) == tells


# --- the description --------------------------------------------------------------------------------------------------


async def test_the_api_is_described_and_its_page_needs_no_other_site() -> None:
    async with serving() as site:
        document = orjson.loads((await site.ask("GET", "/docs/api")).body)
        assert document["openapi"].startswith("3.")
        assert {"ChatBody", "JobBody", "PromptBody", "Error", "Problem"} <= document["components"]["schemas"].keys()
        page = await site.ask("GET", "/docs/swagger")
        addresses = re.findall(r"""(?:src|href|url)["']?\s*[=:]\s*["']([^"']+)""", page.body.decode())
        assert "/docs/api" in addresses
        assert all(address.startswith("/docs/") for address in addresses)
        for address in addresses:
            assert (await site.ask("GET", address)).status == 200
        assert (await site.ask("GET", "/docs/swagger/../../pyproject.toml")).status == 404


async def test_a_method_that_is_not_allowed_is_told_all_that_are() -> None:
    routes, more, app = APIRouter(), APIRouter(), FastAPI()

    async def served() -> dict[str, str]:
        return {}

    routes.add_api_route("/v1/items", served, methods=["POST"])
    routes.add_api_route("/v1/items/{item}", served, methods=["GET"])
    more.add_api_route("/v1/items", served, methods=["GET"])
    more.add_api_route("/v1/items/count", served, methods=["POST"])
    for router in (routes, more):
        app.include_router(router)
    errors.install(app, GatewayMetrics(), (routes, more))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        told = {path: (await client.put(path)).headers["allow"] for path in ("/v1/items", "/v1/items/5")}
        assert told == {"/v1/items": "GET, HEAD, POST", "/v1/items/5": "GET, HEAD"}
        # Of addresses that fit two templates the one without blanks counts.
        assert (await client.put("/v1/items/count")).headers["allow"] == "POST"
