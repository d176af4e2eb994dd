"""What every dialect's stream honours: a job's events in, one reader's bytes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from common.contracts import Failure, Outcome, Position
from common.queue import Place

EVENT_STREAM: Final = "text/event-stream"

# Both are single lines before the event that comes next. OpenAI's Python SDK, once it has seen an `id:` or a `retry:`,
# takes every empty line for the end of an event, and fails on one without data.
KEEP_ALIVE: Final = b": keep-alive\n"
RETRY_MS: Final = 1_000
RETRY: Final = f"retry: {RETRY_MS}\n".encode()

UNSHAPEABLE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What is raised by a shape whose answer is not what answers are: of a server that was believed too much."""


class Shape(Protocol):
    """Makes the bytes of one reader's stream, called in the order of the stream. It may keep what it has said.

    Events are JSON objects with OpenAI's streamed `choices`. A shape that counts what it sends is given the stream from
    its beginning; only OpenAI's chunks can be joined in the middle.
    """

    media_type: ClassVar[str]
    said_in_order: ClassVar[bool]
    """Whether a stored answer is given to it in the order in which it was said; others find that in the message."""

    def opening(self) -> bytes:
        """What comes first of all."""
        ...

    def keep_alive(self) -> bytes:
        """What is sent where nothing else was for a while; empty where the dialect has nothing for it."""
        ...

    def waiting(self, place: Place) -> bytes:
        """Where the job stands in the queue."""
        ...

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """Consecutive events, of which the last is at this position."""
        ...

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """The good end. `resumed`: the reader has had this position before, and lacks only what comes after it."""
        ...

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The bad end, where it has a position with that; nothing follows."""
        ...

    def anew(self, begins: Position) -> bytes:
        """The word that the answer begins anew, and that what came before is void."""
        ...
