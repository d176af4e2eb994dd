"""What a chaos run does: how much load, how many faults of which kind, in an order that the seed decides."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

PREFIX: Final = "HEADRACE_TEST_CHAOS_"


class Kind(Enum):
    """A kind of fault."""

    KILL = "kill"
    KILL_STORE = "kill the store"
    FREEZE = "freeze"
    FREEZE_STORE = "freeze the store"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, whom, how long until the next one, and how long the victim stays away."""

    kind: Kind
    victim: str
    rest_s: float
    away_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run. Each can be set: HEADRACE_TEST_CHAOS_JOBS, _CALLERS, _KILLS, _STORE_KILLS, _FREEZES."""

    seed: int
    jobs: int = 300
    callers: int = 16
    kills: int = 12
    store_kills: int = 2
    freezes: int = 2

    @classmethod
    def drawn(cls, seed: int, environ: Mapping[str, str] = os.environ) -> Self:
        """The plan of this environment."""
        names = ("jobs", "callers", "kills", "store_kills", "freezes")
        given = {name: int(environ[PREFIX + name.upper()]) for name in names if PREFIX + name.upper() in environ}
        return cls(seed, **given)

    def faults(self, members: list[str]) -> list[Fault]:
        """The faults in their order; each kind of member gets its share of the kills."""
        dice = random.Random(self.seed)
        workers = [name for name in members if name.startswith("worker")]
        drawn = [(Kind.KILL, members[number % len(members)]) for number in range(self.kills)]
        drawn += [(Kind.KILL_STORE, "valkey")] * self.store_kills
        drawn += [(Kind.FREEZE, dice.choice(workers)) for _ in range(self.freezes - self.freezes // 2)]
        drawn += [(Kind.FREEZE_STORE, "valkey")] * (self.freezes // 2)
        dice.shuffle(drawn)
        return [Fault(kind, victim, dice.uniform(0.1, 0.9), dice.uniform(0.0, 0.6)) for kind, victim in drawn]
