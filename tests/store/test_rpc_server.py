"""A gateway's gRPC server by itself: its port, its health without a store, how it leaves, calls with no message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from gateway.main import open_rpc, serve
from gateway.rpc.server import RpcServer
from tests.support.fleet import KEY
from tests.support.grpc_client import refusal_of
from tests.support.inside import opened, settings
from tests.support.redis_server import RedisServer, free_port

pytestmark = pytest.mark.either_server

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 0.2
METADATA = (("authorization", f"Bearer {KEY}"),)
WATCH = "/headrace.v1.InferenceService/WatchJob"


@asynccontextmanager
async def serving(server: RedisServer, place: Path, **settings: float) -> AsyncGenerator[tuple[RpcServer, Any]]:
    """The server, begun on a port of its own, and a channel to it; nothing is left of it afterwards."""
    port = free_port()
    async with opened(server, place, api_keys=KEY, **settings) as parts:
        rpc = RpcServer(parts)
        rpc.bind("127.0.0.1", port)
        await rpc.start()
        try:
            options = [("grpc.enable_http_proxy", 0)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                yield rpc, channel
        finally:
            await rpc.close()


def watch_health(channel: Any) -> Any:
    """The call that tells of the server's health, and of each change of it."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest())


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """How a call ended that was not answered."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        assert await call.read() is None
    return error.value


# --- health -----------------------------------------------------------------------------------------------------------


async def test_health_is_not_serving_while_the_store_is_away(own_server: RedisServer, tmp_path: Path) -> None:
    async with serving(own_server, tmp_path) as (_, channel):
        watching = watch_health(channel)
        assert (await watching.read()).status == SERVING
        own_server.kill()
        assert (await watching.read()).status == NOT_SERVING
        own_server.start()
        assert (await watching.read()).status == SERVING


async def test_who_only_watches_health_holds_up_no_server_that_drains(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with serving(redis_server, tmp_path) as (rpc, channel):
        watching = watch_health(channel)
        assert (await watching.read()).status == SERVING
        rpc.drain(600)
        assert (await watching.read()).status == NOT_SERVING
        async with asyncio.timeout(8):
            await rpc.close()


# --- calls without their message --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["headrace.v1.InferenceService/ChatCompletion", "grpc.health.v1.Health/Watch"])
@pytest.mark.parametrize(
    ("ends", "code", "reason"),
    [
        (False, grpc.StatusCode.DEADLINE_EXCEEDED, "request_timeout"),
        (True, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
    ],
)
async def test_a_call_that_never_sends_its_message_is_ended(
    redis_server: RedisServer, tmp_path: Path, method: str, ends: bool, code: grpc.StatusCode, reason: str
) -> None:
    async with serving(redis_server, tmp_path, request_timeout_s=PATIENCE_S) as (_, channel):
        call = channel.stream_stream(f"/{method}")(metadata=METADATA)
        if ends:
            await call.done_writing()
        found = refusal_of(await refused(call))
        assert (found.code, found.detail(ErrorInfo).reason) == (code, reason)


NO_PROTOBUF, NO_UTF8 = b"\xff\xff\xff", b"\x0a\x02\xff\xfe"


@pytest.mark.parametrize("sent", [None, NO_PROTOBUF, NO_UTF8])
async def test_a_message_that_is_none_is_the_callers_fault_and_counted_as_any(
    redis_server: RedisServer, tmp_path: Path, sent: bytes | None
) -> None:
    async with serving(redis_server, tmp_path) as (rpc, channel):
        call = channel.stream_stream(WATCH)(metadata=METADATA)
        if sent is not None:
            await call.write(sent)
        await call.done_writing()
        found = refusal_of(await refused(call))
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
        assert found.trailers["x-request-id"].startswith("req_")
        told = {"route": WATCH, "status": "400"}
        assert rpc._parts.metrics.registry.get_sample_value("headrace_requests_total", told) == 1


async def test_a_stranger_learns_nothing_of_the_message(redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_server, tmp_path) as (_, channel):
        found = refusal_of(await refused(channel.unary_stream(WATCH)(NO_PROTOBUF)))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")


# --- the port ---------------------------------------------------------------------------------------------------------


async def test_only_a_port_that_was_asked_for_must_be_had(redis_server: RedisServer, tmp_path: Path) -> None:
    with socket() as taken, capture_logs() as logs:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with opened(redis_server, tmp_path, grpc_port=port) as parts:
            with pytest.raises(OSError, match=str(port)):
                open_rpc(parts)
            by_default = parts.settings.model_copy(update={"grpc_port": port})
            by_default.model_fields_set.discard("grpc_port")
            assert open_rpc(replace(parts, settings=by_default)) is None
        assert await serve(settings(redis_server, tmp_path, grpc_port=port)) == 1
    assert [line["event"] for line in logs] == ["gateway.grpc_port_taken", "gateway.cannot_listen"]


async def test_without_a_port_there_is_no_grpc(redis_server: RedisServer, tmp_path: Path) -> None:
    async with opened(redis_server, tmp_path, grpc_port=0) as parts:
        with capture_logs() as logs:
            assert open_rpc(parts) is None
        assert logs == []
