"""The worker's side of the queue: lease, claim, put back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
import structlog

from common import keys
from common.contracts import Failure, Job, JsonObject, Outcome, Priority, State
from common.queue.accounts import Accounts
from common.queue.ending import Ending
from common.queue.words import Cap, Claim, Claims, PutBack, Released, Settled, Settlement

log = structlog.get_logger(__name__)

BATCH_WINDOW: Final = 64
MOST_PASSES: Final = 16
HOLD_MS: Final = 10
WARM_LIFE_MS: Final = 600_000
SLACK_MS: Final = {Priority.INTERACTIVE: 0, Priority.STANDARD: 2_000, Priority.BATCH: 60_000}
AGED_SHARE: Final = 0.1
KEPT_AFTER_MS: Final = 30_000
"""For how long after interactive work a worker's last free slots are kept for more of it."""
NUDGE: Final = b"-"
"""What a worker rings its own bell with, only to have its wait for bells begin anew."""
_OWN_BELL_LIFE_MS: Final = 60_000

UNREADABLE: Final = Settlement(
    Outcome(State.FAILED, failure=Failure("internal_error", "The job's record can't be read.")),
    outcome_seq=1,
    dead=True,
)
"""How a job ends that no worker can read."""


class Working(Ending):
    """What a worker does with jobs."""

    async def beat(
        self, pool: str, worker: str, *, lease_s: float, info: JsonObject, concurrency: int = 0, register: bool = False
    ) -> bool:
        """Whether the worker has its lease for another `lease_s`; False once it was reaped. Safe to send again.

        `concurrency`: jobs it can hold at once; 0 for one that takes none.
        """
        self.tell_accounts(pool)
        ends_ms = await self._store.call(
            "beat",
            keys.pool_prefix(pool),
            (keys.workers(pool), keys.worker_info(pool, worker), keys.capacity(pool)),
            (worker, int(lease_s * 1000), orjson.dumps(info), int(register), concurrency),
        )
        return ends_ms != 0

    async def leave(self, pool: str, worker: str) -> bool:
        """Whether the worker could sign off: it holds no job. Safe to send again."""
        self.tell_accounts(pool)
        names = (
            keys.workers(pool),
            keys.worker_info(pool, worker),
            keys.held(pool, worker),
            keys.control(pool, worker),
            keys.capacity(pool),
            keys.worker_bell(pool, worker),
        )
        return bool(await self._store.call("leave", keys.pool_prefix(pool), names, (worker,)))

    async def claim(
        self,
        pool: str,
        worker: str,
        *,
        most: int,
        lanes: Sequence[str],
        caps: Sequence[Cap] = (),
        least_age_ms: int = 0,
    ) -> Claims | None:
        """Up to `most` jobs of these lanes (`keys.lane_name`) that this worker now owns; None where it has no lease.

        `caps` bound what comes from lanes that share something; `least_age_ms` leaves out what came only just now.
        The last of the `most`, as many as `kept_slots`, are for interactive jobs while some came lately.
        Not safe to send again blindly: a lost reply leaves jobs held that nobody runs; `held` tells them.
        """
        cap_of = {lane: number for number, cap in enumerate(caps, 1) for lane in cap.lanes}
        answered = self._store.call(
            "claim",
            keys.pool_prefix(pool),
            (
                keys.lanes(pool),
                keys.fair(pool),
                keys.workers(pool),
                keys.bell(pool),
                keys.held(pool, worker),
                keys.waiting(pool),
                keys.warm(pool),
                keys.capacity(pool),
                keys.urgent_bell(pool),
            ),
            (
                worker,
                most,
                BATCH_WINDOW,
                SLACK_MS[Priority.STANDARD],
                SLACK_MS[Priority.BATCH],
                AGED_SHARE,
                self._retention.stream_s * 1000,
                HOLD_MS,
                MOST_PASSES,
                least_age_ms,
                WARM_LIFE_MS,
                self._kept_slots,
                KEPT_AFTER_MS,
                len(caps),
                *(max(0, cap.most) for cap in caps),
                *(item for lane in lanes for item in (lane, cap_of.get(lane, 0))),
            ),
        )
        # In the same trip, and behind it, as no job waits for this.
        self.tell_accounts(pool)
        reply = await answered
        if reply[0] == -1:
            return None
        claims, unreadable = _claims(reply)
        for job_id, fence in unreadable:
            # No worker will ever be able to read it: it must not go from one to the next.
            log.error("queue.job_unreadable", job_id=job_id)
            await self.settle(pool, job_id, worker, fence, UNREADABLE)
        return claims

    async def finish(self, claim: Claim, worker: str, end: Settlement) -> Settled:
        """Whether the claimed job ended so; what it took is told with the next claim or beat. Safe to send again."""
        pool = claim.job.pool
        code, busy_ms = await self._settle(pool, claim.job.id, worker, claim.fence, end)
        if code is Settled.ENDED:
            usage = end.outcome.usage
            accounts = self._accounts.setdefault(pool, Accounts())
            accounts.add(
                claim.job,
                busy_ms=busy_ms,
                tokens=usage.prompt_tokens + usage.completion_tokens if usage else 0,
                answer_tokens=end.answer_tokens,
            )
            if accounts.full:
                self.tell_accounts(pool)
        return code

    def tell_accounts(self, pool: str) -> None:
        """Sends what ended jobs of the pool took on its way to the store.

        Nobody waits for it: lost with a worker or a connection, it leaves shares, means and paces a little behind.
        """
        words = accounts.take() if (accounts := self._accounts.get(pool)) else None
        if words:
            self._store.call("account", keys.pool_prefix(pool), (keys.fair(pool), keys.stats(pool)), words)

    async def held(self, pool: str, worker: str) -> dict[str, int]:
        """The jobs that Redis counts as this worker's, with their fences."""
        flat: list[bytes] = await self._store.command("HGETALL", keys.held(pool, worker))
        return {job.decode(): int(fence) for job, fence in zip(flat[::2], flat[1::2], strict=True)}

    async def cancelling(self, pool: str, job_ids: Iterable[str]) -> list[str]:
        """Those of these jobs whose end was asked for."""
        ids = list(job_ids)
        asked = await asyncio.gather(*(self._store.command("HGET", keys.job(pool, one), "cancel") for one in ids))
        return [job_id for job_id, flag in zip(ids, asked, strict=True) if flag]

    async def told_to_drain(self, pool: str, worker: str) -> bool:
        """Whether the worker is to take nothing more: its order may have been lost on the way."""
        return await self._store.command("HGET", keys.capacity(pool), worker) == b"0"

    async def release(
        self, pool: str, job_id: str, worker: str, fence: int, *, failed: bool, delay_ms: int = 0
    ) -> Released:
        """`put_back` without a word of why."""
        return await self.put_back(pool, job_id, worker, fence, PutBack(failed=failed, delay_ms=delay_ms))

    async def put_back(self, pool: str, job_id: str, worker: str, fence: int, back: PutBack) -> Released:
        """Whether the job was put back, or why it must end instead. Safe to send again: a second is REFUSED."""
        names = (
            keys.job(pool, job_id),
            keys.stream(pool, job_id),
            keys.held(pool, worker),
            keys.lanes(pool),
            keys.bell(pool),
            keys.delayed(pool),
            keys.waiting(pool),
            keys.stats(pool),
            keys.fair(pool),
            keys.urgent_bell(pool),
        )
        told = back.error.encode() if back.error else b""
        code = await self._store.call(
            "release",
            keys.pool_prefix(pool),
            names,
            (job_id, worker, fence, int(back.failed), back.delay_ms, told, int(back.preempted)),
        )
        return Released(code)

    async def produced(self, pool: str, job_id: str, fence: int) -> int:
        """How many events of this attempt readers may have."""
        top: list[Any] = await self._store.command("XREVRANGE", keys.stream(pool, job_id), "+", "-", "COUNT", 1)
        last_fence, _, seq = top[0][0].partition(b"-") if top else (b"0", b"-", b"0")
        return int(seq) if int(last_fence) == fence else 0

    async def ring(self, pool: str, *, urgent: bool) -> None:
        """Wakes one more worker of the pool for interactive work, or for other: one that was woken has no slot free."""
        await self._store.command("RPUSH", keys.urgent_bell(pool) if urgent else keys.bell(pool), 1)

    async def nudge(self, pool: str, worker: str) -> None:
        """Ends this worker's wait for bells, whatever it waits for."""
        own_bell = keys.worker_bell(pool, worker)
        nudged = self._store.command("RPUSH", own_bell, NUDGE)
        await self._store.command("PEXPIRE", own_bell, _OWN_BELL_LIFE_MS)
        await nudged


def _claims(reply: list[Any]) -> tuple[Claims, list[tuple[str, int]]]:
    """The claims in a reply, and (job, fence) of those whose job can't be read."""
    claims = Claims(kept=reply[1] == 1)
    unreadable: list[tuple[str, int]] = []
    for i in range(2, len(reply), 7):
        try:
            job = Job.decode(reply[i + 6])
        except (ValueError, TypeError, KeyError):
            unreadable.append((reply[i].decode(), int(reply[i + 1])))
            continue
        numbers = (int(word) for word in reply[i + 1 : i + 6])
        claims.append(Claim(job, *numbers, claimed_ms=int(reply[0])))
    return claims, unreadable
