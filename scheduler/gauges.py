"""The gauges: how deep the queue is, how old, how fast it drains; shown as metrics and noted for the gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from common.clock import Clock
from common.contracts import Priority
from common.health import HealthStore
from common.queue import LaneDepth, Queue
from scheduler.drain import Drain, Sample, known, sample, updated


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """A pool at a moment, as the metrics show it. None: not known (which is not 0)."""

    pool: str
    depth: Mapping[tuple[Priority, str], int]
    oldest_age_s: Mapping[Priority, float]
    wait_s: Mapping[Priority, float | None]
    tokens: float | None
    workers: int
    running: int
    healthy: Mapping[str, bool]


class Board(Protocol):
    """Where figures are shown."""

    def show(self, figures: Sequence[PoolFigures]) -> None:
        """Shows these and nothing else: what is missing has vanished."""
        ...


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
        board: Board,
        *,
        models: Mapping[str, Sequence[str]],
        params: GaugesParams | None = None,
    ) -> None:
        self._queue = queue
        self._health = health
        self._clock = clock
        self._board = board
        self._models = models
        self._params = params or GaugesParams()
        self._samples: dict[str, Sample] = {}

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many jobs wait, in all pools."""
        figures = await asyncio.gather(*(self._pool(pool) for pool in self._models))
        self._board.show(figures)
        return sum(sum(one.depth.values()) for one in figures)

    async def _pool(self, pool: str) -> PoolFigures:
        lanes, workers, running, health, now_ms = await asyncio.gather(
            self._queue.lanes(pool),
            self._queue.workers(pool),
            self._queue.running(pool),
            self._health.read(pool),
            self._queue.now_ms(),
        )
        drain = await self._drain(pool, waiting=any(lane.depth for lane in lanes))
        depth = depths(lanes, self._models[pool])
        return PoolFigures(
            pool=pool,
            depth=depth,
            oldest_age_s=ages_s(lanes, now_ms),
            wait_s=waits_s(depth, drain),
            tokens=tokens_waiting(depth, drain),
            workers=len(workers),
            running=running,
            healthy={name: row.healthy for name, row in health.items()},
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


def depths(lanes: Sequence[LaneDepth], models: Sequence[str]) -> dict[tuple[Priority, str], int]:
    """The depth of each lane: of every class of the models that are configured, and of whatever else waits."""
    found = {(priority, model): 0 for model in models for priority in Priority}
    return found | {(lane.priority, lane.model): lane.depth for lane in lanes if lane.depth}


def ages_s(lanes: Sequence[LaneDepth], now_ms: int) -> dict[Priority, float]:
    """How long the first of each class has waited; 0 where none waits."""
    return {
        priority: max(
            (
                max(0, now_ms - lane.oldest_ms) / 1000
                for lane in lanes
                if lane.priority is priority and lane.oldest_ms is not None
            ),
            default=0.0,
        )
        for priority in Priority
    }


def waits_s(depth: Mapping[tuple[Priority, str], int], drain: Drain) -> dict[Priority, float | None]:
    """How long a job of each class that came now would wait: behind all of its own class and of those above."""
    return {
        priority: drain.wait_s(sum(count for (other, _), count in depth.items() if other <= priority))
        for priority in Priority
    }


def tokens_waiting(depth: Mapping[tuple[Priority, str], int], drain: Drain) -> float | None:
    """An estimate of the tokens that wait: as many jobs, each of the mean size of those that were worked off lately."""
    jobs = sum(depth.values())
    if jobs == 0:
        return 0.0
    return None if drain.tokens_a_job is None else jobs * drain.tokens_a_job
