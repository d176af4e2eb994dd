"""Composition root of a scheduler: opens Redis, gives each role its rounds, runs until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import structlog
import uvloop

from common.backlog import Backlog
from common.clock import Clock, SystemClock
from common.config import Settings
from common.health import HealthStore
from common.ledger.database import Database
from common.ledger.journal import JournalLedger
from common.log import configure
from common.metrics import SchedulerMetrics
from common.outbox import Outbox
from common.queue import Queue, Retention
from common.store import Store
from common.survey import Survey
from scheduler.gauges import Gauges, Sources
from scheduler.janitor import Janitor, JanitorParams
from scheduler.journal import Journal, JournalParams
from scheduler.prober import Prober, ProberParams
from scheduler.promoter import Promoter
from scheduler.reaper import Reaper, ReaperParams
from scheduler.role import Outage, Role, Rounds, stop_all

log = structlog.get_logger(__name__)

METRICS_PORT = 9092


def make_roles(settings: Settings, store: Store, clock: Clock, metrics: SchedulerMetrics) -> list[Role]:
    """Every role, over these parts."""
    pools = settings.all_pools
    models = {pool: settings.models_of(pool) for pool in pools}
    queue = Queue(store, retention=Retention.of(settings))
    health = HealthStore(store)
    return [
        Promoter(queue, pools),
        Reaper(queue, clock, pools, ReaperParams(lease_s=settings.lease_s)),
        Prober(health, clock, settings.backends, ProberParams(period_s=settings.probe_interval_s)),
        Janitor(queue, Survey(store), pools, JanitorParams(dead_life_s=settings.result_retention_s)),
        Gauges(Sources(queue, health, Backlog(store)), clock, metrics, models=models),
    ]


def make_journal(settings: Settings, store: Store, clock: Clock, database: Database) -> Journal:
    """The role that keeps the ledger."""
    queue = Queue(store, retention=Retention.of(settings))
    params = JournalParams(result_life_s=settings.result_retention_s, key_life_s=settings.idempotency_retention_s)
    return Journal(JournalLedger(database), Outbox(store), queue, clock, settings.all_pools, params)


async def serve(settings: Settings) -> int:
    """Runs one scheduler until SIGTERM or SIGINT; its exit status."""
    clock = SystemClock()
    metrics = SchedulerMetrics()
    store = Store.from_url(settings.effective_redis_url)
    outage = Outage()
    rounds = [
        Rounds(role, clock, outage=outage, count=metrics.round_done)
        for role in make_roles(settings, store, clock, metrics)
    ]
    database = Database.of(settings)
    if settings.journal == "on":
        journal = make_journal(settings, store, clock, database)
        # An outage of its own: the database may be away while the store is there.
        rounds.append(Rounds(journal, clock, outage=Outage("journal"), count=metrics.round_done))
    try:
        stop_metrics = metrics.serve_if_free(settings.metrics_host, settings.metrics_port, METRICS_PORT)
    except OSError as error:
        log.error("scheduler.cannot_listen", port=settings.metrics_port, error=str(error))
        return 1
    try:
        await _until_told(rounds, settings.all_pools)
    finally:
        await stop_all(rounds)
        await store.close()
        await database.close()
        stop_metrics()
    log.info("scheduler.stopped")
    return 0


async def _until_told(rounds: Sequence[Rounds], pools: Sequence[str]) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    for one in rounds:
        one.start()
    log.info("scheduler.started", pools=list(pools))
    await told.wait()
    log.info("scheduler.stopping")


def run(settings: Settings) -> int:
    """Runs a scheduler in this process; blocks until it was told to stop."""
    configure(settings.log_level, process="scheduler")
    return uvloop.run(serve(settings))
