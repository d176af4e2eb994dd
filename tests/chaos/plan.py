"""What a chaos run does: how much load, how many faults of which kind, in an order that the seed decides."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final, Self

PREFIX: Final = "HEADRACE_TEST_CHAOS_"


class Kind(Enum):
    """A kind of fault."""

    KILL = "kill"
    KILL_STORE = "kill the store"
    FREEZE = "freeze"
    FREEZE_STORE = "freeze the store"
    ROLL = "roll"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, whom, how long until the next one, and how long the victim stays away."""

    kind: Kind
    victim: str
    rest_s: float
    away_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run. Each can be set in the environment: HEADRACE_TEST_CHAOS_JOBS, _CALLERS, _KILLS and so on.

    `minutes`: jobs and faults are spread over so long; 0: they come as fast as they can. `calm_minutes`: load without
    faults at the end, in which leaks would show. `keep_s`: how long ended jobs stay; 0: as long as usual.
    """

    seed: int
    jobs: int = 300
    callers: int = 16
    kills: int = 12
    store_kills: int = 2
    freezes: int = 2
    rolls: int = 0
    gateways: int = 2
    workers: int = 3
    schedulers: int = 1
    minutes: float = 0
    calm_minutes: float = 0
    keep_s: int = 0

    @classmethod
    def drawn(cls, seed: int, environ: Mapping[str, str] = os.environ) -> Self:
        """The plan of this environment."""
        names = {field.name: PREFIX + field.name.upper() for field in fields(cls) if field.name != "seed"}
        given = {name: float(environ[word]) for name, word in names.items() if word in environ}
        whole = {name: value if name.endswith("minutes") else int(value) for name, value in given.items()}
        return cls(seed, **whole)  # pyright: ignore[reportArgumentType]  # each is a number of the right kind

    @property
    def rest_s(self) -> float:
        """The mean time between two faults."""
        count = self.kills + self.store_kills + self.freezes + self.rolls
        return self.minutes * 60 / count if self.minutes and count else 0.5

    def faults(self, members: list[str]) -> list[Fault]:
        """The faults in their order; each kind of member gets its share of the kills."""
        dice = random.Random(self.seed)
        workers = [name for name in members if name.startswith("worker")]
        drawn = [(Kind.KILL, members[number % len(members)]) for number in range(self.kills)]
        drawn += [(Kind.ROLL, members[number % len(members)]) for number in range(self.rolls)]
        drawn += [(Kind.KILL_STORE, "valkey")] * self.store_kills
        drawn += [(Kind.FREEZE, dice.choice(workers)) for _ in range(self.freezes - self.freezes // 2)]
        drawn += [(Kind.FREEZE_STORE, "valkey")] * (self.freezes // 2)
        dice.shuffle(drawn)
        rest_s = self.rest_s
        return [Fault(kind, victim, dice.uniform(0.2, 1.8) * rest_s, dice.uniform(0.0, 0.6)) for kind, victim in drawn]
