"""What readers and the store saw, and whether it could have happened: gaps, doubles, splices, second ends, lost jobs.

Pure: journals and dumps in, sentences about what is wrong out. An empty list is the only good answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.contracts import Position
from deploy.local.sse import Event

DONE: Final = "[DONE]"
SENT_AWAY: Final = "slow_reader"
ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass(slots=True)
class Journal:
    """What one reader was given, in order, over all its connections; numbered tokens are the tokens' own proof.

    `tokens` is how many the whole answer has, where that is known; `numbered` whether they are numbers.
    """

    tokens: int | None = None
    numbered: bool = True
    job_id: str = ""
    events: list[Event] = field(default_factory=list[Event])
    connections: int = 0
    problems: list[str] = field(default_factory=list[str])
    _fence: int | None = None
    _seq: int = 0
    _token: int = 0
    _end: str | None = None

    # --- what came ----------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Notes an event, and what is wrong with its coming now."""
        self.events.append(event)
        if self._end is not None:
            self._wrong(f"{event.id} came after the end ({self._end})")
        self._follow(event)
        self._read(event)

    def take_nothing_more(self) -> None:
        """Notes that the job has ended and that nothing comes after the last position."""
        if self._end is None:
            self._complete()

    @property
    def last_id(self) -> str:
        """The position to resume after; '' before the first event."""
        return self.events[-1].id if self.events else ""

    @property
    def end(self) -> str | None:
        """`[DONE]`, or the code of the error that ended it; None while it goes on."""
        return self._end

    @property
    def seen(self) -> int:
        """Tokens of the present attempt."""
        return self._token

    @property
    def resets(self) -> int:
        """How often the reader was told that the answer begins anew."""
        return sum(event.name == "reset" for event in self.events)

    # --- what is right ------------------------------------------------------------------------------------------------

    def _follow(self, event: Event) -> None:
        """The positions: an attempt's events from 1 on without a gap, another attempt only after a reset."""
        is_error = event.data.startswith('{"error"')
        if not event.id:
            if not is_error:
                self._wrong("an event has no position")
            return
        try:
            position = Position.parse(event.id)
        except ValueError:
            self._wrong(f"{event.id!r} is no position")
            return
        if event.name == "reset":
            self._begin(position)
        elif not is_error:
            self._go_on(position, is_end=event.data == DONE)

    def _go_on(self, position: Position, *, is_end: bool) -> None:
        fence = position.fence if self._fence is None else self._fence
        if is_end:
            # An answer without a token may end in an attempt after those of which nothing came either.
            if position.seq != self._seq + 1 or (position.fence != fence and self._seq > 0):
                self._wrong(f"{position}, the end, came after {fence}-{self._seq}")
            return
        # An attempt of which nothing came may be followed by another without a word.
        if position.fence < fence or (position.fence > fence and self._seq > 0):
            self._wrong(f"{position} is of another attempt than {fence}-{self._seq}, and no reset came between")
        elif position.seq != self._seq + 1:
            self._wrong(f"{position} came after {fence}-{self._seq}")
        self._fence, self._seq = position.fence, position.seq

    def _begin(self, position: Position) -> None:
        if position.seq != 0 or (self._fence is not None and position.fence <= self._fence):
            self._wrong(f"a reset to {position} came after {self._fence}-{self._seq}")
        self._fence, self._seq, self._token = position.fence, 0, 0

    def _read(self, event: Event) -> None:
        """The text: numbers from 0 on, and all of them before the end."""
        if event.data == DONE:
            self._complete()
            return
        body: dict[str, Any] = json.loads(event.data)
        if "error" in body:
            code = str(body["error"]["code"])
            # A reader that was too slow is sent away; the job goes on.
            self._end = None if code == SENT_AWAY else code
            return
        for choice in body["choices"]:
            for word in (choice["delta"].get("content") or "").split():
                self._count(word)

    def _complete(self) -> None:
        self._end = DONE
        if self.tokens is not None and self._token != self.tokens:
            self._wrong(f"it was complete with {self._token} of {self.tokens} tokens")

    def _count(self, word: str) -> None:
        if self.numbered and word != str(self._token):
            self._wrong(f"token {word!r} came where {self._token} was due")
        self._token += 1

    def _wrong(self, what: str) -> None:
        self.problems.append(f"{self.job_id or 'a stream'}: {what}")


# --- the store's side -------------------------------------------------------------------------------------------------

Entry = tuple[str, str, str]
"""A stream entry: its id, its kind, its body."""


def stream_problems(job_id: str, state: str, entries: Sequence[Entry]) -> list[str]:
    """What is wrong with a job's whole stream: attempts that interleave, gaps inside one, no end or two of them."""
    found: list[str] = []
    ends = [index for index, (_, kind, _) in enumerate(entries) if kind == "o"]
    if state in ENDED and ends != [len(entries) - 1]:
        found.append(f"{job_id}: {state}, and the ends in its stream of {len(entries)} entries are at {ends}")
    at = Position(0, 0)
    for raw, kind, body in entries:
        position = Position.parse(raw)
        first = position.seq - body.count("\n") if kind == "c" else position.seq
        if kind != "s" and position.fence == at.fence and first != at.seq + 1:
            found.append(f"{job_id}: {raw} ({kind}) follows {at}")
        if position.fence != at.fence and kind == "c" and first != 1:
            found.append(f"{job_id}: an attempt begins with {raw} ({kind})")
        at = position
    return found


def job_problems(jobs: Iterable[tuple[str, str]]) -> list[str]:
    """The (job, state) pairs that have not ended."""
    return [f"{job_id}: still {state}" for job_id, state in jobs if state not in ENDED]


def count_problems(stats: dict[str, int]) -> list[str]:
    """What is wrong with a pool's counters once everything has ended: each submission must have ended once."""
    ends = sum(stats.get(state, 0) for state in ENDED)
    submitted = stats.get("submitted", 0)
    return [] if ends == submitted else [f"{submitted} jobs were submitted and {ends} ends were counted"]
