"""Pure: what ended jobs took, gathered until the store is told: to tell of each alone costs a third of ending it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from common import keys
from common.contracts import Job

MOST_JOBS: Final = 256
"""So many are told of at once, so that one script stays short."""


@dataclass(slots=True)
class _Lane:
    jobs: int = 0
    cost_tokens: int = 0
    busy_ms: int = 0
    answers: int = 0
    answer_tokens: int = 0
    beyond_by_tenant: dict[str, float] = field(default_factory=dict[str, float])


class Accounts:
    """The ended jobs of one pool of which the store has not been told."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._jobs = 0

    @property
    def full(self) -> bool:
        """Whether there are as many as are told of at once."""
        return self._jobs >= MOST_JOBS

    def add(self, job: Job, *, busy_ms: int, tokens: int, answer_tokens: int) -> None:
        """Notes an ended job: how long it held a slot, what it took, how long its answer was (0 tells nothing)."""
        lane = self._lanes.setdefault(keys.lane_name(job.priority, job.model), _Lane())
        cost = max(1, job.cost_tokens)
        lane.jobs += 1
        lane.cost_tokens += cost
        lane.busy_ms += busy_ms
        if answer_tokens > 0:
            lane.answers += 1
            lane.answer_tokens += answer_tokens
        if tokens != cost:
            beyond = (tokens - cost) / job.weight
            lane.beyond_by_tenant[job.tenant] = lane.beyond_by_tenant.get(job.tenant, 0) + beyond
        self._jobs += 1

    def take(self) -> list[str | int | float]:
        """All of it as `account.lua` reads it; it is then no longer here."""
        words: list[str | int | float] = []
        for name, lane in self._lanes.items():
            beyond = lane.beyond_by_tenant
            words += (name, lane.jobs, lane.cost_tokens, lane.busy_ms, lane.answers, lane.answer_tokens, len(beyond))
            words += (word for pair in beyond.items() for word in pair)
        self._lanes, self._jobs = {}, 0
        return words
