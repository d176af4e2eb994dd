"""Composition root of a worker: opens Redis and the HTTP client, hands them down, runs until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Final

import structlog
import uvloop

from common import memory
from common.clock import SystemClock
from common.config import Settings
from common.contracts import JsonObject, Priority
from common.log import configure
from common.metrics import WorkerMetrics
from common.queue import Claim, Queue, Retention
from common.store import Store
from common.stream import Refusal, StreamStore
from common.tokens import TokenCounter
from workers.attempts import Attempts
from workers.embedding import ENDPOINT as EMBEDDINGS
from workers.embedding import Embedding
from workers.engine import Duties, EngineOptions, PoolWorker, Run
from workers.fleet import Fleet
from workers.inference import Inference
from workers.lanes import Lanes, kept_slots
from workers.providers.registry import make
from workers.providers.transport import new_client
from workers.publisher import Publisher

log = structlog.get_logger(__name__)

METRICS_PORT: Final = 9093


def worker_name() -> str:
    """A name that no other worker ever has, and that tells people where it runs."""
    host = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())[:40]
    return f"{host}.{os.getpid()}.{secrets.token_hex(4)}"


def by_endpoint(begins: Mapping[str, Callable[[Claim], Run]], other: Callable[[Claim], Run]) -> Callable[[Claim], Run]:
    """Begins a job's run by its endpoint; `other` begins those of all endpoints that are not named."""
    return lambda claim: begins.get(claim.job.endpoint, other)(claim)


class Process:
    """One worker's opened parts."""

    def __init__(self, settings: Settings) -> None:
        clock = SystemClock()
        self.metrics = WorkerMetrics()
        self.store = Store.from_url(settings.effective_redis_url)
        self.client = new_client()
        self.fleet = Fleet(
            settings,
            self.store,
            clock,
            worker_id=lambda: self.worker.id,
            metrics=self.metrics,
            room=self._look_for_work,
        )
        streams = StreamStore(self.store, disconnect_grace_s=settings.disconnect_grace_s)
        self.publisher = Publisher(streams, clock, worker_id=lambda: self.worker.id, refused=self._refused)
        kinds = {row.kind for row in settings.backends if set(row.pool) & set(settings.pools)}
        providers = {kind: make(kind, self.client, clock=clock) for kind in kinds}
        attempts = Attempts(settings, self.fleet, providers, clock, self.metrics)
        most_bytes = settings.max_output_bytes
        self.tokens = TokenCounter()
        inference = Inference(attempts, self.publisher, clock, self.metrics, self.tokens, most_bytes)
        embedding = Embedding(attempts, clock, self.metrics, self.tokens, most_bytes=most_bytes)
        lanes = {pool: Lanes(settings, pool, self.fleet) for pool in settings.pools}
        duties = Duties(
            new_id=worker_name,
            lanes=lanes,
            caps={pool: served.caps for pool, served in lanes.items()},
            preempted=lambda claim: self.metrics.preempted(claim.job),
            begin=by_endpoint({EMBEDDINGS: embedding.begin}, inference.begin),
            info=lambda: _info(settings, self.fleet),
        )
        options = EngineOptions(
            settings.worker_concurrency,
            settings.lease_s,
            settings.drain_s,
            preemptible=frozenset(Priority[name.upper()] for name in settings.preemptible),
            preempt_after_ms=settings.preempt_after_ms,
        )
        kept = kept_slots(settings.worker_concurrency, settings.interactive_reserve)
        queue = Queue(self.store, retention=Retention.of(settings), kept_slots=kept)
        self.worker = PoolWorker(self.store, queue, clock, duties, options)
        self.metrics.watch_running(lambda: self.worker.running)

    def _look_for_work(self) -> None:
        self.worker.wake()

    def _refused(self, job_id: str, why: Refusal) -> None:
        log.warning("worker.tokens_refused", job_id=job_id, why=why.name)
        if why is Refusal.FENCED:
            self.worker.abandon(job_id)
        else:
            self.worker.fail(job_id)

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT, then drains and closes everything."""
        following = asyncio.create_task(self.fleet.follow(), name="fleet")
        following.add_done_callback(_tell_fault)
        try:
            with suppress(asyncio.CancelledError):
                await self.worker.async_run()
            await self.worker.close()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self.fleet.close()
            await self.publisher.close()
            self.tokens.close()
            await self.client.aclose()
            await self.store.close()


def _tell_fault(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and (error := following.exception()) is not None:
        log.error("worker.fleet_lost", exc_info=error)


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


def _info(settings: Settings, fleet: Fleet) -> JsonObject:
    return {
        "version": _version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "metrics_port": METRICS_PORT if settings.metrics_port is None else settings.metrics_port,
        "pools": list(settings.pools),
        "models": [model for pool in settings.pools for model in settings.models_of(pool)],
        "backend_states": fleet.show(),
    }


@cache
def _version() -> str:
    # Looked up once: each look reads the names of all packages, and leaves them to the garbage collector.
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "source"


def run(settings: Settings) -> int:
    """Runs a worker in this process; blocks until it was told to stop."""
    configure(settings.log_level, process="worker")
    return uvloop.run(serve(settings))
