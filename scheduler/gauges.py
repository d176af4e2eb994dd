"""The gauges: how deep the queue is, how old, how fast it drains; shown as metrics and noted for the gateways."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from common.clock import Clock
from common.contracts import Priority
from common.health import HealthStore
from common.metrics import PoolView, SchedulerMetrics
from common.queue import LaneDepth, Queue
from scheduler.drain import Drain, Sample, known, sample, updated

Depth = dict[tuple[Priority, str], int]
UNKNOWN: Final = math.nan
"""What a gauge shows that can't be told: 0 would be a promise."""


@dataclass(frozen=True, slots=True)
class GaugesParams:
    """How often figures are taken."""

    period_s: float = 2


class Gauges:
    """Takes the figures of every pool. Stopped: metrics stand still, and estimated waits go on with the last pace."""

    name: ClassVar[str] = "gauges"

    def __init__(
        self,
        queue: Queue,
        health: HealthStore,
        clock: Clock,
        metrics: SchedulerMetrics,
        *,
        models: Mapping[str, Sequence[str]],
        params: GaugesParams | None = None,
    ) -> None:
        self._queue = queue
        self._health = health
        self._clock = clock
        self._metrics = metrics
        self._models = models
        self._params = params or GaugesParams()
        self._samples: dict[str, Sample] = {}

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many jobs wait, in all pools."""
        views = await asyncio.gather(*(self._pool(pool) for pool in self._models))
        for view in views:
            self._metrics.show_pool(view)
        return sum(sum(view.depth.values()) for view in views)

    async def _pool(self, pool: str) -> PoolView:
        lanes, delayed, workers, running, now_ms = await asyncio.gather(
            self._queue.lanes(pool),
            self._queue.delayed_count(pool),
            self._queue.workers(pool),
            self._queue.running(pool),
            self._queue.now_ms(),
        )
        for name, health in (await self._health.read(pool)).items():
            self._metrics.show_backend(name, healthy=health.healthy)
        drain = await self._drain(pool, waiting=any(lane.depth for lane in lanes))
        depth = depths(lanes, self._models[pool])
        live = sum(row.lease_expires_ms > now_ms for row in workers)
        return PoolView(
            pool=pool,
            depth={(priority.label, model): count for (priority, model), count in depth.items()},
            oldest_age_s=ages_s(lanes, now_ms),
            # Without workers nothing drains, whatever the pace was.
            estimated_wait_s=waits_s(depth, drain) if live else {},
            waiting_tokens=tokens_waiting(depth, drain),
            delayed=delayed,
            workers=live,
            running=running,
        )

    async def _drain(self, pool: str, *, waiting: bool) -> Drain:
        """The pace, with what happened since this scheduler's last look; noted where it changed."""
        stats = await self._queue.stats(pool)
        now = sample(stats, at_s=self._clock.monotonic_s(), waiting=waiting)
        before, self._samples[pool] = self._samples.get(pool), now
        drain = known(stats)
        if before is None or (fresh := updated(drain, before, now)) == drain:
            return drain
        await self._queue.note_rates(pool, fresh.as_rates())
        return fresh


def depths(lanes: Sequence[LaneDepth], models: Sequence[str]) -> Depth:
    """The depth of each lane: of every class of the models that are configured, and of whatever else waits."""
    found = {(priority, model): 0 for model in models for priority in Priority}
    return found | {(lane.priority, lane.model): lane.depth for lane in lanes if lane.depth}


def ages_s(lanes: Sequence[LaneDepth], now_ms: int) -> dict[str, float]:
    """How long the first of each class has waited; a class in which none waits is left out."""
    ages: dict[str, float] = {}
    for lane in lanes:
        if lane.oldest_ms is not None:
            age_s = max(0, now_ms - lane.oldest_ms) / 1000
            ages[lane.priority.label] = max(age_s, ages.get(lane.priority.label, 0))
    return ages


def waits_s(depth: Depth, drain: Drain) -> dict[str, float]:
    """How long a job of each class that came now would wait: behind all of its own class and of those above.

    A class of which that can't be told is left out.
    """
    waits: dict[str, float] = {}
    for priority in Priority:
        wait_s = drain.wait_s(sum(count for (other, _), count in depth.items() if other <= priority))
        if wait_s is not None:
            waits[priority.label] = wait_s
    return waits


def tokens_waiting(depth: Depth, drain: Drain) -> float:
    """An estimate of the tokens that wait: as many jobs, each of the mean size of those that were worked off lately."""
    jobs = sum(depth.values())
    if jobs == 0:
        return 0
    return UNKNOWN if drain.tokens_a_job is None else jobs * drain.tokens_a_job
