"""A subscription's entries to SSE bytes: ids, keep-alives, the end, and the plain word where something is missing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from itertools import zip_longest

import orjson
import structlog

from common.contracts import Failure, JsonObject, OnInterrupt, Outcome, Position, State
from common.errors import HeadraceError
from common.metrics import GatewayMetrics
from common.queue import Place
from common.runs import in_one, in_order
from common.stream import EVENTS, OUTCOME, STARTED, Entry
from gateway.dialects.shape import EVENT_STREAM, UNSHAPEABLE, Shape
from gateway.hub import Hub
from gateway.readers import Subscription, events_in
from gateway.sending import SEND_TIMEOUT_S, Sending

log = structlog.get_logger(__name__)


class Relay:
    """One reader's way from entries to bytes. It knows the position, and so what a changed fence means."""

    def __init__(
        self,
        reader: Subscription,
        shape: Shape,
        metrics: GatewayMetrics,
        *,
        on_interrupt: OnInterrupt,
        seen: Position | None = None,
    ) -> None:
        self._reader = reader
        self._shape = shape
        self._metrics = metrics
        self._on_interrupt = on_interrupt
        self._seen = self._resumed = seen
        self._done = False
        self._told: Place | None = None

    async def bytes(self, first: list[Entry]) -> AsyncGenerator[bytes, None]:
        """The stream's bytes: what `first` holds, then what comes, until the end. Closes the reader."""
        try:
            with self._metrics.stream_open():
                yield self._shape.opening() + self._render(first) + self._waiting()
                while not self._done:
                    entries = await self._reader.next()
                    yield self._render(entries) if entries else self._waiting() or self._shape.keep_alive()
        except HeadraceError as error:
            yield self._shape.failed(None, error.failure)
        except UNSHAPEABLE:
            yield _untold(self._shape)
        finally:
            self._reader.close()

    def _waiting(self) -> bytes:
        """Where the job stands in the queue, if that is known and news."""
        place = self._reader.place
        if place is None or place.position is None or place == self._told:
            return b""
        self._told = place
        return self._shape.waiting(place)

    def _render(self, entries: list[Entry]) -> bytes:
        return b"".join([self._entry(entry) for entry in entries])

    def _entry(self, entry: Entry) -> bytes:
        # Only who reads from the store sees an attempt begin: what readers are told must not depend on where they read.
        if entry.kind == STARTED or self._done:
            return b""
        anew = self._anew(entry.last.fence)
        if self._done:
            return anew
        self._seen = entry.last
        if entry.kind == EVENTS:
            return anew + self._events(entry)
        return anew + (self._end(entry) if entry.kind == OUTCOME else b"")

    def _anew(self, fence: int) -> bytes:
        """Empty, unless the reader has events of an earlier attempt: then its answer begins anew, and it is told so.

        Told just before the first that the new attempt says, under that attempt's beginning: a resume from there has
        all of it. Who wants no second answer is told under no id, so that a resume is told the same again.
        """
        seen = self._seen
        if seen is None or seen.seq == 0 or fence == seen.fence:
            return b""
        if self._on_interrupt is OnInterrupt.RESTART:
            self._seen = Position(fence, 0)
            return self._shape.anew(self._seen)
        self._done = True
        text = "The answer broke off and was begun anew; what comes would not fit what you have."
        return self._shape.failed(None, Failure("upstream_interrupted", text))

    def _events(self, entry: Entry) -> bytes:
        events = entry.body.split(b"\n")
        self._metrics.events_relayed(len(events))
        return self._shape.events(entry.last, events)

    def _end(self, entry: Entry) -> bytes:
        self._done = True
        outcome = Outcome.decode(entry.body)
        if outcome.status is State.SUCCEEDED:
            return self._shape.end(entry.last, outcome, resumed=entry.last == self._resumed)
        failure = outcome.failure or Failure("internal_error", "The job ended without a reason.")
        return self._shape.failed(entry.last, failure)


def _untold(shape: Shape) -> bytes:
    """The word for an answer that its shape can't tell, inside an exception's handler: better than a torn stream."""
    log.exception("relay.answer_untold")
    return shape.failed(None, Failure("internal_error", "Something went wrong on our side."))


class EventStream(Sending):
    """A relay's bytes as an answer. Keep-alives are among them."""

    def __init__(
        self,
        hub: Hub,
        body: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        media_type: str = EVENT_STREAM,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        all_headers = {"Cache-Control": "no-cache", **headers}
        super().__init__(hub, body, all_headers, media_type=media_type, send_timeout_s=send_timeout_s)


async def no_frames() -> AsyncGenerator[bytes, None]:
    """Those of a stream whose headers alone are asked for."""
    for frame in ():
        yield frame


async def stored_frames(shape: Shape, fence: int, outcome: Outcome, result: bytes) -> AsyncGenerator[bytes, None]:
    """A stored answer as a stream: what each choice said, in few events, then its end, usage, and the last word."""
    opening = shape.opening()
    try:
        frames = _told(shape, fence, outcome, orjson.loads(result))
    except UNSHAPEABLE:
        frames = _untold(shape)
    yield opening + frames


def _told(shape: Shape, fence: int, outcome: Outcome, stored: JsonObject) -> bytes:
    pieces = in_order if shape.said_in_order else in_one
    said = zip_longest(*[pieces(one) for one in stored["choices"]])
    deltas = [[{**one, "finish_reason": None} for one in together if one is not None] for together in said]
    ends: list[JsonObject] = [
        {"index": one["index"], "delta": {}, "finish_reason": one.get("finish_reason")} for one in stored["choices"]
    ]
    events = [orjson.dumps({"choices": choices}) for choices in (*deltas, ends)]
    frames = shape.events(Position(fence, len(events)), events)
    return frames + shape.end(Position(fence, len(events) + 1), outcome, resumed=False)


def has_substance(entries: list[Entry]) -> bool:
    """Whether there is more among these than that an attempt started."""
    return any(events_in(entry) for entry in entries)
