"""What a Redis or Valkey says of itself, and a sample of our keys in it: the facts that `headrace doctor` judges."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from common import keys
from common.store import Store
from common.survey import Survey

SAMPLE_KEYS: Final = 1_000


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A server as it stands. `clock_skew_s` is how far its clock is ahead of this machine's."""

    server: str
    version: tuple[int, ...]
    aof_enabled: bool
    aof_healthy: bool
    eviction: str
    maxmemory_bytes: int
    used_memory_bytes: int
    clock_skew_s: float
    sampled_keys: int
    without_ttl: dict[str, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


async def inspect(store: Store) -> StoreFacts:
    """The facts about the server behind this store. Raises StoreUnavailable where it can't be asked."""
    said = parse_info(await store.command("INFO"))
    sight = await Survey(store).step((), most_keys=SAMPLE_KEYS)
    server = said.get("server_name", "redis")
    version = said.get(f"{server}_version") or said.get("redis_version", "0")
    return StoreFacts(
        server=server,
        version=tuple(int(part) for part in version.split(".") if part.isdigit()),
        aof_enabled=said.get("aof_enabled") == "1",
        aof_healthy=said.get("aof_last_write_status", "ok") == "ok",
        eviction=said.get("maxmemory_policy", "unknown"),
        maxmemory_bytes=int(said.get("maxmemory", "0")),
        used_memory_bytes=int(said.get("used_memory", "0")),
        clock_skew_s=await _clock_skew_s(store),
        sampled_keys=sight.looked_at,
        without_ttl=dict(Counter(map(keys.kind_of, sight.lasting))),
    )


def parse_info(raw: bytes) -> dict[str, str]:
    """INFO's lines as a mapping."""
    lines = raw.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


async def _clock_skew_s(store: Store) -> float:
    before_s = time.time()
    seconds, microseconds = await store.command("TIME")
    halfway_s = (before_s + time.time()) / 2
    return int(seconds) + int(microseconds) / 1e6 - halfway_s
