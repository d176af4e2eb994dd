"""Seed and look: jobs with small numbers for ids, a rig of store, queue and streams, and a view of all a pool holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from common import keys
from common.contracts import Job, Outcome, Priority, State
from common.outbox import Outbox
from common.queue import Admitted, Claim, Queue, Settled, Settlement
from common.store import REPLY_TIMEOUT_S, Store
from common.stream import Refusal, StreamStore, Tokens
from gateway.listing import Listing
from tests.support.redis_server import RedisServer

POOL: Final = "default"
MODEL: Final = "m"
ALL_LANES: Final = tuple(keys.lane_name(priority, MODEL) for priority in Priority)


def job_id(number: int, pool: str = POOL) -> str:
    """The id of job `number`."""
    return f"job_{pool}_{number:032x}"


def number_of(job: str | bytes) -> int:
    """The number of the job with this id."""
    text = job.decode() if isinstance(job, bytes) else job
    return int(text.rpartition("_")[2], 16)


def a_job(number: int, *, pool: str = POOL, **changes: Any) -> Job:
    """Job `number`: a small chat request of tenant `t`, interactive, but for the changes."""
    values: dict[str, Any] = {
        "tenant": "t",
        "endpoint": "/v1/chat/completions",
        "model": MODEL,
        "body": {"messages": [{"role": "user", "content": f"prompt {number}"}]},
    }
    return Job(id=job_id(number, pool), pool=pool, **(values | changes))


def success(**changes: Any) -> Settlement:
    """The end of a job that went well."""
    return Settlement(Outcome(State.SUCCEEDED, finish_reason="stop"), **changes)


@dataclass
class View:
    """All that a pool holds, in job numbers; times are left out, so that two views compare."""

    states: dict[int, str] = field(default_factory=dict[int, str])
    lanes: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    named: set[str] = field(default_factory=set[str])
    delayed: list[int] = field(default_factory=list[int])
    held: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    deadlines: set[int] = field(default_factory=set[int])
    abandoned: set[int] = field(default_factory=set[int])
    dead: list[int] = field(default_factory=list[int])
    workers: set[str] = field(default_factory=set[str])
    bells: int = 0
    stats: dict[str, int] = field(default_factory=dict[str, int])
    waiting: dict[str, int] = field(default_factory=dict[str, int])
    streams: dict[int, list[tuple[str, bytes]]] = field(default_factory=dict[int, list[tuple[str, bytes]]])


def view(server: RedisServer, pool: str = POOL) -> View:
    """What the pool holds now. A stream is the list of its entries' (kind, body)."""
    seen = View()
    prefix = keys.pool_prefix(pool)
    for raw in sorted(server.command("KEYS", prefix + "*")):
        name = raw.decode()
        _KINDS.get(keys.kind_of(name), _nothing)(server, name, seen)
    return seen


def _nothing(_server: RedisServer, _name: str, _seen: View) -> None:
    """Keys that say nothing of the jobs: health, worker info, control lists, inboxes, fair-share times."""


def _job(server: RedisServer, name: str, seen: View) -> None:
    seen.states[number_of(name)] = server.command("HGET", name, "state").decode()


def _stream(server: RedisServer, name: str, seen: View) -> None:
    entries = server.command("XRANGE", name, "-", "+")
    seen.streams[number_of(name)] = [(fields[0].decode(), fields[1]) for _, fields in entries]


def _lane(server: RedisServer, name: str, seen: View) -> None:
    seen.lanes[name.partition(":lane:")[2]] = [
        number_of(member.rpartition(b"|")[2]) for member in server.command("ZRANGE", name, 0, -1)
    ]


def _numbers(server: RedisServer, name: str) -> list[int]:
    return [number_of(member) for member in server.command("ZRANGE", name, 0, -1)]


def _held(server: RedisServer, name: str, seen: View) -> None:
    seen.held[name.partition(":held:")[2]] = {number_of(raw) for raw in server.command("HKEYS", name)}


def _stats(server: RedisServer, name: str, seen: View) -> None:
    flat = server.command("HGETALL", name)
    seen.stats = {key.decode(): int(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _waiting(server: RedisServer, name: str, seen: View) -> None:
    flat = server.command("HGETALL", name)
    seen.waiting = {key.decode(): int(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _bell(server: RedisServer, name: str, seen: View) -> None:
    if name.endswith((":bell", ":urgent")):  # not a worker's own
        seen.bells += server.command("LLEN", name)


_KINDS: Final = {
    "job": _job,
    "stream": _stream,
    "lane": _lane,
    "held": _held,
    "stats": _stats,
    "waiting": _waiting,
    "lanes": lambda server, name, seen: setattr(seen, "named", {n.decode() for n in server.command("SMEMBERS", name)}),
    "delayed": lambda server, name, seen: setattr(seen, "delayed", _numbers(server, name)),
    "deadlines": lambda server, name, seen: setattr(seen, "deadlines", set(_numbers(server, name))),
    "abandoned": lambda server, name, seen: setattr(seen, "abandoned", set(_numbers(server, name))),
    "dead": lambda server, name, seen: setattr(seen, "dead", _numbers(server, name)),
    "bell": _bell,
    "urgent": _bell,
    "workers": lambda server, name, seen: setattr(
        seen, "workers", {w.decode() for w in server.command("ZRANGE", name, 0, -1)}
    ),
}


class Rig:
    """A store, its queue and its streams, with shorter ways to say what tests say often."""

    def __init__(self, server: RedisServer, store: Store, **options: Any) -> None:
        self.server = server
        self.store = store
        self.queue = Queue(store, **options)
        self.streams = StreamStore(store)

    def view(self) -> View:
        """What the pool holds now."""
        return view(self.server)

    def later(self, milliseconds: int) -> None:
        """Moves the clock of this rig's scripts forward (or back)."""
        self.store.clock_offset_ms += milliseconds

    async def listed(self, tenant: str, *, most: int, after: str | None = None) -> list[str] | None:
        """The tenant's job ids as a gateway without a ledger lists them."""
        return await Listing(Outbox(self.store), (POOL,), None).page(tenant, most=most, after=after)

    async def submit(self, *jobs: Job) -> list[Admitted]:
        """The answers to these submissions, made one after the other."""
        return [await self.queue.submit(job) for job in jobs]

    async def worker(self, name: str = "w", *, lease_s: float = 15) -> None:
        """Registers a worker."""
        assert await self.queue.beat(POOL, name, lease_s=lease_s, info={}, register=True)

    async def claim(self, most: int = 1, worker: str = "w", lanes: Sequence[str] = ALL_LANES) -> list[Claim]:
        """What a worker with a lease gets."""
        claims = await self.queue.claim(POOL, worker, most=most, lanes=lanes)
        assert claims is not None
        return claims

    async def numbers(self, most: int = 1, worker: str = "w", lanes: Sequence[str] = ALL_LANES) -> list[int]:
        """The numbers of the jobs that a claim gets."""
        return [number_of(claim.job.id) for claim in await self.claim(most, worker, lanes)]

    async def running(self, job: Job, worker: str = "w", *, gateway: str = "") -> Claim:
        """This job, submitted and claimed by this worker (registered here)."""
        await self.worker(worker)
        await self.queue.submit(job, gateway=gateway)
        claims = await self.claim(1, worker, (keys.lane_name(job.priority, job.model),))
        assert [claim.job.id for claim in claims] == [job.id]
        return claims[0]

    async def settle(self, claim: Claim, worker: str = "w", end: Settlement | None = None) -> Settled:
        """The answer to ending a claimed job, well by default."""
        code = await self.queue.finish(claim, worker, end or success())
        self.queue.tell_accounts(POOL)
        # Nobody waits for those; what is sent after them is answered after them.
        await self.store.command("PING")
        return code

    async def append(self, claim: Claim, last_seq: int, events: bytes, worker: str = "w") -> Refusal | None:
        """Why one job's tokens were refused, or None."""
        refusals = await self.streams.append(POOL, worker, [Tokens(claim.job.id, claim.fence, last_seq, events)])
        return refusals.get(claim.job.id)

    def job(self, number: int) -> dict[str, bytes]:
        """A job's record as it stands."""
        flat = self.server.command("HGETALL", keys.job(POOL, job_id(number)))
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def ids(self, number: int) -> list[str]:
        """The entry ids of a job's stream."""
        return [raw.decode() for raw, _ in self.server.command("XRANGE", keys.stream(POOL, job_id(number)), "-", "+")]


@asynccontextmanager
async def rig(
    server: RedisServer, *, url: str | None = None, reply_timeout_s: float = REPLY_TIMEOUT_S, **options: Any
) -> AsyncGenerator[Rig]:
    """A rig on this server; its connections are closed at the end."""
    store = Store.from_url(url or server.url, reply_timeout_s=reply_timeout_s)
    try:
        yield Rig(server, store, **options)
    finally:
        await store.close()
