"""The queue: jobs, lanes, leases. Typed functions in front of the scripts; the only writer of their keys.

Each state change is one script of `common/lua`. What is safe to send again says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Final

import orjson
import structlog

from common import keys
from common.contracts import Failure, Job, JsonObject, Outcome, Priority, State, pool_of
from common.errors import StoreFull
from common.store import Store

log = structlog.get_logger(__name__)

BATCH_WINDOW: Final = 64
SLACK_MS: Final = {Priority.INTERACTIVE: 0, Priority.STANDARD: 2_000, Priority.BATCH: 60_000}
AGED_SHARE: Final = 0.1
CONTROL_LIFE_MS: Final = 600_000
TENANT_JOBS_MOST: Final = 10_000
RECORD_MARGIN_MS: Final = 3_600_000


class Submitted(IntEnum):
    """What `submit.lua` answered."""

    ACCEPTED = 0
    DUPLICATE = 1
    FULL = 2


class Settled(IntEnum):
    """What `settle.lua` answered."""

    ENDED = 0
    REFUSED = 1
    UNKNOWN = 2
    ALREADY = 3

    @property
    def done(self) -> bool:
        """Whether the job has this end now."""
        return self in (Settled.ENDED, Settled.ALREADY)


class Released(IntEnum):
    """What `release.lua` answered; from INTERRUPTED on, the caller must settle the job."""

    PUT_BACK = 0
    REFUSED = 1
    INTERRUPTED = 2
    ATTEMPTS_USED_UP = 3
    CANCELLED = 4
    EXPIRED = 5


class Cancelling(IntEnum):
    """What `cancel.lua` answered."""

    ENDED = 0
    WAITING = 1
    TOLD = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Admitted:
    """The answer to a submission. `ahead` counts the jobs that were in the lane."""

    code: Submitted
    created_ms: int
    ahead: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker owns until it settles or its lease lapses. Times are Redis's."""

    job: Job
    fence: int
    attempt: int
    failures: int
    created_ms: int
    deadline_ms: int
    claimed_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a job ends: its last tokens, outcome and result, as `settle` writes them."""

    outcome: Outcome
    events: bytes = b""
    events_seq: int = 0
    outcome_seq: int | None = None
    result: bytes = b""
    share_result: bool = False
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A job as it stands. `position` counts the jobs before it in its lane; None when it does not wait there."""

    job: Job
    state: State
    fence: int
    attempt: int
    failures: int
    created_ms: int
    deadline_ms: int
    started_ms: int | None
    finished_ms: int | None
    outcome: Outcome | None
    result: bytes | None
    position: int | None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A registered worker: its lease's end and what it last told of itself."""

    id: str
    pool: str
    lease_expires_ms: int
    info: JsonObject


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """How much waits in a lane, and since when the first."""

    pool: str
    priority: Priority
    model: str
    depth: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended work stays, in seconds."""

    result_s: int = 86_400
    stream_s: int = 3_600


UNREADABLE: Final = Settlement(
    Outcome(State.FAILED, failure=Failure("internal_error", "The job's record can't be read.")),
    outcome_seq=1,
    dead=True,
)
"""How a job ends that no worker can read."""


class Queue:
    """Jobs and lanes in Redis. Every method may raise StoreUnavailable or StoreFull."""

    def __init__(self, store: Store, *, retention: Retention | None = None, most_in_lane: int = 100_000) -> None:
        self._store = store
        self._retention = retention or Retention()
        self._most_in_lane = most_in_lane

    # --- the gateway's side -------------------------------------------------------------------------------------------

    async def submit(self, job: Job, *, gateway: str = "") -> Admitted:
        """Whether the job was taken. Safe to send again: the same id is a DUPLICATE and writes nothing.

        `gateway`: whose inbox gets the job's frames from the start.
        """
        pool = job.pool
        lane = keys.lane_name(job.priority, job.model)
        names = (
            keys.job(pool, job.id),
            keys.lane(pool, lane),
            keys.lanes(pool),
            keys.fair(pool),
            keys.deadlines(pool),
            keys.delayed(pool),
            keys.bell(pool),
            keys.stats(pool),
        )
        retention_ms = self._retention.result_s * 1000 + RECORD_MARGIN_MS
        noted = self._store.call(
            "index",
            keys.tenant_prefix(job.tenant),
            (keys.tenant_jobs(job.tenant),),
            (job.id, TENANT_JOBS_MOST, job.deadline_in_ms + retention_ms),
        )
        submitted = self._store.call(
            "submit",
            keys.pool_prefix(pool),
            names,
            (
                job.id,
                lane,
                job.encode(),
                job.tenant,
                batch_digest(job.batch_key),
                max(1, job.cost_tokens),
                job.deadline_in_ms,
                job.delay_ms,
                job.max_attempts,
                job.on_disconnect.value,
                job.on_interrupt.value,
                gateway,
                self._most_in_lane,
                retention_ms,
            ),
        )
        code, created_ms, ahead = await submitted
        # Memory ran out between the two: the job is taken, and only missing among its tenant's.
        with suppress(StoreFull):
            await noted
        if code == Submitted.FULL:
            await self._store.command("ZREM", keys.tenant_jobs(job.tenant), job.id)
        return Admitted(Submitted(code), int(created_ms), int(ahead))

    async def get(self, job_id: str) -> Record | None:
        """The job's record, or None where there is none by that id (or no longer)."""
        pool = pool_of(job_id)
        if pool is None:
            return None
        flat: list[bytes] = await self._store.command("HGETALL", keys.job(pool, job_id))
        if not flat:
            return None
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        position = None
        if fields[b"state"] == b"queued":
            lane = keys.lane(pool, fields[b"lane"].decode())
            position = await self._store.command("ZRANK", lane, fields[b"member"])
        return _record(fields, position)

    async def jobs_of(self, tenant: str, *, most: int, before: str | None = None) -> list[str] | None:
        """The tenant's job ids, newest first, after `before`; None where `before` is not among them."""
        index = keys.tenant_jobs(tenant)
        first = 0
        if before is not None:
            rank = await self._store.command("ZREVRANK", index, before)
            if rank is None:
                return None
            first = int(rank) + 1
        ids: list[bytes] = await self._store.command("ZREVRANGE", index, first, first + most - 1)
        return [raw.decode() for raw in ids]

    async def cancel(self, job_id: str) -> Cancelling:
        """Asks for the job's end: one that waits is ended here, one that runs by its worker, within milliseconds.

        Safe to send again.
        """
        pool = pool_of(job_id)
        if pool is None:
            return Cancelling.UNKNOWN
        while True:
            code, fence = await self._store.call(
                "cancel",
                keys.pool_prefix(pool),
                (keys.job(pool, job_id), keys.abandoned(pool)),
                (job_id, CONTROL_LIFE_MS),
            )
            if Cancelling(code) is not Cancelling.WAITING:
                return Cancelling(code)
            end = Settlement(Outcome(State.CANCELLED, failure=Failure("cancelled", "The job was cancelled.")))
            # Between the two calls a worker may have claimed it; then the next round tells that worker.
            if (await self.settle(pool, job_id, "", int(fence), end)).done:
                return Cancelling.ENDED

    # --- the worker's side --------------------------------------------------------------------------------------------

    async def beat(self, pool: str, worker: str, *, lease_s: float, info: JsonObject, register: bool = False) -> bool:
        """Whether the worker has its lease for another `lease_s`; False once it was reaped. Safe to send again."""
        ends_ms = await self._store.call(
            "beat",
            keys.pool_prefix(pool),
            (keys.workers(pool), keys.worker_info(pool, worker)),
            (worker, int(lease_s * 1000), orjson.dumps(info), int(register)),
        )
        return ends_ms != 0

    async def leave(self, pool: str, worker: str) -> bool:
        """Whether the worker could sign off: it holds no job. Safe to send again."""
        names = (
            keys.workers(pool),
            keys.worker_info(pool, worker),
            keys.held(pool, worker),
            keys.control(pool, worker),
        )
        return bool(await self._store.call("leave", keys.pool_prefix(pool), names, (worker,)))

    async def claim(self, pool: str, worker: str, *, most: int, lanes: Sequence[str]) -> list[Claim] | None:
        """Up to `most` jobs of these lanes (`keys.lane_name`) that this worker now owns; None where it has no lease.

        Not safe to send again blindly: a lost reply leaves jobs held that nobody runs; `held` tells them.
        """
        names = (keys.lanes(pool), keys.fair(pool), keys.workers(pool), keys.bell(pool), keys.held(pool, worker))
        reply = await self._store.call(
            "claim",
            keys.pool_prefix(pool),
            names,
            (
                worker,
                most,
                BATCH_WINDOW,
                SLACK_MS[Priority.STANDARD],
                SLACK_MS[Priority.BATCH],
                AGED_SHARE,
                self._retention.stream_s * 1000,
                *lanes,
            ),
        )
        if reply[0] == -1:
            return None
        claims, unreadable = _claims(reply)
        for job_id, fence in unreadable:
            # No worker will ever be able to read it: it must not go from one to the next.
            log.error("queue.job_unreadable", job_id=job_id)
            await self.settle(pool, job_id, worker, fence, UNREADABLE)
        return claims

    async def held(self, pool: str, worker: str) -> dict[str, int]:
        """The jobs that Redis counts as this worker's, with their fences."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.held(pool, worker))
        return {job.decode(): int(fence) for job, fence in zip(flat[::2], flat[1::2], strict=True)}

    async def cancelling(self, pool: str, job_ids: Iterable[str]) -> list[str]:
        """Those of these jobs whose end was asked for."""
        ids = list(job_ids)
        asked = await asyncio.gather(*(self._store.command("HGET", keys.job(pool, one), "cancel") for one in ids))
        return [job_id for job_id, flag in zip(ids, asked, strict=True) if flag]

    async def settle(self, pool: str, job_id: str, worker: str, fence: int, end: Settlement) -> Settled:
        """Whether the job ended this way. `worker` is '' for a job that only waits. Safe to send again."""
        names = (
            keys.job(pool, job_id),
            keys.stream(pool, job_id),
            keys.held(pool, worker),
            keys.deadlines(pool),
            keys.stats(pool),
            keys.abandoned(pool),
            keys.dead(pool),
            keys.delayed(pool),
            keys.lanes(pool),
        )
        usage = end.outcome.usage
        code = await self._store.call(
            "settle",
            keys.pool_prefix(pool),
            names,
            (
                job_id,
                worker,
                fence,
                end.events,
                end.events_seq,
                "*" if end.outcome_seq is None else end.outcome_seq,
                end.outcome.encode(),
                end.outcome.status.value,
                end.result,
                int(end.share_result),
                self._retention.result_s * 1000,
                self._retention.stream_s * 1000,
                int(end.dead),
                keys.INBOX_MOST_ENTRIES,
                usage.prompt_tokens + usage.completion_tokens if usage else 0,
            ),
        )
        return Settled(code)

    async def release(
        self, pool: str, job_id: str, worker: str, fence: int, *, failed: bool, delay_ms: int = 0
    ) -> Released:
        """Whether the job was put back, or why it must end instead. Safe to send again: a second is REFUSED.

        `failed`: the attempt counts against the job's attempts.
        """
        names = (
            keys.job(pool, job_id),
            keys.stream(pool, job_id),
            keys.held(pool, worker),
            keys.lanes(pool),
            keys.bell(pool),
            keys.delayed(pool),
        )
        code = await self._store.call(
            "release", keys.pool_prefix(pool), names, (job_id, worker, fence, int(failed), delay_ms)
        )
        return Released(code)

    async def produced(self, pool: str, job_id: str, fence: int) -> int:
        """How many events of this attempt readers may have."""
        top: list[Any] = await self._store.command("XREVRANGE", keys.stream(pool, job_id), "+", "-", "COUNT", 1)
        last_fence, _, seq = top[0][0].partition(b"-") if top else (b"0", b"-", b"0")
        return int(seq) if int(last_fence) == fence else 0

    async def ring(self, pool: str) -> None:
        """Wakes one more worker of the pool: one that was woken has no slot free."""
        await self._store.command("RPUSH", keys.bell(pool), 1)

    # --- the scheduler's side -----------------------------------------------------------------------------------------

    async def reap(self, pool: str, *, most: int = 100) -> list[tuple[str, str, int]]:
        """(worker, job, fence) of jobs whose worker's lease lapsed, those workers shut out. Safe to send again."""
        reply = await self._store.call("reap", keys.pool_prefix(pool), (keys.workers(pool),), (most,))
        return [(reply[i].decode(), reply[i + 1].decode(), int(reply[i + 2])) for i in range(0, len(reply), 3)]

    async def promote(self, pool: str, *, most: int = 1000) -> int:
        """The number of delayed jobs whose time had come, now in their lanes. Safe to send again."""
        names = (keys.delayed(pool), keys.lanes(pool), keys.bell(pool))
        return int(await self._store.call("promote", keys.pool_prefix(pool), names, (most,)))

    async def overdue(self, pool: str, *, most: int = 500) -> list[tuple[str, int]]:
        """(job, fence) of jobs that still wait past their deadline. Safe to send again."""
        reply = await self._store.call("overdue", keys.pool_prefix(pool), (keys.deadlines(pool),), (most, 5_000))
        return [(reply[i].decode(), int(reply[i + 1])) for i in range(0, len(reply), 2)]

    async def abandoned(self, pool: str, *, most: int = 500) -> list[str]:
        """Jobs without readers whose grace has passed. Safe to send again."""
        now_ms = await self.now_ms()
        ids: list[bytes] = await self._store.command(
            "ZRANGEBYSCORE", keys.abandoned(pool), "-inf", now_ms, "LIMIT", 0, most
        )
        return [raw.decode() for raw in ids]

    async def now_ms(self) -> int:
        """The time by Redis's clock, which is the fleet's."""
        seconds, micros = await self._store.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000 + self._store.clock_offset_ms

    async def uptime_s(self) -> int:
        """How long the Redis server has been up."""
        text: bytes = await self._store.command("INFO", "server")
        found = [line for line in text.decode().splitlines() if line.startswith("uptime_in_seconds:")]
        return int(found[0].partition(":")[2])

    async def lanes(self, pool: str) -> list[LaneDepth]:
        """The lanes in which something waits."""
        names: list[bytes] = await self._store.command("SMEMBERS", keys.lanes(pool))
        return [await self._lane(pool, raw.decode()) for raw in sorted(names)]

    async def _lane(self, pool: str, name: str) -> LaneDepth:
        lane = keys.lane(pool, name)
        depth = await self._store.command("ZCARD", lane)
        head: list[bytes] = await self._store.command("ZRANGE", lane, 0, 0)
        oldest_ms = int(head[0][:13]) if head else None
        return LaneDepth(pool, Priority(int(name[0])), name[2:], int(depth), oldest_ms)

    async def running(self, pool: str) -> int:
        """The number of jobs that workers hold."""
        names: list[bytes] = await self._store.command("ZRANGE", keys.workers(pool), 0, -1)
        held = (self._store.command("HLEN", keys.held(pool, raw.decode())) for raw in names)
        return sum(await asyncio.gather(*held))

    async def give_up_worker(self, pool: str, worker: str) -> bool:
        """Whether a worker of whom only held jobs are left is now listed for the reaper. Safe to send again."""
        return bool(await self._store.command("ZADD", keys.workers(pool), "NX", 0, worker))

    async def forget_dead(self, pool: str, *, before_ms: int) -> int:
        """The number of dead letters struck off that died before then. Safe to send again."""
        return int(await self._store.command("ZREMRANGEBYSCORE", keys.dead(pool), "-inf", before_ms))

    async def delayed_count(self, pool: str) -> int:
        """The number of jobs whose time has not come yet."""
        return int(await self._store.command("ZCARD", keys.delayed(pool)))

    async def workers(self, pool: str) -> list[WorkerRow]:
        """The registered workers of a pool."""
        flat: list[bytes] = await self._store.command("ZRANGE", keys.workers(pool), 0, -1, "WITHSCORES")
        rows: list[WorkerRow] = []
        for raw, score in zip(flat[::2], flat[1::2], strict=True):
            worker = raw.decode()
            info: bytes | None = await self._store.command("GET", keys.worker_info(pool, worker))
            rows.append(WorkerRow(worker, pool, int(float(score)), orjson.loads(info) if info else {}))
        return rows

    async def stats(self, pool: str) -> dict[str, float]:
        """The pool's counters since ever, and what `note_rates` wrote."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.stats(pool))
        return {name.decode(): float(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def note_rates(self, pool: str, rates: dict[str, float]) -> None:
        """Writes measured rates beside the counters."""
        flat = [item for pair in rates.items() for item in pair]
        await self._store.command("HSET", keys.stats(pool), *flat)

    async def sweep_fair(self, pool: str) -> int:
        """The number of tenants' fair-share times forgotten that say nothing any more. Safe to send again."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.fair(pool))
        by_lane: dict[str, list[bytes]] = {}
        for raw in flat[::2]:
            lane = lane_of_fair_field(raw.decode())
            if lane is not None:
                by_lane.setdefault(lane, []).append(raw)
        removed = 0
        for lane, fields in by_lane.items():
            for start in range(0, len(fields), 1000):
                removed += await self._sweep_lane(pool, lane, fields[start : start + 1000])
        return removed

    async def _sweep_lane(self, pool: str, lane: str, fields: list[bytes]) -> int:
        return int(await self._store.call("sweep", keys.pool_prefix(pool), (keys.fair(pool),), (lane, *fields)))


def batch_digest(batch_key: str) -> str:
    """The batch key as it stands in a lane's member: 8 bytes in hex, or '' for none."""
    return blake2b(batch_key.encode(), digest_size=8).hexdigest() if batch_key else ""


def lane_of_fair_field(field: str) -> str | None:
    """The lane in which a field of the fair-share hash is a tenant's time; None for any other field.

    It is `f:<lane>:<tenant>`, and a tenant's id has no colon.
    """
    kind, _, rest = field.partition(":")
    return rest.rpartition(":")[0] if kind == "f" else None


def _claims(reply: list[Any]) -> tuple[list[Claim], list[tuple[str, int]]]:
    """The claims in a reply, and (job, fence) of those whose job can't be read."""
    claims: list[Claim] = []
    unreadable: list[tuple[str, int]] = []
    for i in range(1, len(reply), 7):
        try:
            job = Job.decode(reply[i + 6])
        except (ValueError, TypeError, KeyError):
            unreadable.append((reply[i].decode(), int(reply[i + 1])))
            continue
        numbers = (int(word) for word in reply[i + 1 : i + 6])
        claims.append(Claim(job, *numbers, claimed_ms=int(reply[0])))
    return claims, unreadable


def _record(fields: dict[bytes, bytes], position: int | None) -> Record:
    started, finished = fields.get(b"started_ms"), fields.get(b"finished_ms")
    outcome = fields.get(b"outcome")
    return Record(
        job=Job.decode(fields[b"spec"]),
        state=State(fields[b"state"].decode()),
        fence=int(fields[b"fence"]),
        attempt=int(fields[b"attempt"]),
        failures=int(fields[b"failures"]),
        created_ms=int(fields[b"created_ms"]),
        deadline_ms=int(fields[b"deadline_ms"]),
        started_ms=int(started) if started else None,
        finished_ms=int(finished) if finished else None,
        outcome=Outcome.decode(outcome) if outcome else None,
        result=fields.get(b"result"),
        position=None if position is None else int(position),
    )
