"""No key is for ever: each has a TTL or is one of the few that are bounded by what waits and runs."""

from __future__ import annotations

import random

import pytest

from common import keys
from common.contracts import OnDisconnect, OnInterrupt, Priority
from common.queue import Claim, Released
from tests.store.scenario import end_of_it_all, everything
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig

OPERATIONS = ("submit", "submit", "claim", "settle", "release", "append", "cancel", "join", "leave", "time")


def without_ttl(server: RedisServer) -> set[str]:
    """The kinds of the keys that have no TTL."""
    names = [name.decode() for name in server.command("KEYS", "*")]
    assert all(name.startswith("hr:{") for name in names)
    return {keys.kind_of(name) for name in names if server.command("PTTL", name) == -1}


class Walk:
    """Random steps through the life of jobs."""

    def __init__(self, r: Rig, seed: int) -> None:
        self.r = r
        self.random = random.Random(seed)
        self.claims: list[Claim] = []
        self.count = 0

    async def step(self) -> None:
        await getattr(self, self.random.choice(OPERATIONS))()

    async def submit(self) -> None:
        self.count += 1
        job = a_job(
            self.count,
            priority=self.random.choice(list(Priority)),
            tenant=self.random.choice("ab"),
            delay_ms=self.random.choice([0, 0, 500]),
            deadline_in_ms=self.random.choice([2_000, 600_000]),
            on_disconnect=self.random.choice(list(OnDisconnect)),
            on_interrupt=self.random.choice(list(OnInterrupt)),
            batch_key=self.random.choice(["", "k"]),
        )
        await self.r.queue.submit(job, gateway=self.random.choice(["", "g", "gone"]))

    async def claim(self) -> None:
        self.claims += await self.r.claim(self.random.randint(1, 4))

    async def settle(self) -> None:
        if self.claims:
            await self.r.settle(self.claims.pop())

    async def release(self) -> None:
        if self.claims:
            claim = self.claims.pop()
            delay_ms = self.random.choice([0, 300])
            code = await self.r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=True, delay_ms=delay_ms)
            if code not in (Released.PUT_BACK, Released.REFUSED):
                await self.r.settle(claim)

    async def append(self) -> None:
        for seq, claim in enumerate(self.claims):
            await self.r.append(claim, 1_000 * self.count + seq, b"{}")

    async def cancel(self) -> None:
        await self.r.queue.cancel(job_id(self.random.randint(1, self.count + 1)))

    async def join(self) -> None:
        await self.r.streams.keep_inbox(POOL, "g")
        await self.r.streams.subscribe(job_id(self.random.randint(1, self.count + 1)), "g")

    async def leave(self) -> None:
        await self.r.streams.unsubscribe(job_id(self.random.randint(1, self.count + 1)), "g")

    async def time(self) -> None:
        self.r.later(self.random.randint(0, 500))
        await self.r.queue.promote(POOL)


@pytest.mark.parametrize("seed", range(4))
async def test_after_a_random_run_every_key_has_a_ttl_or_is_allowed_none(redis_server: RedisServer, seed: int) -> None:
    async with rig(redis_server) as r:
        await r.worker(lease_s=10_000)
        walk = Walk(r, seed)
        for _ in range(200):
            await walk.step()
        assert without_ttl(redis_server) <= keys.ALLOWED_WITHOUT_TTL
        await end_of_it_all(r, POOL)
        left = {keys.kind_of(name.decode()) for name in redis_server.command("KEYS", "*")}
        assert left <= {"job", "stream", "jobs", "dead", "stats", "fair", "bell", "urgent", "control", "inbox", "warm"}
        assert without_ttl(redis_server) <= {"dead", "stats", "fair", "bell", "urgent"}
        stats = await r.queue.stats(POOL)
        assert stats["submitted"] == sum(stats.get(s, 0) for s in ("succeeded", "failed", "cancelled", "expired"))
        assert stats["submitted"] == walk.count


async def test_when_all_has_ended_only_bounded_keys_are_left_without_a_ttl(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await everything(r, POOL)
        assert without_ttl(redis_server) <= keys.ALLOWED_WITHOUT_TTL
        await end_of_it_all(r, POOL)
        assert without_ttl(redis_server) <= {"dead", "stats", "fair", "bell", "urgent", "ended"}
        assert all(redis_server.command("LLEN", name) <= 257 for name in (keys.bell(POOL), keys.urgent_bell(POOL)))
        times = {raw.decode() for raw in redis_server.command("HKEYS", keys.fair(POOL))}
        means = {f"m:{c}:{model}" for c in "012" for model in ("m", "kept")}
        assert times <= {f"{kind}:{c}" for kind in "vcg" for c in "012"} | means | {"u"}


async def test_a_record_lives_until_its_deadline_and_as_long_again_as_results_do(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1, deadline_in_ms=1_000_000))
        life_ms = redis_server.command("PTTL", keys.job(POOL, job_id(1)))
        assert 86_400_000 + 1_000_000 < life_ms <= 86_400_000 + 1_000_000 + 3_600_000


async def test_no_step_of_a_jobs_life_takes_its_ttl_away(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        record, stream = keys.job(POOL, job_id(1)), keys.stream(POOL, job_id(1))

        def lives() -> bool:
            return redis_server.command("PTTL", record) > 0 and redis_server.command("PTTL", stream) > 0

        claim = await r.running(a_job(1, on_interrupt=OnInterrupt.RESTART), gateway="g")
        assert lives()
        await r.append(claim, 1, b"{}")
        assert lives()
        await r.queue.release(POOL, job_id(1), "w", claim.fence, failed=True, delay_ms=5)
        r.later(10)
        await r.queue.promote(POOL)
        assert lives()
        [claim] = await r.claim()
        await r.streams.subscribe(job_id(1), "g")
        await r.queue.cancel(job_id(1))
        assert lives()
        await r.settle(claim)
        await r.streams.unsubscribe(job_id(1), "g")
        assert lives()
