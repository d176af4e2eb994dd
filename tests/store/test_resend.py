"""What is safe to send again: each operation is carried out, its reply is lost, and it is sent once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from common import keys
from common.contracts import OnDisconnect, OnInterrupt
from common.errors import StoreUnavailable
from common.queue import Cancelling, Claim, Released, Settled, Submitted
from common.stream import Tokens
from tests.support.proxy import DropReply, Ending, Proxy
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig, a_job, job_id, rig, success


@dataclass
class Case:
    """An operation on job 1 (which `w` runs) or on job 2 (which waits), and what it says the second time."""

    name: str
    act: Callable[[Rig, Claim], Awaitable[object]]
    second: Callable[[object], bool]


async def submit_code(r: Rig) -> Submitted:
    return (await r.queue.submit(a_job(9))).code


CASES = [
    Case("submit", lambda r, _: submit_code(r), lambda answer: answer is Submitted.DUPLICATE),
    Case("beat", lambda r, _: r.queue.beat(POOL, "w", lease_s=50, info={"a": 1}), lambda answer: answer is True),
    Case(
        "register",
        lambda r, _: r.queue.beat(POOL, "new", lease_s=50, info={}, register=True),
        lambda answer: answer is True,
    ),
    Case("leave", lambda r, _: r.queue.leave(POOL, "idle"), lambda answer: answer is True),
    Case("settle", lambda r, claim: r.settle(claim), lambda answer: answer is Settled.ALREADY),
    Case(
        "settle with tokens",
        lambda r, claim: r.settle(claim, end=success(events=b"{}", events_seq=5, outcome_seq=6, result=b"{}")),
        lambda answer: answer is Settled.ALREADY,
    ),
    Case(
        "release",
        lambda r, claim: r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=True),
        lambda answer: answer is Released.REFUSED,
    ),
    Case(
        "release with a delay",
        lambda r, claim: r.queue.release(POOL, claim.job.id, "w", claim.fence, failed=True, delay_ms=9_000),
        lambda answer: answer is Released.REFUSED,
    ),
    Case(
        "cancel of a running job", lambda r, claim: r.queue.cancel(job_id(1)), lambda answer: answer is Cancelling.TOLD
    ),
    Case("append", lambda r, claim: r.append(claim, 5, b"{}"), lambda answer: answer is None),
    Case(
        "append of two",
        lambda r, claim: r.streams.append(POOL, "w", [Tokens(claim.job.id, claim.fence, n, b"{}") for n in (5, 6)]),
        lambda answer: answer == {},
    ),
    Case("subscribe", lambda r, _: r.streams.subscribe(job_id(1), "g2"), lambda answer: answer is True),
    Case("unsubscribe", lambda r, _: r.streams.unsubscribe(job_id(1), "g"), lambda answer: answer is None),
    Case("keep an inbox", lambda r, _: r.streams.keep_inbox(POOL, "g3"), lambda answer: answer is True),
    Case("promote", lambda r, _: r.queue.promote(POOL), lambda answer: answer == 0),
    Case("sweep", lambda r, _: r.queue._sweep_lane(POOL, "0:gone", [b"f:0:gone:t"]), lambda answer: answer == 0),
]


async def seeded(r: Rig) -> Claim:
    """Job 1 runs, 2 waits, 3 is delayed and due; a worker is idle; a tenant's time of an empty lane is left over."""
    claim = await r.running(a_job(1, on_disconnect=OnDisconnect.CANCEL, on_interrupt=OnInterrupt.RESTART), gateway="g")
    await r.streams.keep_inbox(POOL, "g")
    await r.submit(a_job(2), a_job(3, delay_ms=1))
    await r.worker("idle")
    r.server.command("HSET", keys.fair(POOL), "f:0:gone:t", 5)
    return claim


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_operation_whose_reply_was_lost_may_be_sent_again(redis_server: RedisServer, case: Case) -> None:
    async with rig(redis_server) as r, Proxy(redis_server.port) as proxy:
        claim = await seeded(r)
        async with rig(redis_server, url=proxy.url) as far:
            far.later(1_000)
            await far.store.command("PING")
            before = everything(redis_server)
            proxy.fault = DropReply(1, Ending.RESET)
            with pytest.raises(StoreUnavailable):
                await case.act(far, claim)
            assert proxy.fault.struck.is_set()
            applied, seen = everything(redis_server), r.view()
            assert applied != before
            assert case.second(await case.act(far, claim))
        assert r.view() == seen
        assert record_times(everything(redis_server)) == record_times(applied)


async def test_a_cancel_of_a_waiting_job_may_be_sent_again_whichever_of_its_replies_was_lost(
    redis_server: RedisServer,
) -> None:
    for number, nth in ((1, 1), (2, 2)):
        async with rig(redis_server) as r, Proxy(redis_server.port) as proxy:
            await r.submit(a_job(number))
            async with rig(redis_server, url=proxy.url) as far:
                await far.store.command("PING")
                proxy.fault = DropReply(nth)
                with pytest.raises(StoreUnavailable):
                    await far.queue.cancel(job_id(number))
                assert await far.queue.cancel(job_id(number)) is Cancelling.ENDED
            assert [kind for kind, _ in r.view().streams[number]] == ["o"]
            assert r.view().stats["cancelled"] == number


async def test_a_claim_whose_reply_was_lost_is_found_among_what_the_worker_holds(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r, Proxy(redis_server.port) as proxy:
        await r.worker()
        await r.submit(a_job(1), a_job(2))
        async with rig(redis_server, url=proxy.url) as far:
            await far.store.command("PING")
            proxy.fault = DropReply(1)
            with pytest.raises(StoreUnavailable):
                await far.claim(2)
            held = await far.queue.held(POOL, "w")
            assert sorted(held) == [job_id(1), job_id(2)]
            for job, fence in held.items():
                assert await far.queue.release(POOL, job, "w", fence, failed=False) is Released.PUT_BACK
            assert await far.numbers(2) == [1, 2]


@pytest.mark.parametrize("act", ["reap", "overdue", "abandoned"])
async def test_a_list_whose_reply_was_lost_is_the_same_the_second_time(redis_server: RedisServer, act: str) -> None:
    async with rig(redis_server) as r, Proxy(redis_server.port) as proxy:
        await seeded(r)
        await r.streams.unsubscribe(job_id(1), "g")
        async with rig(redis_server, url=proxy.url) as far:
            far.later(700_000)
            await far.store.command("PING")
            expected = await getattr(far.queue, act)(POOL)
            assert expected
            proxy.fault = DropReply(1)
            with pytest.raises(StoreUnavailable):
                await getattr(far.queue, act)(POOL)
            assert await getattr(far.queue, act)(POOL) == expected


def everything(server: RedisServer) -> dict[str, object]:
    """Every key with its value, as the server dumps it."""
    return {
        name.decode(): _VALUE[server.command("TYPE", name).decode()](server, name)
        for name in sorted(server.command("KEYS", "*"))
    }


def record_times(values: dict[str, object]) -> dict[str, object]:
    """Without what may differ harmlessly in a repeat: lease ends, worker info, orders, inboxes, times of grace."""
    moving = {"workers", "worker", "control", "inbox", "abandoned"}
    return {name: value for name, value in values.items() if keys.kind_of(name) not in moving}


_VALUE: dict[str, Callable[[RedisServer, bytes], object]] = {
    "string": lambda server, name: server.command("GET", name),
    "hash": lambda server, name: sorted(server.command("HGETALL", name)),
    "list": lambda server, name: server.command("LRANGE", name, 0, -1),
    "set": lambda server, name: sorted(server.command("SMEMBERS", name)),
    "zset": lambda server, name: server.command("ZRANGE", name, 0, -1, "WITHSCORES"),
    "stream": lambda server, name: server.command("XRANGE", name, "-", "+"),
}
