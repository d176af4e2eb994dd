"""Pure: which bells a worker waits on, and for which work a ring is that it must leave to others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from common import keys
from common.contracts import Priority
from common.queue import NUDGE

_URGENT_RING: Final = str(int(Priority.INTERACTIVE)).encode()


@dataclass(frozen=True, slots=True)
class Bell:
    """A list whose elements are wake-ups. `urgent`: for interactive work alone; None where each ring tells it."""

    pool: str
    urgent: bool | None


@dataclass(frozen=True, slots=True)
class Ring:
    """A wake-up that was heard. `nudged`: by this worker itself, so that it waits on other bells; no work is meant."""

    pool: str
    urgent: bool
    nudged: bool = False


def bells(pools: Iterable[str], worker: str, kept: Collection[str]) -> dict[str, Bell]:
    """The lists to wait on, in the order in which they are heard, for a worker that has free slots.

    In the `kept` pools those are for interactive work: a ring for other work would be lost here, and another worker
    would miss it. The worker's own bell is heard all the same, as nobody else hears it.
    """
    pools = list(pools)
    urgent = {keys.urgent_bell(pool): Bell(pool, urgent=True) for pool in pools}
    own = {keys.worker_bell(pool, worker): Bell(pool, urgent=None) for pool in pools}
    return urgent | own | {keys.bell(pool): Bell(pool, urgent=False) for pool in pools if pool not in kept}


def ring_of(bell: Bell, element: bytes) -> Ring:
    """What an element of this bell's list says."""
    urgent = element == _URGENT_RING if bell.urgent is None else bell.urgent
    return Ring(bell.pool, urgent, nudged=element == NUDGE)
