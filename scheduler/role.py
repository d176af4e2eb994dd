"""What every role shares: the shape of a role, and the runner that gives it its rounds until it is stopped.

Each role's file has the same five parts: its parameters, its class, its constructor, its name and period, one `round`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol

import structlog

from common.clock import Clock
from common.errors import LaterError, StoreFull

log = structlog.get_logger(__name__)

JITTER: Final = 0.1
STOP_LIMIT_S: Final = 1.0

DONE: Final = "done"
STORE_UNAVAILABLE: Final = "store_unavailable"
STORE_FULL: Final = "store_full"
FAILED: Final = "failed"

CountRound = Callable[[str, str], None]
"""Told a role's name and a round's result."""


class Role(Protocol):
    """Something that happens on a timer. A round is short, and safe to run twice and beside another scheduler's."""

    name: ClassVar[str]

    @property
    def period_s(self) -> float:
        """From one round's start to the next one's."""
        ...

    async def round(self) -> int:
        """How much was done. Raises StoreUnavailable or StoreFull; the next round then finds what this one left."""
        ...


class Outage:
    """Whether what rounds work on is in trouble; logged when that changes, however many rounds fail."""

    def __init__(self, of: str = "store") -> None:
        self._of = of
        self._since: str | None = None

    def noticed(self, error: LaterError) -> None:
        """A call failed for want of it."""
        if self._since != error.code:
            self._since = error.code
            log.warning(f"scheduler.{self._of}_trouble", code=error.code, error=error.failure.message)

    def over(self) -> None:
        """A round went through."""
        if self._since is not None:
            self._since = None
            log.info(f"scheduler.{self._of}_back")


class Rounds:
    """One role's rounds: one after the other, never two at once, a rest with jitter between them."""

    def __init__(
        self,
        role: Role,
        clock: Clock,
        *,
        outage: Outage,
        count: CountRound,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._role = role
        self._clock = clock
        self._outage = outage
        self._count = count
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._resting = False
        self._failing = False

    def start(self) -> None:
        """Begins with a round at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._role.name)

    def ask_to_stop(self) -> asyncio.Task[None] | None:
        """The task that ends soon: at once when it rests, else with its round. None if it never ran. Safe to repeat."""
        self._stopping = True
        if self._task is not None and self._resting:
            self._task.cancel()
        return self._task

    async def _run(self) -> None:
        while not self._stopping:
            started_s = self._clock.monotonic_s()
            self._count(self._role.name, await self.one())
            rest_s = self._rest_s(self._clock.monotonic_s() - started_s)
            self._resting = not self._stopping
            if self._resting:
                await self._clock.sleep(rest_s)
            self._resting = False

    def _rest_s(self, took_s: float) -> float:
        """What is left of the period, give or take the jitter, and half of it where the round took long."""
        period_s = self._role.period_s * (1 + JITTER * (2 * self._jitter() - 1))
        return max(period_s / 2, period_s - took_s)

    async def one(self) -> str:
        """One round's result, in the words of the metric; it never raises."""
        try:
            await self._role.round()
        except LaterError as error:
            self._outage.noticed(error)
            return STORE_FULL if isinstance(error, StoreFull) else STORE_UNAVAILABLE
        except Exception as error:  # noqa: BLE001 - the process's one blind handler: a fault in a role must not stop the others
            self._log_fault(error)
            return FAILED
        self._failing = False
        self._outage.over()
        return DONE

    def _log_fault(self, error: Exception) -> None:
        """Once for each run of failures: a role with a short period would flood the log."""
        if not self._failing:
            log.error("scheduler.round_failed", role=self._role.name, exc_info=error)
        self._failing = True


async def stop_all(rounds: Sequence[Rounds], *, limit_s: float = STOP_LIMIT_S) -> None:
    """Stops all of them together; a round still running after the limit is broken off (the next process goes on)."""
    tasks = [task for one in rounds if (task := one.ask_to_stop()) is not None]
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=limit_s)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
