"""A backend's API keys: used in turn, each left alone while its rate limit says so or its owner's account is refused.

A key is only ever named by its digest, in logs and in the store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.clock import Clock
from common.queue import digest

MOST_BLOCKED_S: Final = 3_600.0
BUSY_S: Final = 2.0
"""How long a key rests after a 429 that doesn't say."""
REFUSED_S: Final = 300.0
FORBIDDEN_S: Final = 60.0

_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_LIMITS: Final = ("requests", "tokens")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key and the name that it may be called by."""

    secret: str = field(repr=False)
    digest: str


@dataclass(frozen=True, slots=True)
class Block:
    """For how long a key is not to be used, and why, in a word."""

    for_s: float
    why: str


class KeyPool:
    """One backend's keys."""

    def __init__(self, secrets: Sequence[str], clock: Clock) -> None:
        self._keys = [ApiKey(secret, digest_of(secret)) for secret in secrets]
        self._clock = clock
        self._turn = 0
        self._until_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def next(self) -> ApiKey | None:
        """The next usable key in turn; None while there is none."""
        for _ in self._keys:
            self._turn = (self._turn + 1) % len(self._keys)
            key = self._keys[self._turn]
            if not self._until_s or self._blocked_s(key) <= 0:
                return key
        return None

    def rests(self, key: ApiKey) -> bool:
        """Whether this key is not to be used now."""
        return self._blocked_s(key) > 0

    @property
    def usable(self) -> int:
        """How many keys could be used now."""
        return sum(self._blocked_s(key) <= 0 for key in self._keys)

    @property
    def wait_s(self) -> float:
        """Seconds until a key can be used; 0 where one can."""
        return max(0.0, min((self._blocked_s(key) for key in self._keys), default=0.0))

    def block(self, key: ApiKey, block: Block) -> bool:
        """Whether the key now rests: a key that a model is merely forbidden to is kept where it is the last one."""
        if block.why == "forbidden" and self.usable <= 1:
            return False
        self._rest(key.digest, block.for_s)
        return True

    def learn(self, blocked_ms: Mapping[str, int]) -> None:
        """Takes over what others found: digest -> ms until the key can be used again."""
        for name, left_ms in blocked_ms.items():
            self._rest(name, left_ms / 1000)
        now_s = self._clock.monotonic_s()
        self._until_s = {digest: until_s for digest, until_s in self._until_s.items() if until_s > now_s}

    def _rest(self, digest: str, for_s: float) -> None:
        until_s = self._clock.monotonic_s() + for_s
        self._until_s[digest] = max(until_s, self._until_s.get(digest, until_s))

    def _blocked_s(self, key: ApiKey) -> float:
        return self._until_s.get(key.digest, 0.0) - self._clock.monotonic_s()


def digest_of(secret: str) -> str:
    """The name of a key: 8 bytes in hex that tell nothing of it."""
    return digest(secret)


def judge(status: int, headers: Mapping[str, str]) -> Block | None:
    """Whether an answer means that its key must rest, by its status and rate-limit headers."""
    if status in (401, 402):
        return Block(REFUSED_S, "refused")
    if status == 403:
        return Block(FORBIDDEN_S, "forbidden")
    spent_s = _spent_s(headers)
    if status == 429:
        asked_s = _asked_s(headers)
        return Block(_bounded_s(asked_s or spent_s or BUSY_S), "rate_limited")
    return Block(_bounded_s(spent_s), "spent") if spent_s else None


def _spent_s(headers: Mapping[str, str]) -> float:
    """Seconds until the limits that are used up are reset; 0 where none is, or where nothing says when."""
    waits = [
        seconds(headers.get(f"x-ratelimit-reset-{limit}", ""))
        for limit in _LIMITS
        if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0"
    ]
    return max((wait for wait in waits if wait), default=0.0)


def _asked_s(headers: Mapping[str, str]) -> float | None:
    exact_ms = seconds(headers.get("retry-after-ms", ""))
    return exact_ms / 1000 if exact_ms else seconds(headers.get("retry-after", ""))


def seconds(text: str) -> float | None:
    """The seconds that `17ms`, `6m0s` or `1.5` say; None for anything else."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        found = _DURATION.fullmatch(text)
        if not text or found is None:
            return None
        hours, minutes, rest, millis = (float(part or 0) for part in found.groups())
        return hours * 3600 + minutes * 60 + rest + millis / 1000
    return number if math.isfinite(number) and number >= 0 else None


def _bounded_s(wait_s: float) -> float:
    return min(max(wait_s, 0.001), MOST_BLOCKED_S)
