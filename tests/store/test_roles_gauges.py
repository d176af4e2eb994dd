"""The gauges: a real queue in, Prometheus's text and the noted pace out."""

from __future__ import annotations

import math

from common.backlog import Backlog
from common.clock import SystemClock
from common.contracts import Failure, Outcome, Priority, State, Usage
from common.health import HealthStore, Probe
from common.metrics import SchedulerMetrics
from common.queue import Settlement
from scheduler.gauges import Gauges, Sources
from tests.support.clock import ManualClock
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, rig

ENDED = Settlement(Outcome(State.SUCCEEDED, usage=Usage(60, 40)))


class Shown:
    """A gauges role over a rig, and what it shows."""

    def __init__(self, r: Rig, clock: ManualClock | SystemClock | None = None) -> None:
        self.metrics = SchedulerMetrics()
        self.role = Gauges(
            Sources(r.queue, HealthStore(r.store), Backlog(r.store)),
            clock or ManualClock(),
            self.metrics,
            models={POOL: ("m",), "empty": ()},
        )

    def __call__(self, name: str, **labels: str) -> float | None:
        """A gauge's value; None where no such series is shown."""
        named = {("class" if label == "cls" else label): value for label, value in labels.items()}
        return self.metrics.registry.get_sample_value(f"headrace_{name}", named)


async def _work_off(r: Rig, count: int) -> None:
    for claim in await r.claim(count):
        assert (await r.settle(claim, end=ENDED)).done


async def test_depths_ages_workers_and_running_jobs_are_those_of_the_queue(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        await r.running(a_job(1))
        await r.worker("idle")
        await r.submit(a_job(2), a_job(3), a_job(4, priority=Priority.BATCH), a_job(5, delay_ms=1_000))
        r.later(7_000)
        assert await shown.role.round() == 3
        depths = {label: shown("queue_depth", pool=POOL, cls=label, model="m") for label in _labels()}
        assert depths == {"interactive": 2, "standard": 0, "batch": 1}
        ages = {label: shown("queue_oldest_age_seconds", pool=POOL, cls=label) for label in _labels()}
        assert ages["standard"] == 0
        assert ages["batch"] is not None and 7 <= ages["batch"] < 8
        assert (shown("workers", pool=POOL), shown("pool_jobs_running", pool=POOL)) == (2, 1)
        assert shown("queue_delayed", pool=POOL) == 1


async def test_dead_letters_and_ends_that_the_ledger_has_not_got_are_shown(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        dead = Settlement(Outcome(State.FAILED, failure=Failure("upstream_error", "x")), dead=True)
        assert (await r.settle(await r.running(a_job(1)), end=dead)).done
        for number in (2, 3):
            assert (await r.settle(await r.running(a_job(number, journal=True)), end=ENDED)).done
        await shown.role.round()
        assert (shown("dead_letters", pool=POOL), shown("journal_backlog", pool=POOL)) == (1, 2)
        assert (shown("dead_letters", pool="empty"), shown("journal_backlog", pool="empty")) == (0, 0)


def _labels() -> tuple[str, ...]:
    return tuple(priority.label for priority in Priority)


async def test_a_lane_that_emptied_is_shown_empty(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        await r.submit(a_job(1, model="stranger"))
        await shown.role.round()
        assert shown("queue_depth", pool=POOL, cls="interactive", model="stranger") == 1
        await r.worker()
        assert len(await r.claim(1, lanes=("0:stranger",))) == 1
        await shown.role.round()
        assert not shown("queue_depth", pool=POOL, cls="interactive", model="stranger")


async def test_a_worker_whose_lease_lapsed_is_not_counted(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        await r.worker("gone", lease_s=1)
        await r.worker("here", lease_s=60)
        r.later(2_000)
        await shown.role.round()
        assert shown("workers", pool=POOL) == 1


async def test_the_pace_is_measured_noted_for_all_and_makes_the_wait(redis_server: RedisServer) -> None:
    """The jobs take twice what was estimated: the wait is as long as it is all the same."""
    async with rig(redis_server) as r:
        clock = ManualClock()
        shown = Shown(r, clock)
        await r.submit(*(a_job(number, cost_tokens=50) for number in range(30)))
        await r.worker()
        await shown.role.round()
        assert "drain_jobs_per_s" not in await r.queue.stats(POOL)
        await _work_off(r, 10)
        clock.advance(2)
        await shown.role.round()
        stats = await r.queue.stats(POOL)
        assert (stats["drain_jobs_per_s:m"], stats["drain_tokens_per_s:m"]) == (5, 250)
        assert stats["drain_jobs_per_s"] == 5
        assert shown("queue_estimated_wait_seconds", pool=POOL, cls="interactive") == 20 / 5
        assert shown("queue_tokens", pool=POOL) == 20 * 50


async def test_an_unknown_wait_is_not_shown_as_none_at_all(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        await r.worker()
        await r.submit(a_job(1, priority=Priority.STANDARD))
        await shown.role.round()
        waits = {label: shown("queue_estimated_wait_seconds", pool=POOL, cls=label) for label in _labels()}
        assert waits["interactive"] == 0
        assert _unknown(waits["standard"]) and _unknown(waits["batch"])


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


async def test_without_a_worker_no_wait_is_promised_whatever_the_pace_was(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        shown = Shown(r)
        await r.queue.note_rates(POOL, {"drain_jobs_per_s:m": 5.0, "drain_tokens_per_s:m": 5.0})
        await r.submit(a_job(1))
        await shown.role.round()
        assert _unknown(shown("queue_estimated_wait_seconds", pool=POOL, cls="interactive"))
        await r.worker()
        await shown.role.round()
        assert shown("queue_estimated_wait_seconds", pool=POOL, cls="interactive") == 0.2


async def test_a_new_scheduler_goes_on_from_the_pace_that_another_noted(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.note_rates(POOL, {"drain_jobs_per_s:m": 5.0, "drain_tokens_per_s:m": 5.0})
        clock = ManualClock()
        shown = Shown(r, clock)
        for _ in range(3):
            await shown.role.round()
            clock.advance(2)
        assert (await r.queue.stats(POOL))["drain_jobs_per_s:m"] == 5


async def test_counters_that_a_store_lost_do_not_upset_the_pace(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        clock = ManualClock()
        shown = Shown(r, clock)
        await r.submit(*(a_job(number) for number in range(9)))
        await r.worker()
        await shown.role.round()
        await _work_off(r, 4)
        clock.advance(2)
        await shown.role.round()
        redis_server.command("FLUSHALL")
        clock.advance(2)
        await shown.role.round()
        assert await r.queue.stats(POOL) == {}


async def test_backends_are_shown_as_the_last_probes_found_them(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        health, shown = HealthStore(r.store), Shown(r)
        await health.note(POOL, "well", Probe(True, 1), life_ms=60_000)
        for _ in range(2):
            await health.note(POOL, "sick", Probe(False, 1), life_ms=60_000)
        await shown.role.round()
        backends = {name: shown("backend_healthy", backend=name) for name in ("well", "sick", "unknown")}
        assert backends == {"well": 1, "sick": 0, "unknown": None}
