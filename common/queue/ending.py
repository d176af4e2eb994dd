"""How a job ends: the one script that does it, for whoever may."""

from __future__ import annotations

from common import keys
from common.queue.side import Side
from common.queue.words import Settled, Settlement


class Ending(Side):
    """What gateways, workers and schedulers do alike: end a job that is theirs to end."""

    async def defer(self, pool: str, job_id: str) -> bool:
        """Whether readers of this job's record are now sent to the ledger, which has another end of it."""
        return bool(await self._store.call("defer", keys.pool_prefix(pool), (keys.job(pool, job_id),), ()))

    async def settle(self, pool: str, job_id: str, worker: str, fence: int, end: Settlement) -> Settled:
        """Whether the job ended this way. `worker` is '' for a job that only waits. Safe to send again."""
        return (await self._settle(pool, job_id, worker, fence, end))[0]

    async def _settle(self, pool: str, job_id: str, worker: str, fence: int, end: Settlement) -> tuple[Settled, int]:
        """The same, and for how many ms the job that this ended had held a slot."""
        names = (
            keys.job(pool, job_id),
            keys.stream(pool, job_id),
            keys.held(pool, worker),
            keys.deadlines(pool),
            keys.stats(pool),
            keys.fair(pool),
        )
        code, busy_ms = await self._store.call(
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
                end.error.encode() if end.error else b"",
                self._retention.idempotency_s * 1000,
                self._retention.record_ms,
            ),
        )
        return Settled(code), busy_ms

    async def attempt(self, pool: str, job_id: str) -> int:
        """The number of the job's last attempt; 0 where there was none."""
        return int(await self._store.command("HGET", keys.job(pool, job_id), "attempt") or 0)
