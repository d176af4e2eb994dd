"""What the three sides of the queue share: the store, how long things stay, how much may wait."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from common.queue.accounts import Accounts
from common.queue.words import Retention
from common.store import Store

CONTROL_LIFE_MS: Final = 600_000


class Side:
    """One side of the queue. Every method may raise StoreUnavailable or StoreFull."""

    def __init__(
        self,
        store: Store,
        *,
        retention: Retention | None = None,
        most_in_lane: int = 100_000,
        most_waiting: int = 1_000_000,
        kept_slots: int = 0,
    ) -> None:
        self._store = store
        self._retention = retention or Retention()
        self._most_in_lane = most_in_lane
        self._most_waiting = most_waiting
        self._kept_slots = kept_slots
        self._accounts: dict[str, Accounts] = {}


def digest(text: str) -> str:
    """8 bytes of a text's hash in hex: short enough for keys and members; '' for ''."""
    return blake2b(text.encode(), digest_size=8).hexdigest() if text else ""


def batch_digest(batch_key: str, *, joint: bool = False) -> str:
    """The batch key as it stands in a lane's member; of jobs that share one call it begins with '+'."""
    return ("+" if joint else "") + digest(batch_key)
