"""Callers of gRPC who leave: a cancelled call ends its job at once, a lost connection leaves it its grace.

No scheduler runs here, so nothing else ends a job whose readers have gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from common import keys
from common.contracts import State
from gateway.parts import Parts
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.headrace.v1 import inference_pb2_grpc as stubs
from gateway.rpc.server import RpcServer
from tests.support.fleet import KEY
from tests.support.grpc_client import chat, refusal_of
from tests.support.inside import opened
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer, free_port
from tests.support.runner import WAIT_LIMIT_S, until

pytestmark = pytest.mark.either_server

POOL = "default"
CHAT = pb.ChatCompletionRequest(chat=chat(words="x"))
STREAM = pb.ChatCompletionStreamRequest(chat=chat(words="x"))
KEPT = pb.JobOptions(on_disconnect=pb.ON_DISCONNECT_CONTINUE)
METADATA = (("authorization", f"Bearer {KEY}"),)


@dataclass
class Stage:
    """A gateway's gRPC server with nobody who works, and a proxy in front of it."""

    server: RedisServer
    parts: Parts
    rpc: RpcServer
    proxy: Proxy
    stub: Any

    def ask(self, method: str, request: Any, *metadata: tuple[str, str], limit_s: float | None = None) -> Any:
        """The call, begun."""
        return getattr(self.stub, method)(request, metadata=(*METADATA, *metadata), timeout=limit_s)

    async def job(self) -> str:
        """The one job's id, once it is in the queue."""

        async def there() -> str:
            names = self.server.command("KEYS", keys.job(POOL, "*"))
            return names[0].decode().rpartition(":")[2] if names else ""

        return await until(there)

    async def state(self, job_id: str) -> State:
        """How the job stands."""
        record = await self.parts.queue.get(job_id)
        assert record is not None
        return record.state

    async def all_left(self, job_id: str) -> None:
        """Returns when this gateway has done with every call, and the store knows that nobody reads here."""
        await self.rpc._service.idle()

        async def left() -> bool:
            return self.server.command("HGET", keys.job(POOL, job_id), "inbox") == b""

        await until(left)

    def due_in_ms(self, job_id: str) -> float | None:
        """How long until the job is cancelled for want of readers; None where it is not to be."""
        due_ms = self.server.command("ZSCORE", keys.abandoned(POOL), job_id)
        now_s, now_us = map(int, self.server.command("TIME"))
        return None if due_ms is None else float(due_ms) - now_s * 1000 - now_us / 1000


@asynccontextmanager
async def staged(server: RedisServer, place: Path) -> AsyncGenerator[Stage]:
    port = free_port()
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(opened(server, place, api_keys=KEY, disconnect_grace_s=60))
        rpc = RpcServer(parts)
        rpc.bind("127.0.0.1", port)
        await rpc.start()
        stack.push_async_callback(rpc.close)
        proxy = await stack.enter_async_context(Proxy(port))
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}", options=options)
        await stack.enter_async_context(channel)
        yield Stage(server, parts, rpc, proxy, stubs.InferenceServiceStub(channel))


@pytest.mark.parametrize("method", ["ChatCompletion", "ChatCompletionStream", "Infer", "InferStream"])
async def test_a_cancelled_call_ends_its_job_at_once(redis_server: RedisServer, tmp_path: Path, method: str) -> None:
    async with staged(redis_server, tmp_path) as stage:
        work = {"chat": CHAT.chat} if method.startswith("Chat") else {"prompt": pb.Prompt(text="x")}
        call = stage.ask(method, getattr(pb, f"{method}Request")(**work))
        job_id = await stage.job()
        call.cancel()

        async def cancelled() -> bool:
            return await stage.state(job_id) is State.CANCELLED

        await until(cancelled)


async def test_a_cancelled_call_leaves_its_idempotency_key_free(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        key = ("idempotency-key", "asked-twice")
        call = stage.ask("ChatCompletionStream", STREAM, key)
        first = dict(await call.initial_metadata())["x-headrace-job-id"]
        call.cancel()

        async def cancelled() -> bool:
            return await stage.state(first) is State.CANCELLED

        await until(cancelled)
        again = dict(await stage.ask("ChatCompletionStream", STREAM, key).initial_metadata())
        assert again["x-headrace-job-id"] != first
        assert "x-headrace-replayed" not in again


@pytest.mark.parametrize("method", ["ChatCompletion", "ChatCompletionStream"])
async def test_a_lost_connection_leaves_the_job_its_grace(
    redis_server: RedisServer, tmp_path: Path, method: str
) -> None:
    async with staged(redis_server, tmp_path) as stage:
        _call = stage.ask(method, getattr(pb, f"{method}Request")(chat=CHAT.chat))
        job_id = await stage.job()
        stage.proxy.sever()
        await stage.all_left(job_id)
        assert await stage.state(job_id) is State.QUEUED
        assert (stage.due_in_ms(job_id) or 0) > 30_000


async def test_a_job_that_shall_go_on_outlives_a_cancelled_call(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        call = stage.ask("ChatCompletion", pb.ChatCompletionRequest(chat=CHAT.chat, options=KEPT))
        job_id = await stage.job()
        call.cancel()
        await stage.all_left(job_id)
        assert (await stage.state(job_id), stage.due_in_ms(job_id)) == (State.QUEUED, None)


async def test_who_stops_to_watch_a_job_cancels_nothing_at_once(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        options = pb.JobOptions(on_disconnect=pb.ON_DISCONNECT_CANCEL)
        taken = await stage.ask("SubmitJob", pb.SubmitJobRequest(chat=CHAT.chat, options=options))
        watching = stage.ask("WatchJob", pb.WatchJobRequest(job_id=taken.job_id))
        await watching.initial_metadata()
        await _read_here(stage)
        watching.cancel()
        await stage.all_left(taken.job_id)
        assert await stage.state(taken.job_id) is State.QUEUED
        assert (stage.due_in_ms(taken.job_id) or 0) > 30_000


async def test_a_job_goes_on_for_another_reader_here(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        key = ("idempotency-key", "read-by-two")
        first, second = (stage.ask("ChatCompletionStream", STREAM, key) for _ in range(2))
        job_id = dict(await first.initial_metadata())["x-headrace-job-id"]
        assert dict(await second.initial_metadata())["x-headrace-job-id"] == job_id
        await _read_here(stage, by=2)
        first.cancel()
        await _under_way(stage, 1)
        assert (await stage.state(job_id), stage.due_in_ms(job_id)) == (State.QUEUED, None)
        second.cancel()
        await stage.all_left(job_id)
        assert await stage.state(job_id) is State.CANCELLED


async def test_a_job_goes_on_for_a_reader_at_another_gateway(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        call = stage.ask("ChatCompletion", CHAT)
        job_id = await stage.job()
        assert await stage.parts.streams.subscribe(job_id, "elsewhere")
        call.cancel()
        await stage.rpc._service.idle()

        async def left_here() -> bool:
            return stage.server.command("HGET", keys.job(POOL, job_id), "inbox") == b"elsewhere"

        await until(left_here)
        assert (await stage.state(job_id), stage.due_in_ms(job_id)) == (State.QUEUED, None)


async def test_calls_that_a_leaving_gateway_cuts_keep_their_jobs(redis_server: RedisServer, tmp_path: Path) -> None:
    async with staged(redis_server, tmp_path) as stage:
        call = stage.ask("ChatCompletion", CHAT)
        job_id = await stage.job()
        stage.rpc.drain(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        await stage.all_left(job_id)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await stage.state(job_id) is State.QUEUED


async def test_who_waits_at_a_gateway_that_goes_is_told_so_and_of_which_job(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with staged(redis_server, tmp_path) as stage:
        call = stage.ask("ChatCompletion", CHAT)
        job_id = await stage.job()
        await _read_here(stage)
        stage.parts.hub.cut()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        told = refusal_of(error.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "server_overloaded")
        assert told.trailers["x-headrace-job-id"] == job_id
        assert await stage.state(job_id) is State.QUEUED


async def _read_here(stage: Stage, by: int = 1) -> None:
    """Returns when so many read at this gateway."""
    async with asyncio.timeout(WAIT_LIMIT_S):
        while stage.parts.hub.readers != by:  # noqa: ASYNC110 (what is waited for has no signal)
            await asyncio.sleep(0.005)


async def _under_way(stage: Stage, count: int) -> None:
    """Returns when no more than so many calls are under way."""
    async with asyncio.timeout(WAIT_LIMIT_S):
        while stage.rpc._service._frame._under_way != count:  # noqa: ASYNC110 (what is waited for has no signal)
            await asyncio.sleep(0.005)
