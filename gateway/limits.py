"""How much more of a tenant may wait, in the headers that OpenAI's and Anthropic's clients read. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from common.contracts import Job
from common.errors import TenantQueueFull
from common.queue import Admitted
from gateway.dialects.names import ANTHROPIC

Headers = dict[str, str]

OPENAI_LIMITS: Final = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
ANTHROPIC_LIMITS: Final = (
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
)
_ALL: Final = frozenset({*OPENAI_LIMITS, *ANTHROPIC_LIMITS})


class TenantFull(TenantQueueFull):
    """Too many of your jobs wait; try again when some have run."""

    def __init__(self, admitted: Admitted, retry_after_s: float) -> None:
        text = f"{admitted.waiting} of your jobs wait already; try again when some have run."
        super().__init__(text, retry_after_s=retry_after_s)
        # What waits may wait elsewhere: that nothing is ahead of this job tells nothing of when there is room.
        self._admitted = replace(admitted, wait_ms=admitted.wait_ms or None)
        self._retry_after_ms = math.ceil(retry_after_s * 1000)

    def headers(self, *, anthropic: bool = False) -> Headers:
        """The limit's headers for this refusal, which resets no sooner than it may be tried again."""
        return limit_headers(self._admitted, anthropic=anthropic, least_ms=self._retry_after_ms)


@dataclass(frozen=True, slots=True)
class Room:
    """What the queue said of a tenant's limit when it took this job, `at_s` by this process's monotonic clock."""

    admitted: Admitted
    job: Job
    at_s: float

    def headers(self, now_s: float) -> Headers:
        """The limit's headers for an answer that begins now."""
        anthropic = self.job.dialect == ANTHROPIC
        passed_ms = int((now_s - self.at_s) * 1000)
        return limit_headers(self.admitted, anthropic=anthropic, least_ms=self.job.delay_ms, passed_ms=passed_ms)


def limit_headers(admitted: Admitted, *, anthropic: bool = False, least_ms: int = 0, passed_ms: int = 0) -> Headers:
    """The limit, what it leaves, and until when this job's turn will have come; nothing where the queue didn't say.

    That turn comes not before `least_ms`; `passed_ms` of the time until then are over.
    """
    if admitted.waiting is None:
        return {}
    limit, remaining, reset = ANTHROPIC_LIMITS if anthropic else OPENAI_LIMITS
    headers = {limit: str(admitted.most_waiting), remaining: str(max(0, admitted.most_waiting - admitted.waiting))}
    if admitted.wait_ms is not None:
        turn_ms = max(admitted.wait_ms, least_ms)
        at_ms = admitted.created_ms + turn_ms
        headers[reset] = format_time(at_ms) if anthropic else format_duration(turn_ms - passed_ms)
    return headers


def as_last_left(all_headers: Iterable[Headers]) -> Headers:
    """Of several answers' headers, in the order of their jobs, the limit as the last job that was made left it."""
    left: Headers = {}
    for headers in all_headers:
        left = {name: value for name, value in headers.items() if name in _ALL} or left
    return left


def format_duration(ms: int) -> str:
    """A time as OpenAI writes it, `17ms`, `1s`, `6m0s`, rounded up: many readers know whole numbers only."""
    if ms <= 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, seconds = divmod(-(-ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def format_time(ms: int) -> str:
    """A time since the epoch by RFC 3339, in UTC, rounded up to whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(-(-ms // 1000)))
