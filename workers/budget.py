"""Token buckets that bound extra calls: ordinary calls fill one a little, each extra call empties it by a whole token.

So retries and hedges stay a share of the work, however much of it fails: a sick upstream is never met with more calls.
"""

from __future__ import annotations

from typing import Final

from common.clock import Clock

MOST_SAVED: Final = 50.0
"""Tokens that can be saved up: how many extra calls may go out at once after a long good time."""


class Budget:
    """Extra calls for at most `share` of the ordinary ones, beside a small reserve.

    The reserve is what a new or a quiet process may spend; where `regain_s` is given, a spent token of it comes back
    every so many seconds. With a share of 0 there are no extra calls at all.
    """

    def __init__(self, share: float, clock: Clock, *, reserve: float, regain_s: float = 0) -> None:
        self._share = share
        self._clock = clock
        self._reserve = reserve if share > 0 else 0.0
        self._regain_s = regain_s
        self._tokens = self._reserve
        self._seen_s = clock.monotonic_s()

    def deposit(self) -> None:
        """Counts an ordinary call."""
        self._tokens = min(self._tokens + self._share, MOST_SAVED)

    @property
    def affords(self) -> bool:
        """Whether an extra call may be made now."""
        self._regain()
        return self._tokens >= 1

    def withdraw(self) -> bool:
        """Whether an extra call may be made; it is paid for then."""
        if not self.affords:
            return False
        self._tokens -= 1
        return True

    def refund(self) -> None:
        """Gives back what was paid for a call that was not made."""
        self._tokens = min(self._tokens + 1, MOST_SAVED)

    def borrow(self) -> None:
        """Pays for an extra call to be made much later: later ordinary calls make up for it first."""
        self._regain()
        self._tokens = max(self._tokens - 1, -MOST_SAVED)

    def _regain(self) -> None:
        if not self._regain_s or not self._share:
            return
        now_s = self._clock.monotonic_s()
        steps = int((now_s - self._seen_s) / self._regain_s)
        self._seen_s += steps * self._regain_s
        if self._tokens < self._reserve:
            self._tokens = min(self._tokens + steps, self._reserve)
