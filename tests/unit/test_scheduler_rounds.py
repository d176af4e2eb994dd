"""Rounds: when a role's next round comes, what its failures do, how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest
import structlog
from structlog.testing import capture_logs

from common.errors import LedgerUnavailable, StoreFull, StoreUnavailable
from common.metrics import SchedulerMetrics
from scheduler.role import DONE, FAILED, STORE_FULL, STORE_UNAVAILABLE, Outage, Rounds, stop_all
from tests.support.clock import ManualClock
from tests.support.runner import until


class Counting:
    """A role that counts its rounds, does in each what it was told, and notices two at once."""

    name: ClassVar[str] = "counting"
    period_s: float = 10.0

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = list(acts)
        self.rounds = 0
        self.at_once = 0
        self.most_at_once = 0

    async def round(self) -> int:
        self.rounds += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            act = self.acts.pop(0) if self.acts else None
            waited = act() if act else None
            if isinstance(waited, asyncio.Event):
                await waited.wait()
        finally:
            self.at_once -= 1
        return 0


def _raising(error: Exception) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def _rounds(role: Counting, clock: ManualClock, metrics: SchedulerMetrics | None = None, jitter: float = 0.5) -> Rounds:
    metrics = metrics or SchedulerMetrics()
    return Rounds(role, clock, outage=Outage(), count=metrics.round_done, jitter=lambda: jitter)


def _counted(metrics: SchedulerMetrics, result: str) -> float | None:
    labels = {"role": "counting", "result": result}
    return metrics.registry.get_sample_value("headrace_rounds_total", labels)


async def test_the_first_round_comes_at_once_and_the_next_after_the_period() -> None:
    role, clock = Counting(), ManualClock()
    rounds = _rounds(role, clock)
    rounds.start()
    await clock.until_sleeping()
    assert role.rounds == 1
    clock.advance(9.9)
    await asyncio.sleep(0)
    assert role.rounds == 1
    clock.advance(0.1)
    await clock.until_sleeping()
    assert role.rounds == 2
    await stop_all([rounds])


@pytest.mark.parametrize(("jitter", "period_s"), [(0.0, 9.0), (1.0, 11.0)])
async def test_jitter_moves_a_round_by_at_most_a_tenth_of_the_period(jitter: float, period_s: float) -> None:
    role, clock = Counting(), ManualClock()
    rounds = _rounds(role, clock, jitter=jitter)
    rounds.start()
    await clock.until_sleeping()
    clock.advance(period_s - 0.001)
    await asyncio.sleep(0)
    assert role.rounds == 1
    clock.advance(0.002)
    await clock.until_sleeping()
    assert role.rounds == 2
    await stop_all([rounds])


async def test_a_long_round_delays_the_next_one_and_never_runs_beside_it() -> None:
    gate = asyncio.Event()
    role, clock = Counting(lambda: gate), ManualClock()
    rounds = _rounds(role, clock)
    rounds.start()
    rounds.start()  # a second start changes nothing
    await until(lambda: _true(role.at_once == 1))
    clock.advance(100)  # ten periods pass inside the round
    gate.set()
    await clock.until_sleeping()
    assert role.rounds == 1
    clock.advance(5)  # half a period of rest is kept
    await clock.until_sleeping()
    assert (role.rounds, role.most_at_once) == (2, 1)
    await stop_all([rounds])


async def test_every_round_is_counted_with_its_result_and_none_ends_the_role() -> None:
    acts = [lambda: None, _raising(StoreUnavailable()), _raising(StoreFull()), _raising(ValueError("odd"))]
    role, metrics = Counting(*acts), SchedulerMetrics()
    rounds = _rounds(role, clock := ManualClock(), metrics)
    rounds.start()
    for _ in acts:
        await clock.until_sleeping()
        clock.advance(20)
    await clock.until_sleeping()
    await stop_all([rounds])
    assert role.rounds == 5
    counted = {result: _counted(metrics, result) for result in (DONE, STORE_UNAVAILABLE, STORE_FULL, FAILED)}
    assert counted == {DONE: 2, STORE_UNAVAILABLE: 1, STORE_FULL: 1, FAILED: 1}


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends_whatever_fails_in_between() -> None:
    outage, metrics = Outage(), SchedulerMetrics()
    roles = [Counting(*(_raising(StoreUnavailable()) for _ in range(3))) for _ in range(2)]
    both = [Rounds(role, ManualClock(), outage=outage, count=metrics.round_done) for role in roles]
    with _captured() as logs:
        for _ in range(4):
            for rounds in both:
                await rounds.one()
    assert [line["event"] for line in logs] == ["scheduler.store_trouble", "scheduler.store_back"]


async def test_an_outage_of_the_ledger_is_not_told_as_one_of_the_store() -> None:
    role = Counting(_raising(LedgerUnavailable()))
    rounds = Rounds(role, ManualClock(), outage=Outage("journal"), count=SchedulerMetrics().round_done)
    with _captured() as logs:
        await rounds.one()
        await rounds.one()
    assert [line["event"] for line in logs] == ["scheduler.journal_trouble", "scheduler.journal_back"]


async def test_a_fault_in_a_role_is_logged_once_for_each_run_of_failures() -> None:
    faults = [_raising(KeyError("x")), _raising(KeyError("x")), lambda: None, _raising(KeyError("x"))]
    rounds = _rounds(Counting(*faults), ManualClock())
    with _captured() as logs:
        results = [await rounds.one() for _ in faults]
    assert results == [FAILED, FAILED, DONE, FAILED]
    assert [line["event"] for line in logs] == ["scheduler.round_failed"] * 2


async def test_roles_that_rest_stop_at_once() -> None:
    clock = ManualClock()
    all_rounds = [_rounds(Counting(), clock) for _ in range(3)]
    for rounds in all_rounds:
        rounds.start()
    await clock.until_sleeping(3)
    await stop_all(all_rounds)
    assert clock.sleeping == 0


async def test_a_round_under_way_may_end_before_its_role_stops() -> None:
    gate = asyncio.Event()
    role, metrics = Counting(lambda: gate), SchedulerMetrics()
    rounds = _rounds(role, ManualClock(), metrics)
    rounds.start()
    await until(lambda: _true(role.at_once == 1))
    stopping = asyncio.create_task(stop_all([rounds], limit_s=5))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert (role.rounds, _counted(metrics, DONE)) == (1, 1)


async def test_a_round_that_hangs_is_broken_off_at_the_limit() -> None:
    role = Counting(asyncio.Event)
    rounds = _rounds(role, ManualClock())
    rounds.start()
    await until(lambda: _true(role.at_once == 1))
    await stop_all([rounds], limit_s=0.01)
    assert role.at_once == 0


async def test_stopping_what_never_started_does_nothing() -> None:
    role = Counting()
    await stop_all([_rounds(role, ManualClock())])
    assert role.rounds == 0


async def _true(value: bool) -> bool:
    return value


def _captured() -> AbstractContextManager[list[MutableMapping[str, Any]]]:
    structlog.reset_defaults()
    return capture_logs()
