"""The gRPC server of a gateway, in its process and loop: port, limits, health, reflection, start and drain."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
import structlog

from common.errors import HeadraceError
from gateway.http import MAX_HEAD_BYTES
from gateway.parts import Parts
from gateway.rpc.arrival import Arrival
from gateway.rpc.connections import Connections
from gateway.rpc.headrace.v1 import inference_pb2_grpc as rpc
from gateway.rpc.service import NAME, InferenceService
from gateway.rpc.standard import STANDARD, add_health, add_reflection

log = structlog.get_logger(__name__)

LOOK_S: Final = 1.0
# For statuses and the news of NOT_SERVING to go out, before what is still open is cut.
LAST_WORDS_S: Final = 0.2
SERVICES: Final = (NAME, *STANDARD)
KEEPALIVE_MS: Final = 20_000
SHORTEST_PING_MS: Final = 10_000
IDENTITY_ONLY: Final = 1


class RpcServer:
    """Listens once `start` was called; `drain` begins its end, `close` waits for it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._connections = Connections()
        self._service = InferenceService(parts, self._connections)
        arrival = Arrival(parts.settings.request_timeout_s, {NAME: self._service.refuse})
        self._server = grpc.aio.server(options=_options(parts.settings.max_body_bytes), interceptors=[arrival])
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = True
        rpc.add_InferenceServiceServicer_to_server(self._service, self._server)  # pyright: ignore[reportUnknownMemberType]
        self._health = add_health(self._server, SERVICES)
        add_reflection(self._server, SERVICES)

    def bind(self, host: str, port: int) -> None:
        """Takes the port. Raises OSError where it is taken."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}") from error
        if bound == 0:
            raise OSError(f"cannot listen on {host}:{port}")
        self._connections.port = bound

    async def start(self) -> None:
        """Begins to serve, and to tell by health whether the gateway is ready."""
        await self._set(ready=await self._is_ready())
        await self._server.start()
        self._tasks = [asyncio.create_task(self._watch(), name="rpc health")]

    def drain(self, grace_s: float) -> None:
        """Says NOT_SERVING, takes nothing new, and lets calls end by themselves for so long."""
        self._tasks.append(asyncio.create_task(self._leave(grace_s), name="rpc drain"))

    async def close(self) -> None:
        """Returns when the last call has ended."""
        watch, *leaving = self._tasks
        watch.cancel()
        await asyncio.gather(watch, *leaving, return_exceptions=True)
        await self._server.stop(0)

    async def _leave(self, grace_s: float) -> None:
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace_s), name="rpc stop")
        idle = asyncio.create_task(self._service.idle(), name="rpc idle")
        await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # Who watches health would stay until the grace is over.
        await asyncio.sleep(LAST_WORDS_S)
        await self._server.stop(None)
        await stopping

    async def _watch(self) -> None:
        while True:
            await self._parts.clock.sleep(LOOK_S)
            ready = await self._is_ready()
            if ready != self._ready:
                await self._set(ready=ready)

    async def _is_ready(self) -> bool:
        try:
            await self._parts.store.command("PING")
        except HeadraceError:
            return False
        return True

    async def _set(self, *, ready: bool) -> None:
        self._ready = ready
        await self._health.tell(ready=ready)


def _options(most_bytes: int) -> list[tuple[str, int]]:
    """The limits of HTTP, in gRPC's words."""
    return [
        # Else two gateways would share a port, and each would get some of the other's calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_HEAD_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_HEAD_BYTES),
        # A few kilobytes can unpack to gigabytes: compressed messages are refused, as over HTTP.
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
