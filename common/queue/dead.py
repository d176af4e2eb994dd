"""Dead letters: jobs whose attempts were used up, as far back as the list goes."""

from __future__ import annotations

import asyncio
from typing import Final

from common import keys
from common.queue.side import Side

PAGE: Final = 500


class Dead(Side):
    """Who looks through a pool's dead letters."""

    async def dead_letters(
        self, pool: str, tenant: str, *, most: int, after: tuple[int, str] | None = None
    ) -> list[tuple[int, str]]:
        """(died ms, job) of the tenant's dead letters in a pool, the newest first; those that come after this one."""
        newest = "+inf" if after is None else after[0]
        found: list[tuple[int, str]] = []
        first = 0
        while len(found) < most:
            page = await self._page(pool, newest, first)
            found += [letter for letter in await self._own(pool, tenant, page) if after is None or letter < after]
            if len(page) < PAGE:
                break
            first += PAGE
        return found[:most]

    async def died_ms(self, pool: str, job_id: str) -> int | None:
        """When the job became a dead letter, by Redis's clock; None where it is none (or no longer)."""
        score = await self._store.command("ZSCORE", keys.dead(pool), job_id)
        return None if score is None else int(float(score))

    async def _page(self, pool: str, newest: str | int, first: int) -> list[tuple[int, str]]:
        words = ("ZREVRANGEBYSCORE", keys.dead(pool), newest, "-inf", "WITHSCORES", "LIMIT", first, PAGE)
        flat: list[bytes] = await self._store.command(*words)
        return [(int(float(score)), raw.decode()) for raw, score in zip(flat[::2], flat[1::2], strict=True)]

    async def _own(self, pool: str, tenant: str, page: list[tuple[int, str]]) -> list[tuple[int, str]]:
        owners = await asyncio.gather(
            *(self._store.command("HGET", keys.job(pool, job_id), "tenant") for _, job_id in page)
        )
        return [letter for letter, owner in zip(page, owners, strict=True) if owner == tenant.encode()]
