"""A backend's API keys: used in turn, each left alone while its rate limit says so or its owner's account is refused.

A key is only ever named by its digest, in logs and in the store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.backends import Rest
from common.clock import Clock
from common.queue import digest

MOST_BLOCKED_S: Final = 3_600.0
BUSY_S: Final = 2.0
"""How long a key rests after a 429 that doesn't say."""
LIMITED: Final = "rate_limited"
REFUSED: Final = "refused"
REFUSED_S: Final = 300.0
FORBIDDEN: Final = "forbidden"
FORBIDDEN_S: Final = 60.0

# What a server without room says of itself: another key would be refused just so. Groq's 498; 5xx do too.
_OF_SERVER: Final = 498
# A request that alone is too much for a limit, if no time is told after which it is not: just so.
_OF_REQUEST: Final = 413
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


@dataclass(frozen=True, slots=True)
class _Resting:
    """A key at rest: until when by this clock, and why."""

    until_s: float
    why: str


class KeyPool:
    """One backend's keys."""

    def __init__(self, secrets: Sequence[str], clock: Clock) -> None:
        self._keys = [ApiKey(secret, digest_of(secret)) for secret in secrets]
        self._clock = clock
        self._turn = 0
        self._resting: dict[str, _Resting] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def next(self) -> ApiKey | None:
        """The next usable key in turn; None while there is none."""
        for _ in self._keys:
            self._turn = (self._turn + 1) % len(self._keys)
            key = self._keys[self._turn]
            if not self._resting or self._blocked_s(key) <= 0:
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

    @property
    def pace_s(self) -> float:
        """Seconds until the first of the keys that only met a limit can be used; 0 where none rests for that."""
        resting = (key for key in self._keys if self._blocked_s(key) > 0)
        return min((self._blocked_s(key) for key in resting if not self._is_refused(key)), default=0.0)

    @property
    def all_refused(self) -> bool:
        """Whether every key rests because it, or the account behind it, is refused: to wait a little is no use."""
        return all(self._blocked_s(key) > 0 and self._is_refused(key) for key in self._keys)

    def block(self, key: ApiKey, block: Block) -> bool:
        """Whether the key now rests: a key that a model is merely forbidden to is kept where it is the last one."""
        if block.why == FORBIDDEN and self.usable <= 1:
            return False
        self._rest(key.digest, block.for_s, block.why)
        return True

    def learn(self, rests: Mapping[str, Rest]) -> None:
        """Takes over what others found, by the keys' digests."""
        for name, rest in rests.items():
            self._rest(name, rest.left_ms / 1000, rest.why)
        now_s = self._clock.monotonic_s()
        self._resting = {digest: resting for digest, resting in self._resting.items() if resting.until_s > now_s}

    def _rest(self, digest: str, for_s: float, why: str) -> None:
        until_s = self._clock.monotonic_s() + for_s
        known = self._resting.get(digest)
        if known is None or known.until_s < until_s:
            self._resting[digest] = _Resting(until_s, why)

    def _blocked_s(self, key: ApiKey) -> float:
        resting = self._resting.get(key.digest)
        return 0.0 if resting is None else resting.until_s - self._clock.monotonic_s()

    def _is_refused(self, key: ApiKey) -> bool:
        return self._resting[key.digest].why in (REFUSED, FORBIDDEN)


def digest_of(secret: str) -> str:
    """The name of a key: 8 bytes in hex that tell nothing of it."""
    return digest(secret)


def refused(status: int) -> Block:
    """How long a key rests that was refused with this status: with 403 perhaps only for this model."""
    return Block(FORBIDDEN_S, FORBIDDEN) if status == 403 else Block(REFUSED_S, REFUSED)


def judge(status: int, headers: Mapping[str, str]) -> Block | None:
    """Whether an answer means that its key must rest for its pace, by its status and rate-limit headers.

    Whether the key is refused, its status alone does not say: a filtered prompt may be a 403 too.
    """
    spent_s = _spent_s(headers)
    if status == 429:
        asked_s = _asked_s(headers)
        return Block(_bounded_s(asked_s or spent_s or BUSY_S), LIMITED)
    return Block(_bounded_s(spent_s), "spent") if spent_s else None


def limited(status: int, pace: Block | None, asked_s: float | None) -> Block | None:
    """How long a key rests whose call was refused as one too many: as the headers say or, where that is longer, as the
    whole refusal says; a body or a date may say it too. A server that is busy itself rests only keys that are spent.
    """
    if not 400 <= status < 500 or status == _OF_SERVER or (status == _OF_REQUEST and not asked_s):
        return pace
    told_s = max(asked_s or 0, pace.for_s if pace else 0)
    return Block(_bounded_s(told_s or BUSY_S), pace.why if pace else LIMITED)


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
