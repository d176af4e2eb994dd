"""The two ways to answer a request with its job: as a stream, or whole when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import Failure, Job, Outcome, State
from common.errors import HeadraceError, InternalError
from common.queue import Place, Record
from common.stream import EVENTS, OTHER_MODEL, OUTCOME, Entry
from gateway.dialects.surfaces import answered_by, shape_of, surface_of
from gateway.limits import Room
from gateway.parts import Parts
from gateway.readers import Subscription, Waiter
from gateway.relay import EventStream, Relay, has_substance, stored_frames

DURABILITY: Final = "x-headrace-durability"
# Most answers come before this; only later is it worth a task to notice that the caller has hung up.
PATIENCE_S: Final = 1.0
LATE_S: Final = 30.0
REPLAYED: Final = {"x-headrace-replayed": "true"}
"""Said of an answer that an earlier request with the same idempotency key began."""
LARGE_BYTES: Final = 256 * 1024

Given = ParamSpec("Given")
Shaped = TypeVar("Shaped")


def job_headers(job_id: str, *, journaled: bool = False) -> dict[str, str]:
    """The headers of every answer that belongs to a job."""
    return {"x-headrace-job-id": job_id, DURABILITY: "journal" if journaled else "redis"}


def choice_headers(job: Job) -> dict[str, str]:
    """The headers that say which model was taken and why, where the caller named no model of its own."""
    if not job.choice:
        return {}
    return {"x-headrace-model": job.model, "x-headrace-choice-reason": job.choice["reason"]}


def refusal(failure: Failure, job: Job, headers: dict[str, str]) -> Response:
    """A job's bad end as an HTTP answer. Asked again with its idempotency key it is the same, so SDKs shall not."""
    surface = surface_of(job)
    status, body, of_failure = surface.refused(failure)
    again = {"x-should-retry": "false"} if job.idempotency else {}
    return Response(body, status, {**of_failure, **headers, **again}, surface.refused_as)


@dataclass(frozen=True, slots=True)
class Opened:
    """A job's stream with a reader at its beginning; whoever has it closes the reader. `room`: of a job just made."""

    reader: Subscription
    job: Job
    created_ms: int
    headers: dict[str, str]
    room: Room | None = None

    def told(self, now_s: float) -> dict[str, str]:
        """The headers of an answer that begins now."""
        return {**self.headers, **self.room.headers(now_s)} if self.room else self.headers


async def open_stream(parts: Parts, job: Job) -> Opened | Record:
    """The stream of this job, now admitted, or of the one that its idempotency key names.

    That one's record, where its own stream is no longer kept. Raises what `Admission.admit` raises.
    """
    reader = parts.hub.expect(job.id)
    try:
        admitted = await parts.admission.admit(job, gateway=parts.hub.id)
    except BaseException:
        reader.close()
        raise
    if admitted.job_id == job.id:
        headers = {**job_headers(job.id), **choice_headers(job)}
        return Opened(reader, job, admitted.created_ms, headers, Room(admitted, job, parts.clock.monotonic_s()))
    reader.close()
    return await _attached_stream(parts, admitted.job_id)


async def stream_answer(parts: Parts, job: Job) -> Response:
    """The job's tokens as they come. An end before the first of them is an HTTP status, as clients expect."""
    opened = await open_stream(parts, job)
    if isinstance(opened, Record):
        return _stored_stream(parts, opened, {**job_headers(opened.job.id), **choice_headers(opened.job), **REPLAYED})
    try:
        return await _begun(parts, opened)
    except BaseException:
        opened.reader.close()
        raise


async def _begun(parts: Parts, opened: Opened) -> Response:
    """The stream, once there is a first token, or once the status can't wait any longer."""
    reader, job = opened.reader, opened.job
    first = await first_entries(reader, parts.settings.status_wait_s)
    headers = opened.told(parts.clock.monotonic_s())
    failure = early_failure(first)
    if failure is not None:
        reader.close()
        return refusal(failure, job, headers)
    shape = shape_of(as_begun(job, first), opened.created_ms, parts.clock.now_ms)
    relay = Relay(reader, shape, parts.metrics, on_interrupt=job.on_interrupt)
    all_headers = {**headers, **place_headers(reader.place)}
    return EventStream(parts.hub, relay.bytes(first), all_headers, media_type=shape.media_type)


def place_headers(place: Place | None) -> dict[str, str]:
    """Where a job stood when its stream's head went out; nothing where it didn't wait."""
    if place is None or place.position is None:
        return {}
    wait = {} if place.wait_ms is None else {"x-headrace-estimated-wait-ms": str(place.wait_ms)}
    return {"x-headrace-queue-position": str(place.position), **wait}


async def _attached_stream(parts: Parts, job_id: str) -> Opened | Record:
    """The stream of the job that an idempotency key names: from its beginning, live where it still runs."""
    record = await _known(parts, job_id)
    if record.state.ended:
        _, last = (await parts.streams.glance(record.job.pool, [job_id]))[0]
        if last is None:
            return record
    reader = await parts.hub.watch(job_id, None)
    headers = {**job_headers(job_id), **choice_headers(record.job), **REPLAYED}
    return Opened(reader, record.job, record.created_ms, headers)


def _stored_stream(parts: Parts, record: Record, headers: dict[str, str]) -> Response:
    """The stored answer in a stream's clothes: its own stream is no longer kept."""
    outcome, job = record.outcome, answered_by(record.job, record.outcome)
    if outcome is None or outcome.status is not State.SUCCEEDED or not record.result:
        return refusal(why(outcome), job, headers)
    shape = shape_of(job, record.created_ms, lambda: record.created_ms)
    frames = stored_frames(shape, record.fence, outcome, record.result)
    return EventStream(parts.hub, frames, headers, media_type=shape.media_type)


async def _known(parts: Parts, job_id: str) -> Record:
    record = await parts.queue.get(job_id)
    if record is None:
        raise InternalError("The job's record is gone.", code="stream_lost")
    return record


def why(outcome: Outcome | None) -> Failure:
    """Why there is no answer, of a job that ended so."""
    return (outcome.failure if outcome else None) or Failure("internal_error", "The job ended without a reason.")


async def first_entries(reader: Subscription, limit_s: float) -> list[Entry]:
    """What comes first of tokens or end, or what there is when the limit has passed."""
    entries: list[Entry] = []
    try:
        async with asyncio.timeout(limit_s):
            while not has_substance(entries):
                entries += await reader.next()
    except TimeoutError:
        pass
    return entries


def as_begun(job: Job, first: list[Entry]) -> Job:
    """The job under the name of the model that began to answer: events say it where it is another than the job's."""
    for entry in first:
        if entry.kind == EVENTS and entry.body.startswith(OTHER_MODEL):
            return replace(job, model=orjson.loads(entry.body.partition(b"\n")[0])["model"])
    return job


def early_failure(entries: list[Entry]) -> Failure | None:
    """Why the job ended, where it ended badly before any token."""
    told = [entry for entry in entries if has_substance([entry])]
    if len(told) != 1 or told[0].kind != OUTCOME:
        return None
    outcome = Outcome.decode(told[0].body)
    return None if outcome.status is State.SUCCEEDED else outcome.failure


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended that somebody waited for; `result` is None where there is none."""

    job: Job
    created_ms: int
    outcome: Outcome
    result: bytes | None
    headers: dict[str, str]

    @property
    def failure(self) -> Failure | None:
        """Why there is no answer, where there is none."""
        succeeded = self.outcome.status is State.SUCCEEDED and self.result is not None
        return None if succeeded else why(self.outcome)


async def whole_answer(parts: Parts, job: Job, request: Request) -> Response:
    """The job's result when it has ended; nothing, when the caller hung up before."""
    ended = await wait_for_end(parts, job, request)
    if ended is None:
        return Response(status_code=499)
    failure, result = ended.failure, ended.result
    if failure is not None or result is None:
        return refusal(failure or why(None), ended.job, ended.headers)
    body = await shaped(result, surface_of(ended.job).whole, ended.job, ended.created_ms // 1000, result)
    if (timed := surface_of(ended.job).timed) is not None:
        body = timed(body, ended.outcome, ended.created_ms)
    return Response(body, 200, ended.headers, "application/json")


@dataclass(frozen=True, slots=True)
class Awaited:
    """A job in the queue whose end is waited for here; whoever has it leaves the waiter afterwards.

    `room`: of a job made for this request.
    """

    job: Job
    created_ms: int
    waiter: Waiter
    limit_s: float
    room: Room | None = None

    @property
    def own(self) -> bool:
        """Whether it was made for this request, and not for an earlier one with the same idempotency key."""
        return self.room is not None


async def wait_for_end(parts: Parts, job: Job, request: Request) -> Ended | None:
    """The end of this job, now admitted, or of the one that its idempotency key names; None where the caller hung up.

    Raises what `Admission.admit` raises.
    """
    awaited = await await_end(parts, job)
    try:
        came = await _end_or_hangup(awaited.waiter, request, awaited.limit_s)
        return await ended(parts, awaited) if came else None
    finally:
        parts.hub.leave(awaited.waiter)


async def await_end(parts: Parts, job: Job) -> Awaited:
    """This job, now admitted, or the one that its idempotency key names. Raises what `Admission.admit` raises."""
    waiter = parts.hub.expect_end(job.id)
    try:
        admitted = await parts.admission.admit(job, gateway=parts.hub.id)
        if admitted.job_id == job.id:
            room = Room(admitted, job, parts.clock.monotonic_s())
            return Awaited(job, admitted.created_ms, waiter, job.deadline_in_ms / 1000 + LATE_S, room)
    except BaseException:
        parts.hub.leave(waiter)
        raise
    parts.hub.leave(waiter)
    return await _attached_end(parts, admitted.job_id)


async def _attached_end(parts: Parts, job_id: str) -> Awaited:
    """The job that an idempotency key names: it may have ended long ago."""
    waiter = await parts.hub.watch_end(job_id)
    try:
        record = await _known(parts, job_id)
        left_s = 0.0
        if not record.state.ended:
            left_s = (record.deadline_ms - await parts.queue.now_ms()) / 1000
        elif not waiter.ended:
            waiter.end.set_result(None)
    except BaseException:
        parts.hub.leave(waiter)
        raise
    return Awaited(record.job, record.created_ms, waiter, max(0.0, left_s) + LATE_S)


async def ended(parts: Parts, awaited: Awaited) -> Ended:
    """How the job ended, whose end has come. Raises InternalError where its record is gone."""
    job = awaited.job
    outcome, result = await _end_of(parts, job.id, awaited.waiter)
    told = awaited.room.headers(parts.clock.monotonic_s()) if awaited.room else REPLAYED
    headers = {**job_headers(job.id), **choice_headers(job), **told}
    return Ended(answered_by(job, outcome), awaited.created_ms, outcome, result, headers)


async def shaped(
    result: bytes | None, shape: Callable[Given, Shaped], *given: Given.args, **named: Given.kwargs
) -> Shaped:
    """What `shape` makes of what is given. A large result is shaped beside the event loop, which others need."""
    if result is None or len(result) < LARGE_BYTES:
        return shape(*given, **named)
    return await asyncio.to_thread(shape, *given, **named)


async def _end_of(parts: Parts, job_id: str, waiter: Waiter) -> tuple[Outcome, bytes | None]:
    entry = waiter.end.result()
    if entry is not None and entry.result is not None:
        return Outcome.decode(entry.body), entry.result
    record = await parts.queue.get(job_id)
    if record is None or record.outcome is None:
        raise InternalError("The job's record is gone.", code="stream_lost")
    return record.outcome, record.result or None


async def _end_or_hangup(waiter: Waiter, request: Request, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(waiter.end)
            return True
    except TimeoutError:
        pass
    hangup = asyncio.ensure_future(hung_up(request))
    try:
        ends: list[asyncio.Future[object]] = [waiter.end, hangup]  # pyright: ignore[reportAssignmentType]
        done, _ = await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hangup.cancel()
    if not done:
        raise not_ended()
    if waiter.end.done():
        waiter.end.result()
        return True
    return False


def not_ended() -> HeadraceError:
    """The refusal where a job's end did not come in time."""
    return HeadraceError("The job did not end by its deadline.", code="timeout")


async def hung_up(request: Request) -> None:
    """Returns when the caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
