"""Composition root of a worker: opens Redis and the HTTP client, hands them down, runs until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
import uvloop

from common import keys, memory
from common.clock import Clock, SystemClock
from common.config import Settings
from common.contracts import JsonObject, Priority
from common.errors import HeadraceError
from common.health import HealthStore
from common.log import configure
from common.metrics import WorkerMetrics
from common.queue import Queue, Retention
from common.store import Store
from common.stream import Refusal, StreamStore
from workers.engine import Duties, EngineOptions, PoolWorker
from workers.inference import Inference
from workers.providers.registry import make
from workers.providers.transport import new_client
from workers.publisher import Publisher

log = structlog.get_logger(__name__)

HEALTH_PERIOD_S: Final = 2.0
METRICS_PORT: Final = 9093


class KnownHealth:
    """What the scheduler's prober last told of the backends; read now and then, never on a job's path."""

    def __init__(self, health: HealthStore, pools: Sequence[str], clock: Clock) -> None:
        self._health = health
        self._pools = pools
        self._clock = clock
        self.healthy: dict[str, bool] = {}

    async def follow(self) -> None:
        """Reads it again and again; keeps the last answer while the store is away."""
        while True:
            with suppress(HeadraceError):
                found: dict[str, bool] = {}
                for pool in self._pools:
                    found.update({name: row.healthy for name, row in (await self._health.read(pool)).items()})
                self.healthy = found
            await self._clock.sleep(HEALTH_PERIOD_S)


class Lanes:
    """Which lanes of a pool this worker can serve now.

    A model none of whose backends is healthy keeps only its interactive lane: a person who waits shall hear of the
    failure, while standard and batch work waits for the backend's return and spends no attempt.
    """

    def __init__(self, settings: Settings, pool: str, known: KnownHealth) -> None:
        self._known = known
        self._rows = [
            (keys.lane_name(priority, model), priority, [target.backend for target in settings.models[model].targets])
            for model in settings.models_of(pool)
            for priority in Priority
        ]

    def __call__(self) -> list[str]:
        """The lanes' names."""
        healthy = self._known.healthy
        return [
            name
            for name, priority, backends in self._rows
            if priority is Priority.INTERACTIVE or any(healthy.get(backend, True) for backend in backends)
        ]


def worker_name() -> str:
    """A name that no other worker ever has, and that tells people where it runs."""
    host = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())[:40]
    return f"{host}.{os.getpid()}.{secrets.token_hex(4)}"


class Process:
    """One worker's opened parts."""

    def __init__(self, settings: Settings) -> None:
        clock = SystemClock()
        self.metrics = WorkerMetrics()
        self.store = Store.from_url(settings.effective_redis_url)
        self.client = new_client()
        self.known = KnownHealth(HealthStore(self.store), settings.pools, clock)
        streams = StreamStore(self.store, disconnect_grace_s=settings.disconnect_grace_s)
        self.publisher = Publisher(streams, clock, worker_id=lambda: self.worker.id, refused=self._refused)
        kinds = {row.kind for row in settings.backends if set(row.pool) & set(settings.pools)}
        providers = {kind: make(kind, self.client, clock=clock) for kind in kinds}
        inference = Inference(
            settings, providers, self.publisher, clock, self.metrics, healthy=lambda: self.known.healthy
        )
        duties = Duties(
            new_id=worker_name,
            lanes={pool: Lanes(settings, pool, self.known) for pool in settings.pools},
            begin=inference.begin,
            info=lambda: _info(settings),
        )
        options = EngineOptions(settings.worker_concurrency, settings.lease_s, settings.drain_s)
        queue = Queue(self.store, retention=Retention(settings.result_retention_s, settings.stream_retention_s))
        self.worker = PoolWorker(self.store, queue, clock, duties, options)
        self.metrics.watch_running(lambda: self.worker.running)

    def _refused(self, job_id: str, why: Refusal) -> None:
        log.warning("worker.tokens_refused", job_id=job_id, why=why.name)
        if why is Refusal.FENCED:
            self.worker.abandon(job_id)
        else:
            self.worker.fail(job_id, "stream_lost")

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT, then drains and closes everything."""
        following = asyncio.create_task(self.known.follow(), name="health")
        try:
            with suppress(asyncio.CancelledError):
                await self.worker.async_run()
            await self.worker.close()
        finally:
            following.cancel()
            await self.publisher.close()
            await self.client.aclose()
            await self.store.close()


async def serve(settings: Settings) -> int:
    """Runs one worker until SIGTERM or SIGINT; its exit status."""
    process = Process(settings)
    memory.settle()
    try:
        stop_metrics = process.metrics.serve_if_free(settings.metrics_host, settings.metrics_port, METRICS_PORT)
    except OSError as error:
        log.error("worker.cannot_listen", port=settings.metrics_port, error=str(error))
        return 1
    try:
        await process.run()
    finally:
        stop_metrics()
    log.info("worker.stopped", worker=process.worker.id)
    return 0


def _info(settings: Settings) -> JsonObject:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "metrics_port": METRICS_PORT if settings.metrics_port is None else settings.metrics_port,
        "pools": list(settings.pools),
        "models": [model for pool in settings.pools for model in settings.models_of(pool)],
    }


def run(settings: Settings) -> int:
    """Runs a worker in this process; blocks until it was told to stop."""
    configure(settings.log_level, process="worker")
    return uvloop.run(serve(settings))
