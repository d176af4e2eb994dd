"""Which lanes of a pool a worker can serve now, and how many jobs of each it should take at most."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from common import keys
from common.breaker import Phase
from common.config import Settings
from common.contracts import Priority
from common.queue import Cap
from workers.fleet import Fleet

LEAST_SLOTS_TO_KEEP_FROM: Final = 8


def kept_slots(concurrency: int, share: float) -> int:
    """How many of a worker's slots are kept for interactive work, while some came lately: the share, rounded up.

    None of fewer than eight: slots are whole, and one of seven, left idle for work that may come, costs the others
    more than an eighth of the worker; one of one would leave them nothing. There batch work may give way instead.
    """
    if concurrency < LEAST_SLOTS_TO_KEEP_FROM:
        return 0
    return math.ceil(round(concurrency * share, 6))  # 140 × 0.05 is a little more than 7


class _Reach(NamedTuple):
    """The backends that a model's jobs go to, and those of its fallbacks for when none of them takes a call."""

    own: frozenset[str]
    spare: frozenset[str]


class Lanes:
    """The lanes of one pool.

    A model none of whose backends can be called, nor any of its fallback's, keeps only its interactive lane: a person
    who waits shall hear of the failure, while standard and batch work waits for the backend's return and spends no
    attempt.
    """

    def __init__(self, settings: Settings, pool: str, fleet: Fleet) -> None:
        self._fleet = fleet
        self._models = settings.models
        reaches = {model: self._reach(model) for model in settings.models_of(pool)}
        self._rows = [
            (keys.lane_name(priority, model), priority, reach)
            for model, reach in reaches.items()
            for priority in Priority
        ]
        # Lanes by the backends that they share: asked at every claim, so put together once.
        self._sharing = {
            shared: frozenset(name for name, _, reach in self._rows if reach == shared)
            for shared in set(reaches.values())
        }

    def __call__(self) -> list[str]:
        """The names of the lanes that can be served."""
        usable = {reach: self._usable(reach.own) or self._usable(reach.spare) for reach in self._sharing}
        return [name for name, priority, reach in self._rows if priority is Priority.INTERACTIVE or usable[reach]]

    def caps(self) -> list[Cap]:
        """The most jobs to take in a claim from the lanes that share their backends: as many as those have room for."""
        return [Cap(self._room(reach), lanes) for reach, lanes in self._sharing.items()]

    def _reach(self, model: str) -> _Reach:
        row = self._models[model]
        own = frozenset(target.backend for target in row.targets)
        others = [self._models[name] for name in row.fallback.while_away]
        return _Reach(own, frozenset(target.backend for other in others for target in other.targets) - own)

    def _usable(self, backends: frozenset[str]) -> bool:
        return any(map(self._fleet.usable, backends))

    def _room(self, reach: _Reach) -> int:
        """Where none can be called, one job may still come, to be told so."""
        backends = reach.own if self._usable(reach.own) else reach.spare
        room = sum(map(self._free, backends))
        return room if room or self._usable(backends) else 1

    def _free(self, backend: str) -> int:
        if not self._fleet.usable(backend):
            return 0
        free = self._fleet.slots.obtainable(backend)
        # Until its probe has answered, the others would only come back.
        return free if self._fleet.breakers.view(backend).phase is Phase.CLOSED else min(free, 1)
