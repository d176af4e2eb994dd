"""One run through everything that queue, streams and health can do, for tests that look at keys."""

from __future__ import annotations

from dataclasses import replace

from common.backends import BackendSlots, KeyStates
from common.breaker import BreakerStore
from common.contracts import Failure, OnDisconnect, OnInterrupt, Outcome, Priority, State
from common.health import HealthStore, Probe
from common.outbox import Outbox
from common.queue import Settlement
from common.stream import InboxReader, Tokens
from tests.support.seeds import Rig, a_job, job_id, success

LANES = ("0:m", "1:m", "2:m")
BROKEN = Settlement(Outcome(State.FAILED, failure=Failure("attempts_used_up", "x")), dead=True)
EXPIRED = Settlement(Outcome(State.EXPIRED))


async def everything(r: Rig, pool: str) -> None:
    """Runs every script of one pool, each of its branches that touches other keys."""
    await _workers_and_jobs(r, pool)
    await _tokens_and_ends(r, pool)
    await _timers(r, pool)
    health = HealthStore(r.store)
    await health.take_turn(pool, "b", for_ms=1_000)
    await health.note(pool, "b", Probe(succeeded=True, latency_ms=1), life_ms=1_000)
    await health.read(pool)
    await _backends(r, f"of-{pool}")
    await _journal(r, pool)


async def _journal(r: Rig, pool: str) -> None:
    outbox = Outbox(r.store)
    await outbox.sign(pool, "ledger", life_s=1)
    worker = "keeper"
    await r.queue.beat(pool, worker, lease_s=10_000, info={}, register=True)
    await r.queue.submit(a_job(40, pool=pool, journal=True, model="kept"))
    claims = await r.queue.claim(pool, worker, most=1, lanes=("0:kept",))
    assert claims is not None and len(claims) == 1
    await r.queue.finish(claims[0], worker, success())
    r.queue.tell_accounts(pool)
    ended = await outbox.read(pool, "reader", most=10)
    await outbox.ends(pool, ended, most_bytes=1)
    await outbox.strike(pool, [one.entry for one in ended])
    await r.queue.defer(pool, job_id(40, pool))
    await r.queue.erase(job_id(40, pool), "t")
    await r.queue.withdraw(job_id(41, pool))
    await r.queue.leave(pool, worker)


async def _backends(r: Rig, backend: str) -> None:
    breakers, slots, api_keys = BreakerStore(r.store, failures=1), BackendSlots(r.store), KeyStates(r.store)
    await breakers.failed(backend, "w", probe=False)
    r.later(60_000)
    await breakers.ask(backend, "w")
    await breakers.failed(backend, "w", probe=True)
    await breakers.succeeded(backend, "w", probe=False)
    await breakers.read([backend])
    for worker in ("w", "idle"):
        await slots.renew(backend, worker, want=4, in_use=1, most=6, lease_ms=1_000)
    await slots.give_up(backend, "idle")
    await slots.read(backend)
    await api_keys.block(backend, "digest", for_ms=1_000, why="429")
    await api_keys.read(backend)


async def _workers_and_jobs(r: Rig, pool: str) -> None:
    for worker, lease_s in (("w", 10_000), ("dies", 1), ("idle", 10_000)):
        await r.queue.beat(pool, worker, lease_s=lease_s, info={"slots": 4}, concurrency=8, register=True)
    await r.streams.keep_inbox(pool, "g")
    await r.streams.keep_inbox(pool, "g")
    for number in range(1, 10):
        job = a_job(
            number, pool=pool, batch_key="k", on_disconnect=OnDisconnect.CANCEL, on_interrupt=OnInterrupt.RESTART
        )
        await r.queue.submit(job, gateway="g" if number % 2 else "dead-gateway")
    await r.queue.submit(a_job(20, pool=pool, delay_ms=1_000))
    await r.queue.submit(a_job(21, pool=pool, deadline_in_ms=1_000, priority=Priority.BATCH))
    await r.queue.submit(a_job(22, pool=pool, priority=Priority.STANDARD))
    await r.queue.submit(a_job(1, pool=pool))
    keyed = a_job(23, pool=pool, idempotency="k", fingerprint="f", journal=True, priority=Priority.STANDARD)
    await r.queue.submit(keyed)
    await r.queue.submit(replace(keyed, id=job_id(24, pool)))
    await r.queue.submit(replace(keyed, fingerprint="g"))
    await r.queue.by_key(pool, "t", "k")
    await r.queue.leave(pool, "idle")
    await r.queue.get(job_id(1, pool))
    await r.listed("t", most=10, after=job_id(1, pool))
    await r.queue.places(pool, [job_id(1, pool), job_id(22, pool), job_id(99, pool)])


async def _tokens_and_ends(r: Rig, pool: str) -> None:
    claims = await r.queue.claim(pool, "w", most=6, lanes=LANES)
    assert claims is not None and len(claims) == 6
    await r.queue.claim(pool, "dies", most=1, lanes=LANES)
    await r.queue.drain(pool, "dies")
    await r.streams.subscribe(job_id(1, pool), "g2")
    tokens = [Tokens(claim.job.id, claim.fence, 1, b"{}") for claim in claims]
    await r.streams.append(pool, "w", tokens)
    await r.streams.unsubscribe(job_id(1, pool), "g2")
    await r.streams.glance(pool, [job_id(n, pool) for n in (1, 2, 99)])
    await r.streams.after(job_id(1, pool), None)
    async with r.store.blocking() as connection:
        await InboxReader(connection, "g", (pool,)).frames()
    end = success(events=b"{}", events_seq=2, outcome_seq=3, result=b"{}", share_result=True)
    await r.queue.settle(pool, claims[0].job.id, "w", claims[0].fence, end)
    await r.queue.settle(pool, claims[1].job.id, "w", claims[1].fence, BROKEN)
    await r.queue.release(pool, claims[2].job.id, "w", claims[2].fence, failed=True)
    await r.queue.release(pool, claims[3].job.id, "w", claims[3].fence, failed=False, delay_ms=9)
    await r.queue.cancel(claims[4].job.id)
    await r.queue.cancel(job_id(9, pool))


async def _timers(r: Rig, pool: str) -> None:
    r.later(60_000)
    assert await r.queue.promote(pool) == 2
    for job, fence, worker in await r.queue.overdue(pool):
        await r.queue.settle(pool, job, worker, fence, EXPIRED)
    for worker, job, fence in await r.queue.reap(pool):
        await r.queue.release(pool, job, worker, fence, failed=True)
    await r.queue.reap(pool)
    for job in await r.queue.abandoned(pool):
        await r.queue.cancel(job)
    await r.queue.sweep_fair(pool)
    await r.queue.ring(pool, urgent=False)
    await r.queue.ring(pool, urgent=True)
    await r.queue.nudge(pool, "w")
    await r.queue.lanes(pool)
    await r.queue.workers(pool)
    await r.queue.stats(pool)
    await r.queue.held(pool, "w")
    await r.streams.drop_inbox(pool, "g")


async def end_of_it_all(r: Rig, pool: str) -> None:
    """Ends every job that is left and signs every worker off."""
    r.later(10_000_000)
    await r.queue.promote(pool)
    for job, fence, worker in await r.queue.overdue(pool):
        await r.queue.settle(pool, job, worker, fence, EXPIRED)
    for worker, job, fence in await r.queue.reap(pool):
        await r.queue.settle(pool, job, worker, fence, BROKEN)
    await r.queue.reap(pool)
    await r.queue.overdue(pool)
    await r.queue.sweep_fair(pool)
