"""Asks and their targets over a real store: failover, budgets, breakers, slots, hedges and keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from common.backends import BackendSlots
from common.breaker import BreakerStore, Phase, Verdict
from common.clock import Clock, SystemClock
from common.config import Settings
from common.contracts import Chunk, Failure, Priority
from common.errors import (
    AnswerTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from common.metrics import WorkerMetrics
from common.queue import Claim
from common.store import Store
from tests.support.clock import BriskClock
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import a_job
from workers.attempts import Attempts, Unserved
from workers.breakers import blames_backend
from workers.caller import Ask, Begin
from workers.fleet import Fleet
from workers.providers.base import Call, Embedded, Provider
from workers.providers.registry import KINDS

pytestmark = pytest.mark.either_server

Answering = Callable[[Call], str]


class Steered:
    """A provider whose calls do what the test says for their backend; it keeps what it was asked."""

    kind: ClassVar[str] = "echo"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.does: dict[str, Answering] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.gone: list[str] = []

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError
        yield  # pragma: no cover

    async def embed(self, call: Call) -> Embedded:
        raise NotImplementedError

    async def say(self, call: Call) -> str:
        self.calls.append(call)
        try:
            if (gate := self.gates.get(call.backend.name)) is not None:
                await gate.wait()
        except asyncio.CancelledError:
            self.gone.append(call.backend.name)
            raise
        return self.does.get(call.backend.name, lambda made: f"from {made.backend.name}")(call)

    @property
    def called(self) -> list[str]:
        return [call.backend.name for call in self.calls]


def failing(error: Exception) -> Answering:
    def fail(_: Call) -> str:
        raise error

    return fail


async def work(provider: Provider, call: Call, begin: Begin) -> str:
    """Whole answers: there is nothing between the beginning and the end."""
    assert isinstance(provider, Steered)
    said = await provider.say(call)
    begin()
    return said


class Rig:
    """A worker's calling side."""

    def __init__(self, store: Store, settings: Settings, name: str, room: Callable[[], None], clock: Clock) -> None:
        self.metrics = WorkerMetrics()
        self.clock = clock
        self.provider = Steered()
        self.fleet = Fleet(settings, store, self.clock, worker_id=lambda: name, metrics=self.metrics, room=room)
        providers = dict.fromkeys(KINDS, self.provider)
        self.attempts = Attempts(settings, self.fleet, providers, self.clock, self.metrics)

    async def answer(
        self, model: str = "chain", *, stream: bool = True, moves_on: bool = True, ends_in_s: float = 30, **more: Any
    ) -> str:
        given: dict[str, Any] = {"endpoint": "/v1/chat/completions", "body": {}} | more
        ask = Ask(model=model, stream=stream, ends_s=self.clock.monotonic_s() + ends_in_s, **given)
        return await self.attempts.answer(ask, work, may_move_on=lambda: moves_on)

    async def misses(self, model: str = "chain", **more: Any) -> Unserved:
        with pytest.raises(Unserved) as caught:
            await self.answer(model, **more)
        return caught.value

    async def told(self) -> None:
        await self.fleet.breakers.told()

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"headrace_{name}", labels) or 0


CHAIN = [{"backend": "a", "model": "m"}, {"backend": "b", "model": "m"}]


def settings(**more: Any) -> Settings:
    given: dict[str, Any] = {
        "backends": [{"name": "a", "kind": "echo"}, {"name": "b", "kind": "echo"}],
        "models": {"chain": {"targets": CHAIN}, "only": {"targets": CHAIN[:1]}},
        "lease_s": 2,
    }
    return Settings(**(given | more))


@asynccontextmanager
async def rigs(
    server: RedisServer,
    *names: str,
    room: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
    **more: Any,
) -> AsyncGenerator[Sequence[Rig]]:
    """Workers of one fleet, each with its own connection."""
    stores, clock = [Store.from_url(server.url) for _ in names], clock or SystemClock()
    made = [Rig(store, settings(**more), name, room, clock) for store, name in zip(stores, names, strict=True)]
    following = [asyncio.create_task(rig.fleet.follow()) for rig in made]
    try:
        for rig in made:
            await until(lambda rig=rig: _granted(rig))
        yield made
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for rig, store in zip(made, stores, strict=True):
            await rig.fleet.close()
            await store.close()


async def _granted(rig: Rig) -> bool:
    return rig.fleet.slots.lines.keys() == rig.fleet.slots.spare.keys()


# --- failover --------------------------------------------------------------------------------------------------------


async def test_a_failed_call_goes_to_the_next_target_and_is_paid_for(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w") as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        assert await rig.answer() == "from b"
        assert rig.provider.called == ["a", "b"]
        assert rig.value("retries_total", result="next") == 1


@pytest.mark.parametrize(("error", "moves_on"), [(UpstreamRefused(), True), (UpstreamUnreachable(), False)])
async def test_a_refused_request_and_an_answer_that_was_seen_go_nowhere_else(
    error: UpstreamError, moves_on: bool, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w") as (rig,):
        rig.provider.does["a"] = failing(error)
        missed = await rig.misses(moves_on=moves_on)
        assert (missed.failure.code, missed.backend) == (error.code, "a")
        assert rig.provider.called == ["a"]


async def test_no_more_retries_than_a_tenth_of_the_asks_whatever_fails(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", breaker_failures=10_000) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(UpstreamUnreachable())
        for _ in range(300):
            await rig.misses()
        assert rig.provider.called.count("a") == 300
        assert 30 <= rig.provider.called.count("b") <= 30 + 10


async def test_later_attempts_are_paid_for_too_and_end_where_nothing_is_left(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", breaker_failures=10_000) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        missed = await rig.misses("only")
        claim = _claim(Priority.INTERACTIVE)
        backs = [rig.attempts.again(claim, missed, left_s=600) for _ in range(30)]
        assert 10 <= sum(back is not None for back in backs) <= 11
        batch = rig.attempts.again(_claim(Priority.BATCH), missed, left_s=600)
        assert batch is not None
        assert batch.delay_ms >= 10_000 and batch.counts and batch.backend == "a"


def _claim(priority: Priority, *, failures: int = 0) -> Claim:
    return Claim(a_job(1, priority=priority), 1, 1, failures, 0, 600_000, 0)


async def test_an_unknown_model_is_nobodys(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w") as (rig,):
        missed = await rig.misses("other")
        assert missed.failure.code == "model_not_found"
        assert rig.attempts.again(_claim(Priority.BATCH), missed, left_s=600) is None


# --- breakers --------------------------------------------------------------------------------------------------------

BLAMED = [UpstreamUnreachable(), UpstreamTimeout(), UpstreamProtocolError(), UpstreamError()]
NOT_BLAMED = [UpstreamBusy(), UpstreamRefused(), UpstreamCredentials(), AnswerTooLong()]


@pytest.mark.parametrize("error", [*BLAMED, *NOT_BLAMED], ids=lambda error: type(error).__name__)
def test_a_backend_is_blamed_for_its_own_failures_only(error: UpstreamError) -> None:
    assert blames_backend(error) == (error in BLAMED)


async def test_failures_in_a_row_open_the_breaker_for_every_worker_within_a_second(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "one", "two", clock=BriskClock(5)) as (one, two):
        one.provider.does["a"] = failing(UpstreamUnreachable())
        for _ in range(3):
            assert await one.answer() == "from b"
        await one.told()
        assert one.fleet.breakers.view("a").phase is Phase.OPEN
        assert one.value("backend_breaker", backend="a") == 2

        async def knows() -> bool:
            return two.fleet.breakers.view("a").phase is Phase.OPEN

        await until(knows)
        assert await two.answer() == "from b"
        assert two.provider.called == ["b"]


async def test_a_healthy_backends_call_makes_no_trip_for_its_breaker_its_slot_or_its_success(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w") as (rig,):
        before = _trips(redis_server)
        for _ in range(20):
            await rig.answer()
        await rig.told()
        assert _trips(redis_server) - before < 20  # the followers' own, however slow this machine is


def _trips(server: RedisServer) -> int:
    text: bytes = server.command("INFO", "commandstats")
    lines = [line for line in text.decode().splitlines() if line.startswith("cmdstat_evalsha")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


async def test_one_good_answer_forgives_the_failures_before_it(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w") as (rig,):
        for _ in range(3):
            rig.provider.does["a"] = failing(UpstreamUnreachable())
            for _ in range(2):
                await rig.misses("only")
                await rig.told()
            rig.provider.does.clear()
            assert await rig.answer("only") == "from a"
            await rig.told()
        assert rig.fleet.breakers.view("a").phase is Phase.CLOSED


async def test_where_all_are_open_the_job_comes_back_when_one_may_be_probed_and_nothing_counts(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", breaker_cooloff_s=20) as (rig,):
        await _open(rig, "a")
        missed = await rig.misses("only")
        assert (missed.failure.code, missed.missed.called) == ("upstream_unavailable", False)
        back = rig.attempts.again(_claim(Priority.INTERACTIVE), missed, left_s=600)
        assert back is not None
        assert 15_000 < back.delay_ms < 21_000 and not back.counts
        assert rig.attempts.again(_claim(Priority.INTERACTIVE), missed, left_s=5) is None


async def _open(rig: Rig, backend: str) -> None:
    for _ in range(3):
        rig.fleet.breakers.failed(backend, probe=False)
    await rig.told()
    assert rig.fleet.breakers.view(backend).phase is Phase.OPEN


async def test_after_the_cool_off_one_call_probes_and_its_first_token_closes_the_breaker(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "one", "two", breaker_cooloff_s=0.2) as (one, two):
        gate = one.provider.gates["a"] = asyncio.Event()
        await _open(one, "a")

        async def probing() -> bool:
            return len(one.provider.calls) == 1

        async def due() -> bool:
            return one.fleet.wait_ms("a") == 0

        await until(due)
        probe = asyncio.create_task(one.answer("only"))
        await until(probing)
        assert await _refused(two, "a")
        assert (await one.misses("only")).missed.called is False
        gate.set()
        assert await probe == "from a"
        await one.told()
        assert one.fleet.breakers.view("a").phase is Phase.CLOSED


async def _refused(rig: Rig, backend: str) -> bool:
    await rig.fleet.breakers.refresh()
    return await rig.fleet.breakers.ask(backend) is Verdict.REFUSED


async def test_nobody_waits_in_the_line_of_a_backend_that_is_known_to_refuse(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **NARROW) as (rig,):
        gate = rig.provider.gates["a"] = asyncio.Event()
        hanging = [asyncio.create_task(rig.answer("only")) for _ in range(3)]

        async def full() -> bool:
            return len(rig.provider.calls) == 3

        await until(full)
        await _open(rig, "a")
        assert (await rig.misses("only")).failure.code == "upstream_unavailable"
        gate.set()
        await asyncio.gather(*hanging)


async def test_a_probe_that_fails_opens_the_breaker_again(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", breaker_cooloff_s=0.2) as (rig,):
        await _open(rig, "a")
        rig.provider.does["a"] = failing(UpstreamUnreachable())

        async def due() -> bool:
            return rig.fleet.wait_ms("a") == 0

        await until(due)
        missed = await rig.misses("only")
        assert missed.missed.called
        await rig.told()
        assert rig.fleet.breakers.view("a").phase is Phase.OPEN


async def test_a_jobs_own_deadline_is_not_the_backends_failure(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", breaker_failures=1) as (rig,):
        rig.provider.does["a"] = failing(UpstreamTimeout())
        await rig.misses("only", ends_in_s=0.01)
        await rig.told()
        assert rig.fleet.breakers.view("a").phase is Phase.CLOSED
        await rig.misses("only", ends_in_s=30)
        await rig.told()
        assert rig.fleet.breakers.view("a").phase is Phase.OPEN


async def test_reports_are_kept_while_the_store_is_away(own_server: RedisServer) -> None:
    async with rigs(own_server, "w") as (rig,):
        own_server.kill()
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        for _ in range(3):
            assert await rig.answer() == "from b"
        own_server.start()
        await rig.told()
        store = Store.from_url(own_server.url)
        try:
            assert (await BreakerStore(store).read(["a"]))["a"].phase is Phase.OPEN
        finally:
            await store.close()


# --- slots -----------------------------------------------------------------------------------------------------------

NARROW: dict[str, Any] = {"backends": [{"name": "a", "kind": "echo", "concurrency": 3}, {"name": "b", "kind": "echo"}]}


async def test_all_workers_together_never_make_more_calls_than_a_backend_takes(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "one", "two", **NARROW) as (one, two):
        gate = asyncio.Event()
        for rig in (one, two):
            rig.provider.gates["a"] = gate
        tasks = [asyncio.create_task(rig.answer("only")) for _ in range(10) for rig in (one, two)]

        async def busy() -> bool:
            return len(one.provider.calls) + len(two.provider.calls) == 3

        await until(busy)
        held = await BackendSlots(one.fleet.slots._store._store).read("a")
        assert sum(granted for granted, _ in held.values()) <= 3
        gate.set()
        assert await asyncio.gather(*tasks) == ["from a"] * 20


async def test_a_full_backends_room_is_told_before_work_is_taken(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **NARROW) as (rig,):
        gate = rig.provider.gates["a"] = asyncio.Event()
        assert rig.fleet.slots.obtainable("a") == 3
        tasks = [asyncio.create_task(rig.answer("only")) for _ in range(5)]

        async def full() -> bool:
            return len(rig.provider.calls) == 3 and rig.fleet.slots.obtainable("a") == 0

        await until(full)
        gate.set()
        await asyncio.gather(*tasks)

        async def free() -> bool:
            return rig.fleet.slots.obtainable("a") == 3

        await until(free)


async def test_a_worker_that_leaves_gives_its_slots_back(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w") as (rig,):
        assert rig.fleet.slots.lines["a"].granted > 0
    assert redis_server.command("KEYS", "hr:{b:a}:slots") == []


@pytest.mark.lengthy
async def test_without_a_store_no_call_is_begun_once_the_lease_of_its_slot_has_lapsed(own_server: RedisServer) -> None:
    async with rigs(own_server, "w", lease_s=0.6) as (rig,):
        own_server.kill()

        async def lapsed() -> bool:
            return rig.fleet.slots.lines["a"].granted == 0

        await until(lapsed)
        call = asyncio.create_task(rig.answer("only"))
        own_server.start()
        assert await call == "from a"


async def test_a_worker_hears_when_there_is_room_again(redis_server: RedisServer) -> None:
    heard = asyncio.Event()
    async with rigs(redis_server, "w", room=heard.set, breaker_cooloff_s=0.5, clock=BriskClock(5)) as (rig,):
        await heard.wait()
        await _open(rig, "a")

        async def refused() -> bool:
            heard.clear()
            return "a" not in rig.fleet._roomy

        await until(refused)
        await heard.wait()
        assert rig.fleet.wait_ms("a") == 0


# --- hedging ---------------------------------------------------------------------------------------------------------

SMALL = [{"name": name, "kind": "echo", "concurrency": 2} for name in "ab"]
HEDGED: dict[str, Any] = {"models": {"chain": {"targets": CHAIN, "hedge_after_ms": 20}}}


async def test_a_slow_call_is_hedged_and_the_loser_is_hung_up_on(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **HEDGED) as (rig,):
        rig.provider.gates["a"] = asyncio.Event()
        assert await rig.answer() == "from b"
        assert (rig.provider.called, rig.provider.gone) == (["a", "b"], ["a"])
        assert rig.value("hedges_total", result="won") == 1
        assert rig.fleet.slots.lines["a"].in_use == 0


async def test_a_small_backend_that_nobody_has_called_yet_is_hedged_to(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", backends=SMALL, **HEDGED) as (rig,):
        rig.provider.gates["a"] = asyncio.Event()
        assert rig.fleet.slots.lines["b"].granted == 0
        assert await rig.answer() == "from b"


async def test_hedges_are_a_twentieth_of_the_calls_at_most(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **HEDGED) as (rig,):
        gate = rig.provider.gates["a"] = asyncio.Event()
        tasks = [asyncio.create_task(rig.answer()) for _ in range(60)]

        async def asked() -> bool:
            return rig.provider.called.count("a") == 60

        await until(asked)
        first = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(first[0]) >= 1
        gate.set()
        await asyncio.gather(*tasks)
        assert rig.provider.called.count("b") <= 60 * 0.05 + 1


async def test_an_answer_of_one_piece_is_never_hedged(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **HEDGED) as (rig,):
        gate = rig.provider.gates["a"] = asyncio.Event()
        rig.provider.does["a"] = failing(UpstreamRefused())
        whole = asyncio.create_task(rig.misses(stream=False))
        await rig.answer(stream=True)
        gate.set()
        await whole
        assert rig.provider.called == ["a", "a", "b"]


async def test_a_job_that_is_stopped_ends_both_calls(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **HEDGED) as (rig,):
        rig.provider.gates["a"] = rig.provider.gates["b"] = asyncio.Event()
        task = asyncio.create_task(rig.answer())

        async def both() -> bool:
            return rig.provider.called == ["a", "b"]

        await until(both)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert sorted(rig.provider.gone) == ["a", "b"]


async def test_where_the_first_fails_while_the_second_is_asked_the_second_answers(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **HEDGED) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        for name in "ab":
            rig.provider.gates[name] = asyncio.Event()
        task = asyncio.create_task(rig.answer())

        async def both() -> bool:
            return rig.provider.called == ["a", "b"]

        await until(both)
        rig.provider.gates["a"].set()
        rig.provider.gates["b"].set()
        assert await task == "from b"


# --- keys ------------------------------------------------------------------------------------------------------------

KEYED: dict[str, Any] = {
    "backends": [{"name": "a", "kind": "echo", "api_keys": ["k1", "k2", "k3"]}, {"name": "b", "kind": "echo"}],
    "retry_budget": 0.0,
}


def keyed(bad: str, error: UpstreamError, status: int) -> Answering:
    def answer(call: Call) -> str:
        assert call.on_answer is not None
        if call.api_key == bad:
            call.on_answer(status, {})
            raise error
        call.on_answer(200, {})
        return f"with {call.api_key}"

    return answer


@pytest.mark.parametrize(
    ("error", "status", "rests_s"),
    [
        (UpstreamBusy(), 429, 2),
        (UpstreamBusy(retry_after_s=34), 413, 34),
        (UpstreamBusy(retry_after_s=34), 429, 34),  # which no header said
        (UpstreamCredentials(), 401, 300),
        (UpstreamCredentials(), 429, 300),
    ],
)
async def test_a_refused_key_is_replaced_at_once_without_a_retry_and_others_hear_of_it(
    error: UpstreamError, status: int, rests_s: int, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "one", "two", clock=BriskClock(5), **KEYED) as (one, two):
        one.provider.does["a"] = keyed("k2", error, status)
        assert {await one.answer("only") for _ in range(6)} == {"with k1", "with k3"}
        assert [call.api_key for call in one.provider.calls].count("k2") == 1

        async def knows() -> bool:
            return two.fleet.keys["a"].usable == 2

        if rests_s > 2:
            await until(knows)
            for _ in range(6):
                await two.answer("only")
            assert "k2" not in [call.api_key for call in two.provider.calls]


async def test_where_every_key_rests_the_job_waits_for_the_first_and_no_call_is_made(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **KEYED) as (rig,):
        rig.provider.does["a"] = lambda call: keyed(call.api_key or "", UpstreamBusy(), 429)(call)
        first = await rig.misses("only")
        assert (first.failure.code, len(rig.provider.calls)) == ("upstream_busy", 3)
        second = await rig.misses("only")
        assert (second.missed.called, len(rig.provider.calls)) == (False, 3)
        assert 0 < second.missed.soonest_ms <= 2_001


@pytest.mark.parametrize(("status", "retry_after_s"), [(503, 5), (529, 5), (498, 5), (413, None)])
async def test_a_server_that_is_busy_itself_or_asked_for_too_much_costs_no_second_key(
    status: int, retry_after_s: float | None, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **KEYED) as (rig,):
        error = UpstreamBusy(retry_after_s=retry_after_s)
        rig.provider.does["a"] = lambda call: keyed(call.api_key or "", error, status)(call)
        await rig.misses("only")
        assert (len(rig.provider.calls), rig.fleet.keys["a"].usable) == (1, 3)


def test_a_failure_tells_nothing_of_keys() -> None:
    assert "k1" not in repr(Failure("upstream_busy", str(UpstreamBusy())))
