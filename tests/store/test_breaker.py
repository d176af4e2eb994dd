"""Breakers: when they open and close, who may probe, and that fifty racers and their deaths never make two probes."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from common import keys
from common.breaker import BreakerStore, BreakerView, Phase, Verdict
from common.store import Argument, Store
from tests.support.linear import UNKNOWN, History, linearize
from tests.support.redis_server import RedisServer
from tests.support.runner import drawn_seed

# Hours, so that the real seconds of a run decide nothing; time moves by the stores' offsets.
FAILURES: Final = 3
COOLOFF_MS: Final = 30_000_000
PROBE_MS: Final = 10_000_000
MARGIN_MS: Final = 1_000_000
B: Final = "gpu-a"


class Rig:
    """Breakers as several processes see them: a store and a BreakerStore each, one time for all."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.breakers = [
            BreakerStore(store, failures=FAILURES, cooloff_s=COOLOFF_MS / 1000, probe_s=PROBE_MS / 1000)
            for store in stores
        ]
        self.one = self.breakers[0]

    @property
    def now_ms(self) -> int:
        return self.stores[0].clock_offset_ms

    def at(self, now_ms: int) -> None:
        """Moves time."""
        for store in self.stores:
            store.clock_offset_ms = now_ms

    def later(self, by_ms: int) -> None:
        self.at(self.now_ms + by_ms)

    async def view(self) -> BreakerView:
        return (await self.one.read([B]))[B]

    async def phase(self) -> Phase:
        return (await self.view()).phase

    async def fail(self, times: int = FAILURES, worker: str = "w") -> None:
        for _ in range(times):
            await self.one.failed(B, worker, probe=False)

    async def probing(self, worker: str = "prober") -> None:
        """An open breaker whose cool-off is over, and this worker its prober."""
        await self.fail()
        self.later(COOLOFF_MS + MARGIN_MS)
        assert await self.one.ask(B, worker) is Verdict.PROBE


@asynccontextmanager
async def rig(server: RedisServer, processes: int = 1, kind: type[Store] = Store) -> AsyncGenerator[Rig]:
    stores = [kind.from_url(server.url) for _ in range(processes)]
    try:
        yield Rig(stores)
    finally:
        for store in stores:
            await store.close()


# --- closed -----------------------------------------------------------------------------------------------------------


async def test_a_breaker_that_nobody_told_anything_is_closed(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.one.read([B, "gpu-b"]) == {B: BreakerView(), "gpu-b": BreakerView()}
        assert await r.one.read([]) == {}
        assert await r.one.ask(B, "w") is Verdict.PASS
        assert redis_server.command("KEYS", "*") == []


async def test_failures_in_a_row_open_it_whoever_has_them(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.one.failed(B, "w1", probe=False) == BreakerView(Phase.CLOSED, 1, 0)
        assert await r.one.failed(B, "w2", probe=False) == BreakerView(Phase.CLOSED, 2, 0)
        assert await r.one.ask(B, "w3") is Verdict.PASS
        opened = await r.one.failed(B, "w3", probe=False)
        assert (opened.phase, opened.failures, opened.retry_ms) == (Phase.OPEN, 3, COOLOFF_MS)
        assert await r.one.ask(B, "w1") is Verdict.REFUSED


async def test_a_success_sets_the_count_back(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail(2)
        assert await r.one.succeeded(B, "w", probe=False) == BreakerView()
        await r.fail(2)
        assert await r.view() == BreakerView(Phase.CLOSED, 2, 0)


async def test_backends_have_breakers_of_their_own(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail()
        seen = await r.one.read(["gpu-b", B])
        assert (seen["gpu-b"].phase, seen[B].phase) == (Phase.CLOSED, Phase.OPEN)
        assert await r.one.ask("gpu-b", "w") is Verdict.PASS


# --- open -------------------------------------------------------------------------------------------------------------


async def test_it_refuses_until_the_cool_off_is_over(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail()
        r.later(COOLOFF_MS - MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.REFUSED
        view = await r.view()
        assert view.phase is Phase.OPEN
        assert 0 < view.retry_ms <= MARGIN_MS
        r.later(2 * MARGIN_MS)
        assert await r.view() == BreakerView(Phase.HALF_OPEN, FAILURES, 0)


async def test_late_failures_of_old_calls_do_not_extend_the_cool_off(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail()
        r.later(COOLOFF_MS // 2)
        late = await r.one.failed(B, "w", probe=False)
        assert (late.phase, late.failures) == (Phase.OPEN, FAILURES)
        assert late.retry_ms <= COOLOFF_MS // 2
        r.later(COOLOFF_MS // 2 + MARGIN_MS)
        assert (await r.one.failed(B, "w", probe=False)).phase is Phase.HALF_OPEN
        assert await r.one.ask(B, "w") is Verdict.PROBE


@pytest.mark.parametrize("waited_ms", [0, COOLOFF_MS + MARGIN_MS])
async def test_a_late_success_of_an_old_call_does_not_close_it(redis_server: RedisServer, waited_ms: int) -> None:
    async with rig(redis_server) as r:
        await r.fail()
        r.later(waited_ms)
        assert (await r.one.succeeded(B, "w", probe=False)).phase is not Phase.CLOSED


# --- half-open --------------------------------------------------------------------------------------------------------


async def test_one_worker_probes_and_the_others_wait_for_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.probing("w1")
        assert await r.one.ask(B, "w2") is Verdict.REFUSED
        assert await r.one.ask(B, "w1") is Verdict.REFUSED
        view = await r.view()
        assert view.phase is Phase.HALF_OPEN
        assert PROBE_MS - MARGIN_MS < view.retry_ms <= PROBE_MS


async def test_a_probe_that_succeeds_closes_it(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.probing()
        assert await r.one.succeeded(B, "prober", probe=True) == BreakerView()
        assert await r.one.ask(B, "w") is Verdict.PASS
        await r.fail(FAILURES - 1)
        assert await r.phase() is Phase.CLOSED


async def test_a_probe_that_fails_opens_it_for_another_cool_off(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.probing()
        again = await r.one.failed(B, "prober", probe=True)
        assert (again.phase, again.failures, again.retry_ms) == (Phase.OPEN, FAILURES + 1, COOLOFF_MS)
        r.later(COOLOFF_MS - MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.REFUSED
        r.later(2 * MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.PROBE


async def test_a_failed_probe_opens_it_also_where_the_prober_would_bear_more(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail()
        r.later(COOLOFF_MS + MARGIN_MS)
        patient = BreakerStore(r.stores[0], failures=10, cooloff_s=COOLOFF_MS / 1000, probe_s=PROBE_MS / 1000)
        assert await patient.ask(B, "prober") is Verdict.PROBE
        assert (await patient.failed(B, "prober", probe=True)).phase is Phase.OPEN


@pytest.mark.parametrize(("worker", "probe"), [("prober", False), ("other", True), ("other", False)])
async def test_only_the_probes_own_report_counts_while_it_runs(
    redis_server: RedisServer, worker: str, probe: bool
) -> None:
    async with rig(redis_server) as r:
        await r.probing()
        assert (await r.one.succeeded(B, worker, probe=probe)).phase is Phase.HALF_OPEN
        assert (await r.one.failed(B, worker, probe=probe)).phase is Phase.HALF_OPEN
        assert (await r.one.succeeded(B, "prober", probe=True)).phase is Phase.CLOSED


async def test_a_dead_prober_holds_the_probe_for_its_time_and_no_longer(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.probing("dies")
        r.later(PROBE_MS - MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.REFUSED
        r.later(2 * MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.PROBE
        assert await r.one.ask(B, "w2") is Verdict.REFUSED


@pytest.mark.parametrize("taken_over", [True, False])
async def test_a_prober_whose_time_is_up_decides_nothing(redis_server: RedisServer, taken_over: bool) -> None:
    async with rig(redis_server) as r:
        await r.probing("late")
        r.later(PROBE_MS + MARGIN_MS)
        assert not taken_over or await r.one.ask(B, "next") is Verdict.PROBE
        assert (await r.one.succeeded(B, "late", probe=True)).phase is Phase.HALF_OPEN
        assert (await r.one.failed(B, "late", probe=True)).phase is Phase.HALF_OPEN
        assert await r.one.ask(B, "w") is (Verdict.REFUSED if taken_over else Verdict.PROBE)


async def test_a_probe_that_is_given_back_may_be_made_at_once_and_decides_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.probing("w1")
        assert await r.one.released(B, "w1") == BreakerView(Phase.HALF_OPEN, FAILURES, 0)
        assert await r.one.ask(B, "w2") is Verdict.PROBE
        assert (await r.one.succeeded(B, "w1", probe=True)).phase is Phase.HALF_OPEN
        assert (await r.one.succeeded(B, "w2", probe=True)).phase is Phase.CLOSED


async def test_nobody_gives_back_the_probe_of_another_nor_what_is_no_probe(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail(1)
        assert await r.one.released(B, "w") == BreakerView(Phase.CLOSED, 1, 0)
        await r.fail(FAILURES - 1)
        assert (await r.one.released(B, "w")).phase is Phase.OPEN
        r.later(COOLOFF_MS + MARGIN_MS)
        assert await r.one.ask(B, "w") is Verdict.PROBE
        assert (await r.one.released(B, "other")).retry_ms > 0
        assert await r.one.ask(B, "other") is Verdict.REFUSED


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_it_outlives_cool_off_and_probe_and_is_forgotten_when_idle(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:

        def life_ms() -> int:
            return redis_server.command("PTTL", keys.breaker(B))

        await r.fail(1)
        assert life_ms() > COOLOFF_MS + PROBE_MS
        await r.fail(2)
        for step in (r.one.ask(B, "prober"), r.one.failed(B, "prober", probe=True)):
            r.later(COOLOFF_MS + MARGIN_MS)
            redis_server.command("PEXPIRE", keys.breaker(B), 60_000)
            await step
            assert COOLOFF_MS + PROBE_MS < life_ms() < 3 * (COOLOFF_MS + PROBE_MS)
            r.later(-MARGIN_MS - COOLOFF_MS)
        redis_server.command("DEL", keys.breaker(B))
        assert await r.phase() is Phase.CLOSED


async def test_it_works_in_a_full_redis(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.fail(1)
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        await r.fail(2)
        r.later(COOLOFF_MS + MARGIN_MS)
        assert await r.one.ask(B, "prober") is Verdict.PROBE
        assert (await r.one.succeeded(B, "prober", probe=True)).phase is Phase.CLOSED


# --- fifty racers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A call to the breaker: which, by whom (where that matters), at what time."""

    what: str
    worker: str
    probe: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Model:
    """A breaker, as the page says it works."""

    failures: int = 0
    open_until_ms: int = 0
    prober: str = ""
    probe_until_ms: int = 0


def breaker_model(state: Model, call: Asked, answer: Any) -> Model | None:
    """The breaker after a call with this answer, a Verdict or a Phase; None where it could not have answered so."""
    after, right = _asked(state, call) if call.what == "ask" else _told(state, call)
    return after if answer in (UNKNOWN, right) else None


def changes_nothing(call: Asked, answer: Any) -> bool:
    """Whether a call with this answer leaves any breaker as it was."""
    if call.what == "ask":
        return answer in (Verdict.PASS, Verdict.REFUSED)
    return answer is Phase.HALF_OPEN or (call.what == "succeeded" and answer is Phase.OPEN)


def possible(history: History, initial: Model) -> bool:
    """Whether the first 200 calls could have been answered so one after another."""
    return linearize(history.first(200), initial, breaker_model, changes_nothing) is not None


def _asked(state: Model, call: Asked) -> tuple[Model, Verdict]:
    if state.open_until_ms == 0:
        return state, Verdict.PASS
    if max(state.open_until_ms, state.probe_until_ms) > call.now_ms:
        return state, Verdict.REFUSED
    return Model(state.failures, state.open_until_ms, call.worker, call.now_ms + PROBE_MS), Verdict.PROBE


def _told(state: Model, call: Asked) -> tuple[Model, Phase]:
    closed = state.open_until_ms == 0
    probes = call.probe and call.worker == state.prober and state.probe_until_ms > call.now_ms
    after = state
    if closed or probes:
        failures = 0 if call.what == "succeeded" else state.failures + 1
        opens = call.what == "failed" and (probes or failures >= FAILURES)
        after = Model(failures, call.now_ms + COOLOFF_MS if opens else 0)
    if after.open_until_ms == 0:
        return after, Phase.CLOSED
    return after, Phase.OPEN if after.open_until_ms > call.now_ms else Phase.HALF_OPEN


@dataclass
class Racer:
    """One worker of fifty. `begun`: calls of its own under way, whose end it will report some time."""

    breaker: BreakerStore
    name: str
    lives: int = 1
    begun: int = 0

    def die(self) -> None:
        """Forgets everything, the probe too, and comes back under another name."""
        self.lives += 1
        self.begun = 0
        self.name = f"{self.name.partition('/')[0]}/{self.lives}"


@dataclass
class Found:
    """What the race came to. `recovered_ms`: the longest from an opening to its end by a probe, one death between."""

    openings: int = 0
    probes: int = 0
    probers_killed: int = 0
    killed_asking: int = 0
    double_probes: int = 0
    recovered_ms: int = 0
    histories: int = 0
    impossible: int = 0
    trouble: list[str] = field(default_factory=list[str])


class Race:
    """Racers at one breaker, opening after opening; probers die, are late, fail or succeed at random."""

    def __init__(self, r: Rig, seed: int, racers: int = 50) -> None:
        self.r = r
        self.random = random.Random(seed)
        self.racers = [Racer(r.breakers[i % len(r.breakers)], f"w{i}") for i in range(racers)]
        self.history = History()
        self.found = Found()
        self.prober: Racer | None = None
        self.held_until_ms = 0
        self.unheard = False
        self.opened_ms = 0
        self.lapsed = 0

    async def run(self, openings: int) -> Found:
        """What was found in at least so many openings; it ends early when enough is wrong."""
        while self.found.openings < openings and len(self.found.trouble) < 3:
            await self.one_cycle()
        return self.found

    async def one_cycle(self) -> None:
        """From closed to closed, with as many openings as probes fail; then the history is checked."""
        self.history = History()
        initial = Model(failures=(await self.r.view()).failures)
        await self.storm()
        while await self.r.phase() is not Phase.CLOSED and len(self.found.trouble) < 3:
            await self.next_probe()
            await self.fate()
        self.found.histories += 1
        if not possible(self.history, initial):
            self.found.impossible += 1
            self.found.trouble.append(f"no order explains the history of opening {self.found.openings}")

    async def storm(self) -> None:
        """Everybody calls, most fail, until it opens."""
        while await self.r.phase() is Phase.CLOSED:
            for racer in self.racers:
                racer.begun = 2
            await self.round(failing=0.8)
        self.opened()

    def opened(self) -> None:
        self.found.openings += 1
        self.opened_ms, self.lapsed, self.prober, self.held_until_ms = self.r.now_ms, 0, None, 0

    async def next_probe(self) -> None:
        """To just before a probe may be made, when nobody may, and past it, when exactly one must."""
        due_ms = max(self.opened_ms + COOLOFF_MS, self.held_until_ms)
        self.lapsed += self.held_until_ms > 0
        self.r.at(due_ms - MARGIN_MS)
        self.no_more_than(0, await self.round())
        self.r.at(due_ms + MARGIN_MS)
        probers = await self.round()
        self.no_more_than(1, probers)
        if not probers and not self.unheard:
            self.found.trouble.append(f"opening {self.found.openings}: nobody was given the probe that was due")
        self.held_until_ms = self.r.now_ms + PROBE_MS

    def no_more_than(self, most: int, probers: list[str]) -> None:
        if len(probers) > most:
            self.found.double_probes += len(probers) - most
            self.found.trouble.append(f"opening {self.found.openings}: {probers} probe, at most {most} may")

    async def fate(self) -> None:
        """What becomes of the probe: its worker is killed, or late, or reports that it failed or succeeded."""
        prober, self.prober = self.prober, None
        end = "killed" if prober is None else self.random.choice(("killed", "late", "failed", "succeeded"))
        if prober is None or end == "killed":
            if prober is not None:
                self.found.probers_killed += 1
                prober.die()
            self.no_more_than(0, await self.round())
        elif end == "late":
            await self.late(prober)
        else:
            self.no_more_than(0, await self.round(report=(prober, end)))
            await self.decided(end)

    async def late(self, prober: Racer) -> None:
        """Its time is up: it reports while the others race for the next probe."""
        self.r.at(self.held_until_ms + MARGIN_MS)
        self.lapsed += 1
        self.no_more_than(1, await self.round(report=(prober, self.random.choice(("failed", "succeeded")))))
        self.held_until_ms = self.r.now_ms + PROBE_MS

    async def decided(self, end: str) -> None:
        if end == "succeeded" and self.lapsed <= 1:
            self.found.recovered_ms = max(self.found.recovered_ms, self.r.now_ms - self.opened_ms)
        # After a success the others' failures may have opened it again in the same round.
        if end == "failed" or await self.r.phase() is not Phase.CLOSED:
            self.opened()

    async def round(self, *, failing: float = 0.5, report: tuple[Racer, str] | None = None) -> list[str]:
        """All racers act at once, in a random order; returns the names of those that were given the probe."""
        self.unheard = False
        acts = [self.act(racer, failing) for racer in self.racers if report is None or racer is not report[0]]
        if report is not None:
            acts.append(self.tell(report[0], report[1], probe=True))
        self.random.shuffle(acts)
        return [name for name in await asyncio.gather(*acts) if name]

    async def act(self, racer: Racer, failing: float) -> str:
        """One step of a racer: a call's end is told, or another may begin; its name where it was given the probe."""
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if racer.begun and self.random.random() < 0.7:
            racer.begun -= 1
            return await self.tell(racer, "failed" if self.random.random() < failing else "succeeded", probe=False)
        if self.random.random() < 0.02:
            return await self.killed_while_asking(racer)
        return await self.ask(racer)

    async def tell(self, racer: Racer, what: str, *, probe: bool) -> str:
        call = self.history.begin(Asked(what, racer.name if probe else "", probe, self.r.now_ms))
        method = racer.breaker.failed if what == "failed" else racer.breaker.succeeded
        self.history.end(call, (await method(B, racer.name, probe=probe)).phase)
        return ""

    async def ask(self, racer: Racer) -> str:
        call = self.history.begin(Asked("ask", racer.name, False, self.r.now_ms))
        verdict = await racer.breaker.ask(B, racer.name)
        self.history.end(call, verdict)
        racer.begun += verdict is Verdict.PASS
        if verdict is not Verdict.PROBE:
            return ""
        self.found.probes += 1
        self.prober = racer
        return racer.name

    async def killed_while_asking(self, racer: Racer) -> str:
        """The question is on its way and nobody hears the answer, which may be that the probe is its."""
        self.history.begin(Asked("ask", racer.name, False, self.r.now_ms))
        asking = asyncio.ensure_future(racer.breaker.ask(B, racer.name))
        await asyncio.sleep(0)
        asking.cancel()
        racer.die()
        self.unheard = True
        self.found.killed_asking += 1
        await asyncio.gather(asking, return_exceptions=True)
        await racer.breaker.read([B])  # by now it has arrived
        return ""


OPENINGS: Final = int(os.environ.get("HEADRACE_TEST_OPENINGS", "40"))


@pytest.mark.lengthy
@pytest.mark.either_server
@pytest.mark.timeout(20 + OPENINGS)
async def test_fifty_racers_never_make_two_probes_and_a_dead_prober_never_stops_the_next(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server, processes=8) as r:
        began_s = asyncio.get_running_loop().time()
        found = await Race(r, drawn_seed()).run(OPENINGS)
        sys.stdout.write(f"{asyncio.get_running_loop().time() - began_s:.1f} s: {found}\n")
    assert found.trouble == []
    assert (found.double_probes, found.impossible) == (0, 0)
    assert found.openings >= OPENINGS
    assert found.probers_killed > 0 and found.killed_asking > 0
    assert 0 < found.recovered_ms <= COOLOFF_MS + PROBE_MS + 2 * MARGIN_MS


class Faulty(Store):
    """A store whose breaker script has one line wrong."""

    right: str
    wrong: str

    def call(self, script: str, prefix: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        if script != "breaker":
            return super().call(script, prefix, keys, args)
        source = self.scripts[script].source
        assert source.count(self.right) == 1
        source = source.replace(self.right, self.wrong)
        return self.command("EVAL", source, len(keys), *keys, prefix, self.clock_offset_ms, *args)


class TwoProbes(Faulty):
    right = " and not held then"
    wrong = " then"


class AnyProbeDecides(Faulty):
    right = "(of_probe and held and prober == worker)"
    wrong = "of_probe"


class OldCallsDecide(Faulty):
    right = "elseif closed or (of_probe and held and prober == worker) then"
    wrong = "else"


class NeverHalfOpen(Faulty):
    right = "if open_until_ms <= now_ms and not held then"
    wrong = "if false then"


@pytest.mark.parametrize("fault", [TwoProbes, AnyProbeDecides, OldCallsDecide, NeverHalfOpen])
async def test_a_planted_fault_is_caught(redis_server: RedisServer, fault: type[Faulty]) -> None:
    async with rig(redis_server, processes=4, kind=fault) as r:
        found = await Race(r, drawn_seed(), racers=20).run(40)
    assert found.trouble
    assert found.double_probes > 0 or fault is not TwoProbes


class Short:
    """A few callers of one breaker for a moment, while time moves under them."""

    def __init__(self, r: Rig, seed: int) -> None:
        self.r = r
        self.random = random.Random(seed)
        self.history = History()

    async def caller(self, number: int) -> None:
        breaker = self.r.breakers[number % len(self.r.breakers)]
        probe = False
        for _ in range(20):
            for _ in range(self.random.randrange(6)):
                await asyncio.sleep(0)
            what = self.random.choice(("ask", "ask", "failed", "failed", "succeeded"))
            reports = what != "ask"
            worker = "" if reports and not probe else f"w{number}"
            call = self.history.begin(Asked(what, worker, reports and probe, self.r.now_ms))
            if what == "ask":
                verdict = await breaker.ask(B, f"w{number}")
                self.history.end(call, verdict)
                probe = verdict is Verdict.PROBE
            else:
                method = breaker.failed if what == "failed" else breaker.succeeded
                self.history.end(call, (await method(B, f"w{number}", probe=probe)).phase)

    async def time(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0.001)
            self.r.later(self.random.choice((0, PROBE_MS // 2, PROBE_MS, COOLOFF_MS)) + MARGIN_MS)

    async def run(self) -> bool:
        """Whether what they saw could have happened."""
        moving = asyncio.ensure_future(self.time())
        await asyncio.gather(*(self.caller(number) for number in range(8)))
        moving.cancel()
        return possible(self.history, Model())


async def failures_of(server: RedisServer, kind: type[Store], histories: int) -> int:
    """How many of these short histories could not have happened."""
    seed = drawn_seed()
    wrong = 0
    for number in range(histories):
        server.command("FLUSHALL")
        async with rig(server, processes=4, kind=kind) as r:
            wrong += not await Short(r, seed + number).run()
    return wrong


async def test_short_histories_can_be_put_in_an_order_while_time_moves(redis_server: RedisServer) -> None:
    assert await failures_of(redis_server, Store, 10) == 0


async def test_the_order_alone_shows_a_planted_double_probe(redis_server: RedisServer) -> None:
    assert await failures_of(redis_server, TwoProbes, 10) > 0
