"""Composition root of a gateway: opens Redis, mounts the routes, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from common import memory
from common.clock import SystemClock
from common.config import Settings
from common.health import HealthStore
from common.ledger.batch_lines import LinesLedger
from common.ledger.batches import BatchesLedger
from common.ledger.database import FILE_NAME, Database
from common.ledger.files import FilesLedger
from common.ledger.journal import JournalLedger
from common.log import configure
from common.metrics import GatewayMetrics
from common.outbox import Outbox
from common.queue import Queue, Retention
from common.store import Store
from common.stream import StreamStore
from common.tokens import TokenCounter
from gateway import errors
from gateway.admission import Admission
from gateway.auth import Auth
from gateway.batches.desk import Desk
from gateway.batches.runner import Runner
from gateway.docs import pages
from gateway.estimates import Estimates
from gateway.http import BoundedProtocol
from gateway.http import install as install_http
from gateway.hub import Hub
from gateway.journal import Journal
from gateway.listing import Listing
from gateway.models import Models
from gateway.parts import Parts
from gateway.pressure import Pressure
from gateway.prices import Prices
from gateway.readers import Limits
from gateway.routes import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    files,
    jobs,
    messages,
    ollama,
    responses,
    status,
)
from gateway.routes.plain import answer_heads
from gateway.rpc.server import RpcServer
from gateway.withdrawal import Withdrawals

log = structlog.get_logger(__name__)

SHORTEST_INBOX_LIFE_S: Final = 5.0
LEAVE_STREAMS_S: Final = 2.0
METRICS_PORT: Final = 9091
SHORTEST_BATCH_LEASE_S: Final = 3.0


def build(parts: Parts, rpc: RpcServer | None = None) -> FastAPI:
    """The application over opened parts, and gRPC beside it, which begins and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await parts.hub.start()
        parts.pressure.start()
        parts.withdrawals.start()
        parts.estimates.start()
        if _may_have_batches(parts.settings):
            parts.runner.start()
        if rpc is not None:
            await rpc.start()
        yield
        if rpc is not None:
            await rpc.close()
        await parts.runner.close()
        await parts.journal.close()
        await parts.database.close()
        await parts.estimates.close()
        await parts.withdrawals.close()
        await parts.pressure.close()
        await parts.hub.close()
        parts.tokens.close()

    # A redirect to the address without its last slash would name the host that the caller wrote.
    app = FastAPI(
        title="Headrace", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    routers = [
        module.router(parts)
        for module in (chat, messages, completions, embeddings, ollama, jobs, status, admin, responses, files, batches)
    ]
    for router in routers:
        answer_heads(router)
        app.include_router(router)
    pages.install(app, list(parts.settings.model_names))
    answer_heads(app.router)
    errors.install(app, parts.metrics, routers)
    install_http(app, parts.settings, parts.metrics)
    return app


def open_parts(settings: Settings, store: Store) -> Parts:
    """Everything that the routes use, made once. Must be called in the running event loop."""
    clock = SystemClock()
    queue = Queue(
        store,
        retention=Retention.of(settings),
        most_in_lane=settings.max_lane_depth,
        most_waiting=settings.max_waiting_jobs,
    )
    # An inbox is a gateway's lease: it ends when nobody renews it, and its readers count as gone.
    inbox_life_ms = int(1000 * max(SHORTEST_INBOX_LIFE_S, settings.lease_s))
    streams = StreamStore(store, disconnect_grace_s=settings.disconnect_grace_s, inbox_life_ms=inbox_life_ms)
    hub = Hub(store, streams, queue, clock, pools=settings.all_pools, limits=Limits(keepalive_s=settings.keepalive_s))
    pressure = Pressure(store, clock, most_share=settings.store_memory_share)
    withdrawals = Withdrawals(queue, clock)
    estimates = Estimates(queue, clock, pool_by_model=settings.pool_by_model)
    prices = Prices(settings)
    admission = Admission(settings, Models(settings, prices), queue, pressure, withdrawals, estimates)
    database = Database.of(settings)
    ledger = JournalLedger(database) if settings.journal == "on" else None
    journal = Journal(ledger, store, queue, admission, pressure, clock)
    stored, made = FilesLedger(database), BatchesLedger(database)
    desk = Desk(
        made,
        LinesLedger(database),
        stored,
        queue,
        Outbox(store),
        journal,
        admission,
        clock,
        lease_s=max(SHORTEST_BATCH_LEASE_S, settings.lease_s),
        most_line_bytes=settings.max_body_bytes,
    )
    return Parts(
        settings=settings,
        clock=clock,
        store=store,
        queue=queue,
        streams=streams,
        health=HealthStore(store),
        hub=hub,
        auth=Auth(settings),
        admission=admission,
        metrics=GatewayMetrics(),
        pressure=pressure,
        withdrawals=withdrawals,
        estimates=estimates,
        journal=journal,
        listing=Listing(Outbox(store), settings.all_pools, ledger),
        prices=prices,
        tokens=TokenCounter(),
        database=database,
        files=stored,
        batches=made,
        runner=Runner(desk),
    )


def _may_have_batches(settings: Settings) -> bool:
    """Whether there may be batches to go on with: without a journal only where there is a ledger all the same."""
    wanted = settings.journal == "on" or settings.database_url is not None
    return wanted or (settings.data_dir / FILE_NAME).exists()


class Server(uvicorn.Server):
    """uvicorn, letting open streams end by themselves for a while when it is told to stop."""

    def __init__(
        self, config: uvicorn.Config, drain_s: float, cut: Callable[[], None], leave: Callable[[float], None]
    ) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._cut = cut
        self._leave = leave

    def handle_exit(self, sig: int, frame: object) -> None:
        """Closes the door; streams get until shortly before the drain's end, then go on elsewhere by resuming.

        Not uvicorn's own, which raises the signal once more at the end: a drained gateway exits with 0.
        """
        log.info("gateway.draining", signal=signal.Signals(sig).name)
        wait_s = 0.0 if self.should_exit else max(0.0, self._drain_s - LEAVE_STREAMS_S)
        asyncio.get_running_loop().call_later(wait_s, self._cut)
        if not self.should_exit:
            self._leave(self._drain_s)
        self.should_exit = True


async def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit status."""
    store = Store.from_url(settings.effective_redis_url)
    parts = open_parts(settings, store)
    try:
        rpc = open_rpc(parts)
    except OSError as error:
        log.error("gateway.cannot_listen", port=settings.grpc_port, error=str(error))
        await store.close()
        return 1
    config = uvicorn.Config(
        build(parts, rpc),
        host=settings.http_host,
        port=settings.http_port,
        loop="none",
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        backlog=4096,
        timeout_graceful_shutdown=int(settings.drain_s),
        h11_max_incomplete_event_size=16 * 1024,
    )
    # The hub ends the streams, when the drain is over; sse-starlette would end them with the signal.
    AppStatus.disable_automatic_graceful_drain()
    memory.settle()
    server = Server(config, settings.drain_s, parts.hub.cut, rpc.drain if rpc else _nothing_to_leave)
    try:
        stop_metrics = parts.metrics.serve_if_free(settings.metrics_host, settings.metrics_port, METRICS_PORT)
    except OSError as error:
        log.error("gateway.cannot_listen", port=settings.metrics_port, error=str(error))
        return 1
    try:
        await server.serve()
    finally:
        stop_metrics()
        await store.close()
    log.info("gateway.stopped")
    return 0 if server.started else 1


def open_rpc(parts: Parts) -> RpcServer | None:
    """gRPC on its port, or None where it is off. Raises OSError where the port that was asked for is taken.

    Several gateways on one machine share the default port, so only one that was asked for must be had.
    """
    settings = parts.settings
    if settings.grpc_port == 0:
        return None
    rpc = RpcServer(parts)
    try:
        rpc.bind(settings.http_host, settings.grpc_port)
    except OSError as error:
        if "grpc_port" in settings.model_fields_set:
            raise
        log.warning("gateway.grpc_port_taken", port=settings.grpc_port, error=str(error))
        return None
    return rpc


def _nothing_to_leave(_grace_s: float) -> None:
    """There is no gRPC to take leave of."""


def bound_port(server: uvicorn.Server) -> int:
    """The port that a server got, where 0 was asked for."""
    sockets: list[socket.socket] = [found for one in server.servers for found in one.sockets]
    return sockets[0].getsockname()[1]


def run(settings: Settings) -> int:
    """Runs a gateway in this process; blocks until it was told to stop."""
    configure(settings.log_level, process="gateway")
    return uvloop.run(serve(settings))
