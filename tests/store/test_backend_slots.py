"""A backend's slots over the fleet: never more than it has, fair shares under contention, nothing lost to the dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common import keys
from common.backends import BackendSlots
from common.store import Store
from tests.support.redis_server import RedisServer
from tests.support.runner import drawn_seed, runner

# Far enough apart that the real seconds of a run decide nothing.
LEASE_MS: Final = 1_000_000
MARGIN_MS: Final = 100_000
B: Final = "gpu-a"


class Rig:
    """One store's view of a backend with ten slots."""

    def __init__(self, store: Store, most: int = 10) -> None:
        self.store = store
        self.slots = BackendSlots(store)
        self.most = most

    async def renew(self, worker: str, want: int, in_use: int = 0) -> int:
        return await self.slots.renew(B, worker, want=want, in_use=in_use, most=self.most, lease_ms=LEASE_MS)

    async def all_renew(self, workers: str, want: int, in_use: int = 0) -> list[int]:
        return [await self.renew(worker, want, in_use) for worker in workers]

    def later(self, by_ms: int) -> None:
        self.store.clock_offset_ms += by_ms


@asynccontextmanager
async def rig(server: RedisServer, most: int = 10) -> AsyncGenerator[Rig]:
    store = Store.from_url(server.url)
    try:
        yield Rig(store, most)
    finally:
        await store.close()


# --- one worker -------------------------------------------------------------------------------------------------------


async def test_a_worker_alone_may_have_all_of_them_and_none_above(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.renew("a", 3) == 3
        assert await r.renew("a", 10, 3) == 10
        assert await r.renew("a", 50, 10) == 10
        assert await r.slots.read(B) == {"a": (10, 10)}
        assert await r.renew("a", 0) == 0
        await r.renew("a", 0)
        assert await r.slots.read(B) == {"a": (0, 0)}


async def test_backends_are_counted_apart(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.renew("a", 10)
        assert await r.slots.renew("gpu-b", "b", want=10, in_use=0, most=4, lease_ms=LEASE_MS) == 4
        assert await r.slots.read("gpu-b") == {"b": (4, 0)}


# --- several ----------------------------------------------------------------------------------------------------------


async def test_a_newcomer_gets_only_what_is_free_and_the_rest_as_calls_end(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.renew("a", 10, 10) == 10
        assert await r.renew("b", 10) == 0
        # It is told its fair share, and uses more until its calls end.
        assert await r.renew("a", 10, 10) == 5
        assert await r.renew("b", 10) == 0
        assert await r.slots.read(B) == {"a": (10, 10), "b": (0, 0)}
        assert await r.renew("a", 10, 8) == 5
        assert await r.renew("b", 10) == 2
        assert await r.renew("a", 10, 5) == 5
        assert await r.renew("b", 10, 2) == 5


async def test_what_a_worker_was_told_before_is_its_own_until_it_renews_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.renew("a", 10, 2) == 10
        assert await r.renew("a", 4, 2) == 4
        # Before that reply came it may have begun ten calls.
        assert await r.renew("b", 10) == 0
        assert await r.renew("a", 4, 4) == 4
        assert await r.renew("b", 10) == 6


async def test_what_was_granted_counts_though_it_is_not_in_use_yet(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        assert await r.renew("a", 8, 0) == 8
        assert await r.renew("b", 8, 0) == 2


@pytest.mark.parametrize(
    ("wants", "shares"),
    [
        ((10, 10), (5, 5)),
        ((2, 10), (2, 8)),
        ((1, 3, 10), (1, 3, 6)),
        ((4, 4, 4, 2), (None, None, None, 2)),
        ((3, 3), (3, 3)),
        ((0, 10), (0, 10)),
        ((5, 5, 5, 5, 5), (2, 2, 2, 2, 2)),
    ],
)
async def test_shares_are_max_min_fair_by_what_each_wants(
    redis_server: RedisServer, wants: tuple[int, ...], shares: tuple[int | None, ...]
) -> None:
    async with rig(redis_server) as r:
        granted: list[int] = []
        for _ in range(4):
            granted = [await r.renew(f"w{i}", want) for i, want in enumerate(wants)]
        assert [got for got, share in zip(granted, shares, strict=True) if share is not None] == [
            share for share in shares if share is not None
        ]
        assert sum(granted) == min(10, sum(wants))
        level = [got for got, share in zip(granted, shares, strict=True) if share is None]
        assert max(level, default=0) - min(level, default=0) <= 1


async def test_what_no_division_gives_out_goes_round(redis_server: RedisServer) -> None:
    async with rig(redis_server, most=1) as r:
        had: set[int] = set()
        granted: list[int] = []
        for _ in range(3):
            for _ in range(3):
                granted = await r.all_renew("abc", 5)
            assert sorted(granted) == [0, 0, 1]
            had.add(granted.index(1))
            r.later(LEASE_MS)
            await r.all_renew("abc", 5)
        assert had == {0, 1, 2}


async def test_a_worker_that_gives_up_leaves_its_slots_to_the_others(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.renew("a", 10)
        assert await r.renew("b", 10) == 0
        await r.slots.give_up(B, "a")
        assert await r.renew("b", 10) == 10
        await r.slots.give_up(B, "b")
        assert redis_server.command("KEYS", "*") == []


# --- the dead ---------------------------------------------------------------------------------------------------------


async def test_a_dead_workers_slots_come_back_when_its_lease_lapses(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.renew("dies", 10, 10)
        r.later(LEASE_MS - MARGIN_MS)
        assert await r.renew("b", 10) == 0
        assert "dies" in await r.slots.read(B)
        r.later(2 * MARGIN_MS)
        assert "dies" not in await r.slots.read(B)
        assert await r.renew("b", 10) == 10
        assert redis_server.command("HKEYS", keys.backend_slots(B)) == [b"b"]


async def test_a_worker_that_wakes_after_its_lease_starts_nothing_beside_its_successors(
    redis_server: RedisServer,
) -> None:
    async with rig(redis_server) as r:
        await r.renew("sleeps", 10, 10)
        r.later(LEASE_MS + MARGIN_MS)
        assert await r.renew("b", 10) == 10
        assert await r.renew("sleeps", 10, 10) == 0
        assert await r.renew("c", 10) == 0
        assert await r.slots.read(B) == {"sleeps": (10, 10), "b": (10, 0), "c": (0, 0)}
        await r.slots.give_up(B, "c")
        # The calls it still has count for the others, too.
        assert await r.renew("b", 10, 4) == 0
        assert await r.renew("b", 10, 4) == 0
        assert await r.renew("sleeps", 10, 2) == 5
        assert await r.renew("b", 10, 4) == 5


async def test_renewing_keeps_a_lease(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        for _ in range(3):
            assert await r.renew("a", 10, 10) == 10
            r.later(LEASE_MS - MARGIN_MS)
            assert await r.renew("a", 10, 10) == 10
            assert await r.slots.read(B) == {"a": (10, 10)}


async def test_the_key_goes_with_the_last_lease(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.renew("a", 1)
        assert 0 < redis_server.command("PTTL", keys.backend_slots(B)) <= LEASE_MS
        await r.slots.renew(B, "b", want=1, in_use=0, most=10, lease_ms=1)
        assert redis_server.command("PTTL", keys.backend_slots(B)) > LEASE_MS - MARGIN_MS


async def test_a_full_redis_still_renews(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        assert await r.renew("a", 3) == 3


# --- a fleet, holders killed at random --------------------------------------------------------------------------------


@dataclass
class Holder:
    """A worker that keeps to what it was told."""

    name: str
    granted: int = 0
    in_use: int = 0
    lease_end_ms: int = 0


class Crowd:
    """Twelve workers on four connections that renew all at once, begin and end calls, and die at random."""

    most: Final = 16
    step_ms: Final = 3 * LEASE_MS // 10

    def __init__(self, stores: list[Store], drawn: random.Random) -> None:
        self.stores = stores
        self.drawn = drawn
        self.slots = [BackendSlots(store) for store in stores]
        self.fleet = [Holder(f"w{number}") for number in range(12)]
        self.dead: list[Holder] = []
        self.now_ms = 0

    async def renewals(self) -> None:
        turns = [self.renew(i, holder) for i, holder in enumerate(self.fleet) if self.drawn.random() < 0.7]
        self.drawn.shuffle(turns)
        await asyncio.gather(*turns)

    async def renew(self, number: int, holder: Holder) -> None:
        slots, want = self.slots[number % len(self.slots)], self.drawn.randrange(24)
        renewal = slots.renew(B, holder.name, want=want, in_use=holder.in_use, most=self.most, lease_ms=LEASE_MS)
        reply = asyncio.ensure_future(renewal)
        await asyncio.sleep(0)
        # It is on its way: calls begin and end by what the worker was told before.
        holder.in_use = self.drawn.randint(0, max(holder.granted, holder.in_use))
        holder.lease_end_ms = self.now_ms + LEASE_MS
        holder.granted = await reply

    def taken(self) -> int:
        """Slots that are used or may be at any moment."""
        live = [holder for holder in (*self.fleet, *self.dead) if holder.lease_end_ms > self.now_ms]
        return sum(max(holder.granted, holder.in_use) for holder in live)

    def calls(self) -> None:
        """Calls begin and end; some die with theirs, and so does whoever won't renew in time."""
        for i, holder in enumerate(self.fleet):
            if self.drawn.random() < 0.6:
                holder.in_use += self.drawn.randint(0, max(0, holder.granted - holder.in_use))
            else:
                holder.in_use = self.drawn.randint(0, holder.in_use)
            if self.drawn.random() < 0.05 or holder.lease_end_ms <= self.now_ms + self.step_ms:
                self.dead.append(holder)
                self.fleet[i] = Holder(f"w{12 + len(self.dead)}")

    def time(self, by_ms: int) -> None:
        self.now_ms += by_ms
        for store in self.stores:
            store.clock_offset_ms = self.now_ms


async def test_a_fleet_that_renews_all_at_once_and_dies_at_random_never_has_too_many(
    redis_server: RedisServer,
) -> None:
    stores = [Store.from_url(redis_server.url) for _ in range(4)]
    crowd = Crowd(stores, random.Random(drawn_seed()))
    try:
        for _ in range(150):
            await crowd.renewals()
            assert crowd.taken() <= crowd.most
            crowd.calls()
            crowd.time(crowd.step_ms)
        assert len(crowd.dead) > 20
        crowd.time(LEASE_MS + MARGIN_MS)
        assert await BackendSlots(stores[0]).renew(B, "last", want=99, in_use=0, most=16, lease_ms=LEASE_MS) == 16
    finally:
        for store in stores:
            await store.close()


# --- beside a model ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What the model knows of a worker's lease."""

    granted: int
    want: int
    in_use: int
    ends_ms: int
    before: int

    @property
    def counts(self) -> int:
        """What it keeps from others."""
        return max(self.granted, self.in_use, self.before)


def fair_level(wants: list[int], most: int) -> tuple[int, bool]:
    """What each gets at least who wants more than it, and whether some get one more; by pouring out one at a time."""
    got = [0] * len(wants)
    left = most
    while left > 0:
        open_ones = [i for i, want in enumerate(wants) if got[i] < want]
        if not open_ones:
            return max(wants, default=0), False
        if len(open_ones) > left:
            return min(got[i] for i in open_ones), True
        for i in open_ones:
            got[i] += 1
            left -= 1
    hungry = [got[i] for i, want in enumerate(wants) if got[i] < want]
    return (min(hungry) if hungry else max(wants, default=0)), False


NAMES: Final = st.sampled_from("abcd")


class Fleet(RuleBasedStateMachine):
    """Each renewal is made on the server and in the model; time passes, calls begin and end, workers vanish."""

    server: RedisServer

    @initialize(most=st.integers(0, 12))
    def begin(self, most: int) -> None:
        self.server.empty()
        self.loop = runner()
        self.r = self.loop.run(self.connect(most))
        self.rows: dict[str, Row] = {}
        self.using: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.now_ms = 0

    async def connect(self, most: int) -> Rig:
        return Rig(Store.from_url(self.server.url), most)

    @rule(worker=NAMES, more=st.integers(0, 15))
    def renews(self, worker: str, more: int) -> None:
        in_use = self.using.get(worker, 0)
        want = in_use + more
        granted = self.loop.run(self.r.renew(worker, want, in_use))
        others = {name: row for name, row in self.rows.items() if name != worker and row.ends_ms > self.now_ms}
        free = self.r.most - sum(row.counts for row in others.values())
        level, one_more = fair_level([want, *(row.want for row in others.values())], self.r.most)
        fair = {min(want, level)} | ({min(want, level + 1)} if one_more else set())
        assert granted in {max(0, min(share, free)) for share in fair}
        self.rows = {**others, worker: self.row(worker, granted, want, in_use)}

    def row(self, worker: str, granted: int, want: int, in_use: int) -> Row:
        """A lease after a renewal; the worker has been told."""
        before, self.told[worker] = self.told.get(worker, 0), granted
        return Row(granted, want, in_use, self.now_ms + LEASE_MS, before)

    @rule(worker=NAMES, number=st.integers(1, 8))
    def begins_calls(self, worker: str, number: int) -> None:
        leased = worker in self.rows and self.rows[worker].ends_ms > self.now_ms
        in_use = self.using.get(worker, 0)
        if leased and in_use < self.told[worker]:
            self.using[worker] = min(self.told[worker], in_use + number)

    @rule(worker=NAMES, number=st.integers(1, 8))
    def ends_calls(self, worker: str, number: int) -> None:
        self.using[worker] = max(0, self.using.get(worker, 0) - number)

    @rule(worker=NAMES)
    def all_its_calls_end(self, worker: str) -> None:
        self.using[worker] = 0

    @rule(worker=NAMES)
    def gives_up(self, worker: str) -> None:
        self.using[worker] = 0
        self.told[worker] = 0
        self.rows.pop(worker, None)
        self.loop.run(self.r.slots.give_up(B, worker))

    @rule(by_ms=st.sampled_from((LEASE_MS // 2 - MARGIN_MS, LEASE_MS // 2 + MARGIN_MS, 2 * LEASE_MS)))
    def time_passes(self, by_ms: int) -> None:
        self.now_ms += by_ms
        self.r.later(by_ms)

    @rule()
    def calls_end_and_all_renew(self) -> None:
        """Once nothing runs, a few rounds bring everybody to the fair share, and give out all that is wanted."""
        live = {name: row for name, row in self.rows.items() if row.ends_ms > self.now_ms}
        for name in live:
            self.using[name] = 0
        granted: dict[str, int] = {}
        for _ in range(4):
            for name, row in live.items():
                granted[name] = self.loop.run(self.r.renew(name, row.want, 0))
                self.rows[name] = self.row(name, granted[name], row.want, 0)
        wants = [row.want for row in live.values()]
        level, _ = fair_level(wants, self.r.most)
        assert all(granted[name] >= min(row.want, level) for name, row in live.items())
        assert sum(granted.values()) == min(sum(wants), self.r.most)

    @invariant()
    def the_server_knows_what_the_model_knows(self) -> None:
        live = {
            name: (max(row.granted, row.before), row.in_use)
            for name, row in self.rows.items()
            if row.ends_ms > self.now_ms
        }
        assert self.loop.run(self.r.slots.read(B)) == live

    @invariant()
    def those_told_in_time_never_use_too_many(self) -> None:
        live = [name for name, row in self.rows.items() if row.ends_ms > self.now_ms]
        assert sum(self.told[name] for name in live) <= self.r.most

    def teardown(self) -> None:
        if hasattr(self, "r"):
            self.loop.run(self.r.store.close())
            self.loop.close()


@pytest.mark.timeout(60)
@pytest.mark.either_server
@pytest.mark.parametrize("courses", [10, pytest.param(40, marks=pytest.mark.lengthy)])
def test_any_course_of_renewals_calls_and_deaths_agrees_with_the_model(redis_server: RedisServer, courses: int) -> None:
    Fleet.server = redis_server
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    course = settings(
        max_examples=courses, stateful_step_count=30, deadline=None, database=None, suppress_health_check=checks
    )
    run_state_machine_as_test(seed(drawn_seed())(Fleet), settings=course)
