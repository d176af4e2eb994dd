"""A server without memory left: new work is refused and leaves nothing behind, running work ends."""

from __future__ import annotations

import pytest

from common import keys
from common.contracts import OnDisconnect, OnInterrupt
from common.errors import StoreFull
from common.queue import Cancelling, Released, Settled
from common.stream import InboxReader
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, a_job, job_id, rig


async def test_a_submission_to_a_full_server_is_refused_and_writes_nothing(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(1))
        before = r.view()
        names = sorted(redis_server.command("KEYS", "*"))
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull):
            await r.submit(a_job(2))
        with pytest.raises(StoreFull):
            await r.submit(a_job(3, tenant="new", delay_ms=5))
        assert r.view() == before
        assert sorted(redis_server.command("KEYS", "*")) == names
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        assert [answer.code for answer in await r.submit(a_job(2))] == [0]


async def test_running_work_ends_on_a_full_server(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await r.worker("dies", lease_s=1)
        await r.streams.keep_inbox(POOL, "g")
        for number in range(8):
            await r.queue.submit(
                a_job(number, on_interrupt=OnInterrupt.RESTART, on_disconnect=OnDisconnect.CANCEL), gateway="g"
            )
        await r.submit(a_job(20, delay_ms=1_000), a_job(21, deadline_in_ms=1_000))
        redis_server.command("CONFIG", "SET", "maxmemory", "1")

        claims = await r.claim(5)
        assert len(claims) == 5
        [lost] = await r.claim(1, "dies")
        assert await r.append(claims[0], 1, b"{}") is None
        assert await r.settle(claims[0]) is Settled.ENDED
        assert await r.queue.beat(POOL, "w", lease_s=15, info={"a": 1})
        put_back = await r.queue.release(POOL, claims[1].job.id, "w", claims[1].fence, failed=True)
        assert put_back is Released.PUT_BACK
        held_back = await r.queue.release(POOL, claims[2].job.id, "w", claims[2].fence, failed=True, delay_ms=9_000)
        assert held_back is Released.PUT_BACK
        assert await r.queue.cancel(claims[3].job.id) is Cancelling.TOLD
        assert await r.queue.cancel(job_id(7)) is Cancelling.ENDED
        r.later(1_000)
        assert await r.queue.promote(POOL) == 1
        assert [job for job, *_ in await r.queue.overdue(POOL)] == [job_id(21)]
        assert [row[:2] for row in await r.queue.reap(POOL)] == [("dies", lost.job.id)]
        assert await r.queue.release(POOL, lost.job.id, "dies", lost.fence, failed=True) is Released.PUT_BACK
        assert await r.queue.leave(POOL, "w") is False
        assert await r.queue.sweep_fair(POOL) == 0


async def test_readers_go_on_at_a_full_server(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        claim = await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL), gateway="g")
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        # Without its inbox the gateway's readers would be taken for gone.
        assert await r.streams.keep_inbox(POOL, "g") is False
        assert await r.streams.keep_inbox(POOL, "g") is True
        assert await r.streams.subscribe(job_id(1), "g2")
        await r.streams.unsubscribe(job_id(1), "g2")
        await r.append(claim, 1, b"{}")
        async with r.store.blocking() as connection:
            assert [entry.body for _, entry in await InboxReader(connection, "g", (POOL,)).frames()] == [b"{}"]
        assert await r.streams.glance(POOL, [job_id(1)]) != []
        assert len(await r.streams.after(job_id(1), None)) == 2
        assert r.view().abandoned == set()


async def test_a_process_that_starts_at_a_full_server_finds_its_scripts(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
    redis_server.command("SCRIPT", "FLUSH")
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    async with rig(redis_server) as r:
        assert await r.queue.beat(POOL, "w", lease_s=15, info={})
        assert await r.queue.cancel(job_id(1)) is Cancelling.TOLD
        assert redis_server.command("LLEN", keys.control(POOL, "w")) == 1
