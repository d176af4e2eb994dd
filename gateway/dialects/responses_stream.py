"""A response's stream: typed events, numbered from 0, the same for whoever reads it, whenever and wherever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, Position
from common.queue import Place
from gateway.dialects.responses_items import Event, Output
from gateway.dialects.responses_output import ended_object, failed_object, response_object
from gateway.dialects.shape import EVENT_STREAM, KEEP_ALIVE
from gateway.errors import error_fields


class ResponseShape:
    """Renders a job's stream from its beginning, and leaves out what the reader has: the events up to `after`."""

    media_type: ClassVar[str] = EVENT_STREAM
    said_in_order: ClassVar[bool] = True

    def __init__(self, job: Job, created_s: int, *, after: int = -1) -> None:
        self._job = job
        self._created_s = created_s
        self._after = after
        self._next = 0
        self._output = Output(job.id)
        self._runs = False

    @property
    def last_number(self) -> int:
        """The number of the last event so far, told or left out; -1 before the first."""
        return self._next - 1

    def opening(self) -> bytes:
        """The response as it was accepted."""
        if not self._job.asked.get("background"):
            return self._say([("response.created", self._as("in_progress"))]) + self._running()
        queued = self._as("queued")
        return self._say([("response.created", queued), ("response.queued", queued)])

    def keep_alive(self) -> bytes:
        """A comment."""
        return KEEP_ALIVE

    def waiting(self, place: Place) -> bytes:
        """The job's place in the queue, as a comment: it is no event of the response."""
        wait = b"" if place.wait_ms is None else b" estimated_wait_ms=%d" % place.wait_ms
        return b": queue position=%d%b\n" % (place.position or 0, wait)

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """What each of them adds."""
        told = [self._running()]
        for raw in events:
            event: JsonObject = orjson.loads(raw)
            if event.get("model", self._job.model) != self._job.model:
                self._job = replace(self._job, model=event["model"])
            for choice in event["choices"]:
                told.append(self._say(self._output.add(choice)))
        return b"".join(told)

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """The ends of all items, and the response as it is now for good."""
        output = self._output
        output.reason = output.reason or outcome.finish_reason
        told = self._running() + self._say(output.close())
        usage = outcome.usage and outcome.usage.to_openai()
        response = ended_object(self._job, self._created_s, output.said, output.reason, usage, outcome)
        return told + self._say([(f"response.{response['status']}", {"response": response})])

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The job's bad end; or this reader's alone, which is no event of the response and takes no number."""
        if position is None:
            return self._error(failure)
        told = self._running() + self._say(self._output.close(broken=True))
        response = failed_object(self._job, self._created_s, self._output.said, failure)
        # There is no event of a response that was cancelled.
        return told + self._say([("response.failed", {"response": response})])

    def anew(self, begins: Position) -> bytes:
        """What was said ends as incomplete; what comes are new items, and they alone will be the answer."""
        return self._say(self._output.begin_anew())

    def _running(self) -> bytes:
        """The word that it runs, before the first that it says."""
        if self._runs:
            return b""
        self._runs = True
        return self._say([("response.in_progress", self._as("in_progress"))])

    def _as(self, status: str) -> JsonObject:
        return {"response": response_object(self._job, self._created_s, status)}

    def _say(self, events: Iterable[Event]) -> bytes:
        frames: list[bytes] = []
        for kind, fields in events:
            if self._next > self._after:
                frames.append(_frame(kind, {"type": kind, "sequence_number": self._next, **fields}))
            self._next += 1
        return b"".join(frames)

    def _error(self, failure: Failure) -> bytes:
        # A reader that comes back after the last number it saw must not miss the event that will have the next one.
        last = max(self._next - 1, self._after, 0)
        error = error_fields(failure)
        told = {"code": error["code"], "message": error["message"], "param": error["param"]}
        return _frame("error", {"type": "error", "sequence_number": last, **told})


def _frame(kind: str, document: JsonObject) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(document) + b"\n\n"
