"""The gateway's side of the queue: submit, look, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from common import keys
from common.contracts import Failure, Job, Outcome, Priority, State, pool_of
from common.queue.ending import Ending
from common.queue.side import CONTROL_LIFE_MS, batch_digest
from common.queue.words import Admitted, AttemptError, Cancelling, Place, Record, Settlement, Submitted

TENANT_JOBS_MOST: Final = 10_000
# Longer than a kernel goes on sending what a connection that was given up has left in its buffer (Linux: 15 minutes).
WITHDRAWN_LIFE_MS: Final = 1_200_000


class Submitting(Ending):
    """What a gateway does with jobs."""

    async def submit(
        self, job: Job, *, gateway: str = "", most_waiting: int | None = None, accepted: bool = False
    ) -> Admitted:
        """Whether the job was taken, and what it has before it. Safe to send again: a DUPLICATE writes nothing.

        `gateway`: whose inbox gets the job's frames from the start. `most_waiting`: the tenant's own limit.
        `accepted`: it was taken before, and the store lost it: no limit refuses it.
        """
        lane = keys.lane_name(job.priority, job.model)
        most = self._most_waiting if most_waiting is None else most_waiting
        reply = await self._store.call(
            "submit",
            keys.pool_prefix(job.pool),
            _submit_keys(job, lane),
            (
                job.id,
                lane,
                job.encode(),
                job.tenant,
                batch_digest(job.batch_key, joint=job.joint),
                max(1, job.cost_tokens),
                job.deadline_in_ms,
                job.delay_ms,
                job.max_attempts,
                job.on_disconnect.value,
                job.on_interrupt.value,
                gateway,
                self._most_in_lane,
                self._retention.record_ms,
                job.weight,
                most,
                job.fingerprint if job.idempotency else "",
                int(job.journal),
                int(accepted),
                0 if job.batch else TENANT_JOBS_MOST,
            ),
        )
        return _admitted(reply, most)

    async def same_body(self, tenant: str, idempotency: str, fingerprint: str, *, life_ms: int) -> bool:
        """Whether this key came with this body before, or never: for keys that must hold in more than one pool."""
        key = keys.tenant_idempotency(tenant, idempotency)
        known = await self._store.command("SET", key, fingerprint, "NX", "GET", "PX", life_ms)
        return known is None or known.decode() == fingerprint

    async def by_key(self, pool: str, tenant: str, idempotency: str) -> str | None:
        """The id of the job that was submitted with this idempotency key and is still known, or None."""
        raw: bytes | None = await self._store.command("GET", keys.idempotency(pool, tenant, idempotency))
        job_id = raw.partition(b" ")[0].decode() if raw else None
        return job_id if job_id and await self._store.command("EXISTS", keys.job(pool, job_id)) else None

    async def places(self, pool: str, job_ids: Sequence[str]) -> list[Place | None]:
        """Where these jobs of a pool stand, in their order; None for one that is unknown."""
        reply = await self._store.call(
            "place", keys.pool_prefix(pool), (keys.stats(pool), keys.waiting(pool)), tuple(job_ids)
        )
        return [_place(*reply[i : i + 3]) for i in range(0, len(reply), 3)]

    async def get(self, job_id: str) -> Record | None:
        """The job's record, or None where there is none by that id (or no longer)."""
        pool = pool_of(job_id)
        if pool is None:
            return None
        flat: list[bytes] = await self._store.command("HGETALL", keys.job(pool, job_id))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        # Without a spec it is the mark of a submission that was withdrawn before it came.
        if b"spec" not in fields:
            return None
        position = None
        if fields[b"state"] == b"queued":
            lane = keys.lane(pool, fields[b"lane"].decode())
            position = await self._store.command("ZRANK", lane, fields[b"member"])
        return _record(fields, position)

    async def cancel(self, job_id: str, *, unread: bool = False) -> Cancelling:
        """Asks for the job's end: one that waits is ended here, one that runs by its worker, within milliseconds.

        `unread`: only where its readers left and its grace has passed; its idempotency key is then free.
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
                (job_id, CONTROL_LIFE_MS, int(unread)),
            )
            if Cancelling(code) is not Cancelling.WAITING:
                return Cancelling(code)
            end = Settlement(Outcome(State.CANCELLED, failure=Failure("cancelled", "The job was cancelled.")))
            # Between the two calls a worker may have claimed it; then the next round tells that worker.
            if (await self.settle(pool, job_id, "", int(fence), end)).done:
                return Cancelling.ENDED

    async def erase(self, job_id: str, tenant: str) -> bool:
        """Whether nothing is left of this job of the tenant's: record, stream and result. One that has not ended stays.

        Safe to send again.
        """
        pool = pool_of(job_id)
        if pool is None:
            return True
        names = (
            keys.job(pool, job_id),
            keys.stream(pool, job_id),
            keys.dead(pool),
            keys.tenant_jobs(pool, tenant),
        )
        return bool(await self._store.call("erase", keys.pool_prefix(pool), names, (job_id,)))

    async def withdraw(self, job_id: str) -> None:
        """Takes back a submission of which nobody knows what became: the job it made is cancelled; one that it has yet
        to make is never made.

        Safe to send again.
        """
        pool = pool_of(job_id)
        if pool is None:
            return
        while await self.cancel(job_id) is Cancelling.UNKNOWN:
            prefix, names = keys.pool_prefix(pool), (keys.job(pool, job_id),)
            if await self._store.call("withdraw", prefix, names, (WITHDRAWN_LIFE_MS,)):
                return


def _submit_keys(job: Job, lane: str) -> tuple[str, ...]:
    pool = job.pool
    return (
        keys.job(pool, job.id),
        keys.lane(pool, lane),
        keys.lanes(pool),
        keys.fair(pool),
        keys.deadlines(pool),
        keys.urgent_bell(pool) if job.priority is Priority.INTERACTIVE else keys.bell(pool),
        keys.stats(pool),
        keys.waiting(pool),
        keys.tenant_jobs(pool, job.tenant),
        *((keys.idempotency(pool, job.tenant, job.idempotency),) if job.idempotency else ()),
    )


def _admitted(reply: list[Any], most_waiting: int) -> Admitted:
    code, job_id, created_ms, ahead, wait_ms, retry_ms, waiting = reply
    told = _known(wait_ms), _known(retry_ms), _known(waiting)
    return Admitted(Submitted(code), job_id.decode(), created_ms, ahead, *told, most_waiting)


def _place(state: bytes, position: int, wait_ms: int) -> Place | None:
    return Place(State(state.decode()), _known(position), _known(wait_ms)) if state else None


def _known(number: int) -> int | None:
    return None if number < 0 else number


def _errors(lines: bytes) -> tuple[AttemptError, ...]:
    return tuple(AttemptError(**orjson.loads(line)) for line in lines.splitlines())


def _record(fields: dict[bytes, bytes], position: int | None) -> Record:
    started, finished = fields.get(b"started_ms"), fields.get(b"finished_ms")
    outcome = fields.get(b"outcome")
    return Record(
        job=Job.decode(fields[b"spec"]),
        state=State(fields[b"state"].decode()),
        fence=int(fields[b"fence"]),
        attempt=int(fields.get(b"attempt", 0)),
        failures=int(fields.get(b"failures", 0)),
        created_ms=int(fields[b"created_ms"]),
        deadline_ms=int(fields[b"deadline_ms"]),
        started_ms=int(started) if started else None,
        finished_ms=int(finished) if finished else None,
        outcome=Outcome.decode(outcome) if outcome else None,
        result=fields.get(b"result"),
        position=None if position is None else int(position),
        errors=_errors(fields.get(b"errors", b"")),
        preemptions=int(fields.get(b"preemptions", 0)),
        deferred=b"deferred" in fields,
    )
