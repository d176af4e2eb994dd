"""Whether what concurrent callers saw could have happened one call after another (linearizability, by Wing and Gong).

Pure: a history and a sequential model in, an order or None out. Meant for histories of a few hundred calls.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, TypeVar

State = TypeVar("State", bound=Hashable)


class _Unknown:
    """The answer that nobody got: the call may have happened, at any later time, or never."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN: Final = _Unknown()
NEVER: Final = 1 << 62


@dataclass(slots=True)
class Call:
    """One call: what was asked, what came back, and the ticks between which it happened."""

    what: Any
    begun: int
    answer: Any = UNKNOWN
    ended: int = NEVER


Step = Callable[[State, Any, Any], State | None]
"""The state after a call with this answer (UNKNOWN: whatever it was); None where it could not have answered so."""


@dataclass
class History:
    """Calls as they are made. Ticks only order them: each begin and each end has its own."""

    calls: list[Call] = field(default_factory=list[Call])
    _ticks: count[int] = field(default_factory=count)

    def begin(self, what: Any) -> Call:
        """A call that is under way; without an end its outcome stays unknown."""
        call = Call(what, next(self._ticks))
        self.calls.append(call)
        return call

    def end(self, call: Call, answer: Any) -> None:
        """Notes what the call answered."""
        call.answer, call.ended = answer, next(self._ticks)

    def first(self, most: int) -> list[Call]:
        """The first calls, cut at a moment: those still under way then are of unknown outcome."""
        if len(self.calls) <= most:
            return self.calls
        cut = self.calls[most].begun
        return [call if call.ended < cut else Call(call.what, call.begun) for call in self.calls[:most]]


Pure = Callable[[Any, Any], bool]
"""Whether a call with this answer changes nothing in any state: such a one is taken as soon as it fits."""


def _never_pure(_what: Any, _answer: Any) -> bool:
    return False


def linearize(calls: Sequence[Call], initial: State, step: Step[State], pure: Pure = _never_pure) -> list[Call] | None:
    """An order in which the calls could have happened, each between its begin and its end; None if there is none.

    Calls that equal each other in what and answer stand for one another, so a model should name no more than it needs.
    """
    return _Search(calls, step, pure).run(initial)


class _Search:
    """Depth first over which call comes next; a set of calls done and a state are looked at once."""

    def __init__(self, calls: Sequence[Call], step: Step[Any], pure: Pure) -> None:
        self.calls = sorted(calls, key=lambda call: call.begun)
        self.step = step
        self.pure = sum(1 << i for i, call in enumerate(self.calls) if pure(call.what, call.answer))
        self.must = sum(1 << i for i, call in enumerate(self.calls) if call.ended != NEVER)
        self.seen: set[tuple[int, Any]] = set()

    def run(self, initial: Any) -> list[Call] | None:
        stack: list[tuple[int, Any, tuple[Any, ...]]] = [(0, initial, ())]
        while stack:
            done, state, order = self._settled(*stack.pop())
            if done & self.must == self.must:
                return self._in_order(order)
            if (done, state) in self.seen:
                continue
            self.seen.add((done, state))
            stack += self._branches(done, state, order)
        return None

    def _branches(self, done: int, state: Any, order: tuple[Any, ...]) -> list[tuple[int, Any, tuple[Any, ...]]]:
        """What may come next, of equal calls the one that ended first; the first is tried first."""
        found: list[tuple[int, Any, tuple[Any, ...]]] = []
        tried: set[Any] = set()
        for i in sorted(self._next(done), key=lambda i: self.calls[i].ended):
            call = self.calls[i]
            if (call.what, call.answer) in tried:
                continue
            tried.add((call.what, call.answer))
            after = self.step(state, call.what, call.answer)
            if after is not None:
                found.append((done | 1 << i, after, (order, i)))
        return found[::-1]

    def _settled(self, done: int, state: Any, order: tuple[Any, ...]) -> tuple[int, Any, tuple[Any, ...]]:
        """With every pure call taken that fits now: to take it at once never spoils an order."""
        found = True
        while found:
            found = False
            for i in self._next(done):
                if self.pure >> i & 1 and self.step(state, self.calls[i].what, self.calls[i].answer) is not None:
                    done, order, found = done | 1 << i, (order, i), True
        return done, state, order

    def _next(self, done: int) -> list[int]:
        """The calls not done that began before any other one not done had ended."""
        found: list[int] = []
        earliest_end = NEVER
        first = (~done & (done + 1)).bit_length() - 1
        for i in range(first, len(self.calls)):
            if self.calls[i].begun > earliest_end:
                break
            if not done >> i & 1:
                found.append(i)
                earliest_end = min(earliest_end, self.calls[i].ended)
        return found

    def _in_order(self, order: tuple[Any, ...]) -> list[Call]:
        chain: list[Call] = []
        while order:
            order, i = order
            chain.append(self.calls[i])
        return chain[::-1]


# --- a register -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """Puts a value into a register."""

    value: Hashable


@dataclass(frozen=True, slots=True)
class Read:
    """Asks a register for its value."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Puts a value in where the old one is as expected; answers whether it was."""

    expected: Hashable
    value: Hashable


def register(state: Hashable, what: Write | Read | Swap, answer: Any) -> Hashable | None:
    """One value, never None, that is written, read, and swapped: the model to try a checker on."""
    if isinstance(what, Write):
        return what.value
    if isinstance(what, Read):
        return state if answer in (UNKNOWN, state) else None
    swapped = state == what.expected
    return (what.value if swapped else state) if answer in (UNKNOWN, swapped) else None


def reads(what: Write | Read | Swap, answer: Any) -> bool:
    """Whether this call left the register as it was."""
    return isinstance(what, Read) or (isinstance(what, Swap) and answer is False)
