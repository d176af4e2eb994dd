"""One reader's stream as the contract's events: the shape that gRPC gives to what `gateway/relay.py` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from common.contracts import Failure, Outcome, Position
from common.queue import Place
from gateway.dialects.openai import end_of_stream
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.writing import chunk_of, end_of, place_of


class EventShape:
    """Collects messages instead of making bytes: gRPC frames them itself. Positions are those of the HTTP streams.

    A bad end is no message but the call's status, so it is kept as `failure`.
    """

    __slots__ = ("_events", "_include_usage", "failure")

    media_type: ClassVar[str] = "application/grpc"
    said_in_order: ClassVar[bool] = False

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._events: list[pb.JobEvent] = []
        self.failure: Failure | None = None

    def taken(self) -> list[pb.JobEvent]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def keep_alive(self) -> bytes:
        """Nothing: HTTP/2 has its own pings."""
        return b""

    def waiting(self, place: Place) -> bytes:
        """The job's place in the queue."""
        self._events.append(pb.JobEvent(queue=place_of(place)))
        return b""

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """A chunk for each."""
        first = last.seq - len(events) + 1
        self._events += [
            pb.JobEvent(position=f"{last.fence}-{first + i}", chunk=chunk_of(event)) for i, event in enumerate(events)
        ]
        return b""

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """The good end, with usage whether or not it was asked for."""
        position = end_of_stream(last, outcome, include_usage=self._include_usage)
        self._events.append(pb.JobEvent(position=str(position), end=end_of(outcome)))
        return b""

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The bad end."""
        self.failure = failure
        return b""

    def anew(self, begins: Position) -> bytes:
        """The word that the answer begins anew."""
        self._events.append(pb.JobEvent(position=str(begins), reset=pb.Reset()))
        return b""
