"""The gauges: how deep the queue is, how old, how fast it drains; shown as metrics and noted for the gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from common.backlog import Backlog
from common.clock import Clock
from common.contracts import Priority
from common.health import HealthStore
from common.metrics import PoolView, SchedulerMetrics
from common.queue import LaneDepth, Queue
from scheduler.drain import Drain, Sample, known, rates, samples, updated

Depth = dict[tuple[Priority, str], int]
TURN_SHARE: Final = 0.75
"""A turn to note the pace lasts this part of a period: over before the same scheduler's next round."""


@dataclass(frozen=True, slots=True)
class GaugesParams:
    """How often figures are taken."""

    period_s: float = 2


@dataclass(frozen=True, slots=True)
class Sources:
    """What the figures are read from."""

    queue: Queue
    health: HealthStore
    backlog: Backlog


class Gauges:
    """Takes the figures of every pool. Stopped: metrics stand still, and estimated waits go on with the last pace."""

    name: ClassVar[str] = "gauges"

    def __init__(
        self,
        sources: Sources,
        clock: Clock,
        metrics: SchedulerMetrics,
        *,
        models: Mapping[str, Sequence[str]],
        params: GaugesParams | None = None,
    ) -> None:
        self._queue = sources.queue
        self._health = sources.health
        self._backlog = sources.backlog
        self._clock = clock
        self._metrics = metrics
        self._models = models
        self._params = params or GaugesParams()
        self._samples: dict[str, dict[str, Sample]] = {}

    @property
    def period_s(self) -> float:
        return self._params.period_s

    @property
    def _turn_ms(self) -> int:
        return int(self._params.period_s * 1000 * TURN_SHARE)

    async def round(self) -> int:
        """How many jobs wait, in all pools."""
        views = await asyncio.gather(*(self._pool(pool) for pool in self._models))
        for view in views:
            self._metrics.show_pool(view)
        return sum(sum(view.depth.values()) for view in views)

    async def _pool(self, pool: str) -> PoolView:
        lanes, delayed, workers, running, aside, now_ms = await asyncio.gather(
            self._queue.lanes(pool),
            self._queue.delayed_count(pool),
            self._queue.workers(pool),
            self._queue.running(pool),
            self._backlog.of(pool),
            self._queue.now_ms(),
        )
        for name, health in (await self._health.read(pool)).items():
            self._metrics.show_backend(name, healthy=health.healthy)
        drains = await self._drains(pool, waiting={lane.model for lane in lanes if lane.depth})
        depth = depths(lanes, self._models[pool])
        live = sum(row.lease_expires_ms > now_ms for row in workers)
        return PoolView(
            pool=pool,
            depth={(priority.label, model): count for (priority, model), count in depth.items()},
            oldest_age_s=ages_s(lanes, now_ms),
            # Without workers nothing drains, whatever the pace was.
            estimated_wait_s=waits_s(tokens_by_lane(lanes, self._models[pool]), drains) if live else {},
            waiting_tokens=sum(lane.tokens for lane in lanes),
            delayed=delayed,
            workers=live,
            running=running,
            dead_letters=aside.dead_letters,
            unjournaled=aside.unjournaled,
        )

    async def _drains(self, pool: str, *, waiting: Collection[str]) -> dict[str, Drain]:
        """The pace by model, with what happened since this scheduler's last look; noted where it changed."""
        stats = await self._queue.stats(pool)
        now = samples(stats, at_s=self._clock.monotonic_s(), waiting=waiting)
        before, self._samples[pool] = self._samples.get(pool, {}), now
        drains = known(stats)
        fresh = drains | {
            model: updated(drains.get(model, Drain()), before[model], sample)
            for model, sample in now.items()
            if model in before
        }
        # One of several schedulers notes it; the others have looked too, and go on from what it noted.
        if rates(fresh) != rates(drains) and await self._queue.take_turn_to_note(pool, for_ms=self._turn_ms):
            await self._queue.note_rates(pool, rates(fresh))
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


def tokens_by_lane(lanes: Sequence[LaneDepth], models: Sequence[str]) -> Depth:
    """The tokens that wait in each lane: of every class of the configured models, and of whatever else waits."""
    found = {(priority, model): 0 for model in models for priority in Priority}
    return found | {(lane.priority, lane.model): lane.tokens for lane in lanes if lane.depth}


def waits_s(tokens: Depth, drains: Mapping[str, Drain]) -> dict[str, float]:
    """How long a job of each class that came now would wait: behind its model's own class and those above.

    The longest of all models is told; a class of which that can't be told is left out.
    """
    models = {model for _, model in tokens}
    waits: dict[str, float] = {}
    for priority in Priority:
        ahead = {m: sum(n for (other, model), n in tokens.items() if model == m and other <= priority) for m in models}
        found = [drains.get(model, Drain()).wait_s(count) for model, count in ahead.items()]
        told = [wait_s for wait_s in found if wait_s is not None]
        if len(told) == len(found):
            waits[priority.label] = max(told, default=0.0)
    return waits
