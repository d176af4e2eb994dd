"""A tenant's jobs, newest first: those in the store's index of each pool, and those only the ledger still has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.ledger.journal import JournalLedger
from common.outbox import Outbox

Place = tuple[int, str]
"""Where a job stands in the list: when it was accepted, in µs, and its id."""

MOST_PAGES: Final = 20


class Listing:
    """Pages of job ids. Every method may raise StoreUnavailable or LedgerUnavailable."""

    def __init__(self, outbox: Outbox, pools: Sequence[str], ledger: JournalLedger | None) -> None:
        self._outbox = outbox
        self._pools = pools
        self._ledger = ledger

    async def page(self, tenant: str, *, most: int, after: str | None) -> list[str] | None:
        """The ids that follow `after`, or the first ones; None where `after` is no job of this tenant."""
        below = None if after is None else await self._place(tenant, after)
        if after is not None and below is None:
            return None
        indexed = await self._outbox.index_page(tenant, self._pools, most=most, below=below)
        floor = indexed[-1] if len(indexed) == most else None
        kept = await self._only_kept(tenant, most, below, floor)
        return [job_id for _, job_id in sorted(indexed + kept, reverse=True)[:most]]

    async def _place(self, tenant: str, job_id: str) -> Place | None:
        found = await self._outbox.index_places(tenant, [job_id])
        if found:
            return found[0]
        entry = await self._ledger.get(job_id) if self._ledger else None
        if entry is None or entry.accepted.tenant != tenant:
            return None
        return entry.accepted.created_ms * 1000, job_id

    async def _only_kept(self, tenant: str, most: int, below: Place | None, floor: Place | None) -> list[Place]:
        """The first of the ledger's that are not in the index, down to the floor.

        Both tell the time of acceptance, and not quite the same one; so a job has one place, the index's if it has one.
        """
        kept: list[Place] = []
        if self._ledger is None:
            return kept
        for _ in range(MOST_PAGES):
            page = await self._ledger.of_tenant(tenant, most=most, below=below)
            indexed = {job_id for _, job_id in await self._outbox.index_places(tenant, [row[1] for row in page])}
            kept += [place for place in page if place[1] not in indexed]
            if len(page) < most or len(kept) >= most or (floor is not None and page[-1] <= floor):
                break
            below = page[-1]
        return kept
