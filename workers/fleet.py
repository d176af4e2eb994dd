"""What a worker knows of its backends and shares with other workers: health, breakers, slots, API keys.

Read by a follower every second, never on a job's path; while the store is away the last answers stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from common.backends import BackendSlots, KeyStates
from common.breaker import BreakerStore
from common.clock import Clock
from common.config import Settings
from common.contracts import JsonObject
from common.errors import HeadraceError
from common.health import Health, HealthStore
from common.metrics import WorkerMetrics
from common.servers import Backend
from common.store import Store
from workers.breakers import Breakers
from workers.keypool import ApiKey, Block, KeyPool
from workers.routing import Standing
from workers.slots import Slots

log = structlog.get_logger(__name__)

FOLLOW_S: Final = 0.8
"""With the trip itself less than the second in which every worker is to know."""
LEAST_PROBE_S: Final = 10.0


class Fleet:
    """The backends of a worker's pools, as all workers see them.

    `room` is called when a backend takes calls again that took none: a breaker closed, slots came free, a key rested.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        *,
        worker_id: Callable[[], str],
        metrics: WorkerMetrics,
        room: Callable[[], None] = lambda: None,
    ) -> None:
        self.backends = {row.name: row for row in settings.backends if set(row.pool) & set(settings.pools)}
        self.health: dict[str, Health] = {}
        rows = list(self.backends.values())
        self.breakers = Breakers(
            _breaker_store(settings, store), clock, list(self.backends), worker_id=worker_id, changed=metrics.breaker
        )
        self.slots = Slots(
            BackendSlots(store),
            clock,
            rows,
            worker_id=worker_id,
            lease_s=settings.lease_s,
            most=settings.worker_concurrency,
        )
        self.keys = {row.name: KeyPool(_secrets(row), clock) for row in rows if row.api_keys}
        self._pools = settings.pools
        self._health_store = HealthStore(store)
        self._key_states = KeyStates(store)
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = room
        self._roomy: set[str] = set()

    # --- what is known ------------------------------------------------------------------------------------------------

    def standing(self, backend: str) -> Standing:
        """How the backend stands: healthy, refused by its breaker or for want of a key, free slots."""
        health = self.health.get(backend)
        line = self.slots.lines[backend]
        busy = max(line.in_use + line.waiting, (health.load if health is not None else None) or 0)
        return Standing(
            healthy=health is None or health.healthy,
            refused=self.wait_ms(backend) > 0,
            free=self.backends[backend].concurrency - busy,
        )

    def usable(self, backend: str) -> bool:
        """Whether a call may be made there, as far as is known: it is healthy, and neither breaker nor keys refuse."""
        health = self.health.get(backend)
        return (health is None or health.healthy) and not self.wait_ms(backend)

    def standings(self, backends: Sequence[str]) -> Mapping[str, Standing]:
        """As `standing`, by name."""
        return {name: self.standing(name) for name in backends}

    def wait_ms(self, backend: str) -> int:
        """How long this backend takes no call for sure: its breaker is open, or all its keys rest. 0: it may be tried.

        From a view at most a second old.
        """
        keys = self.keys.get(backend)
        resting_ms = 0 if keys is None else int(keys.wait_s * 1000)
        return max(self.breakers.retry_ms(backend), resting_ms)

    def show(self) -> list[JsonObject]:
        """Each backend's breaker, slots and keys as this worker sees them, for people; no address and no key."""
        return [
            {
                "name": name,
                "breaker": self.breakers.view(name).phase.value,
                "slots": {"granted": line.granted, "in_use": line.in_use, "waiting": line.waiting},
                "keys": {"usable": self.keys[name].usable, "of": len(self.keys[name])} if name in self.keys else None,
            }
            for name, line in self.slots.lines.items()
        ]

    # --- keys ---------------------------------------------------------------------------------------------------------

    def rest_key(self, backend: str, key: ApiKey, block: Block) -> None:
        """Leaves a key alone for a while, here at once and in the whole fleet within a second."""
        if not self.keys[backend].block(key, block):
            return
        log.warning("key.resting", backend=backend, key=key.digest, why=block.why, for_s=round(block.for_s, 3))
        task = asyncio.create_task(self._tell_key(backend, key.digest, block), name="key state")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_key(self, backend: str, digest: str, block: Block) -> None:
        with suppress(HeadraceError):  # others find out by themselves, at the cost of a refused call
            await self._key_states.block(backend, digest, for_ms=max(1, int(block.for_s * 1000)), why=block.why)

    # --- following ----------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keeps all of this up to date for as long as it runs."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.slots.follow(self._look_for_room), name="slots")
            group.create_task(self.breakers.report(), name="breaker reports")
            group.create_task(self._read_on(), name="backends")

    async def _read_on(self) -> None:
        while True:
            with suppress(HeadraceError):
                await self.read()
                self._look_for_room()
            await self._clock.sleep(FOLLOW_S)

    def _look_for_room(self) -> None:
        before = self._roomy
        self._roomy = {name for name in self.backends if self.slots.obtainable(name) > 0 and self.usable(name)}
        if self._roomy - before:
            self._room()

    async def read(self) -> None:
        """Reads health, breakers and keys once. Raises StoreUnavailable."""
        await asyncio.gather(self._read_health(), self.breakers.refresh(), *map(self._read_keys, self.keys))

    async def _read_health(self) -> None:
        found = await asyncio.gather(*map(self._health_store.read, self._pools))
        self.health = {name: row for pool in found for name, row in pool.items()}

    async def _read_keys(self, backend: str) -> None:
        self.keys[backend].learn(await self._key_states.read(backend))

    async def close(self) -> None:
        """Gives the slots back and lets the last words about keys out."""
        await asyncio.gather(*self._tasks)
        await self.slots.close()


def _secrets(backend: Backend) -> list[str]:
    return [key.get_secret_value() for key in backend.api_keys]


def _breaker_store(settings: Settings, store: Store) -> BreakerStore:
    # A probe is a job's call: it has as long to its first token as the backend was left alone before.
    probe_s = max(LEAST_PROBE_S, settings.breaker_cooloff_s)
    return BreakerStore(
        store, failures=settings.breaker_failures, cooloff_s=settings.breaker_cooloff_s, probe_s=probe_s
    )
