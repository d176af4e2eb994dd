"""Jobs: submitted, listed, polled, followed, cancelled. A job of another tenant answers like one that never was."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import Job, JsonObject, Position, State, pool_of
from common.errors import BadRequest, CallerError, NotFound, PositionGone
from common.queue import Cancelling, Record
from common.stream import Entry
from gateway.admission import BACKGROUND
from gateway.answers import REPLAYED, choice_headers, job_headers, shaped
from gateway.auth import Principal
from gateway.dialects.native import in_body, job_record, listed, parse_job_submission
from gateway.dialects.openai import ChunkShape, end_of_stream, queue_object
from gateway.docs.jobs import CANCEL_JOB, JOB, JOB_EVENTS, JOBS, SUBMIT_JOB
from gateway.http import read_body, request_id
from gateway.journal import Acceptance
from gateway.limits import limit_headers
from gateway.parts import Parts
from gateway.readers import Subscription
from gateway.relay import EventStream, Relay, no_frames
from gateway.routes.plain import PlainRoute

MOST_LISTED: Final = 100
MOST_LIMIT_DIGITS: Final = 6
POLL_AFTER_S: Final = 1


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/jobs", **SUBMIT_JOB)
    async def submit(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        settings = parts.settings
        raw = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
        submission = parse_job_submission(raw, request.scope["headers"])
        try:
            job = parts.admission.job(
                principal,
                submission.asked,
                submission.options,
                BACKGROUND,
                request_id=request_id(request),
                metadata=submission.metadata,
            )
        except CallerError as error:
            raise in_body(error) from None
        return await taken(parts, await parts.journal.accept(job))

    @routes.get("/v1/jobs", **JOBS)
    async def list_jobs(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        most = limit_of(request.query_params.get("limit", "20"))
        before = request.query_params.get("after")
        ids = await parts.listing.page(principal.tenant, most=most + 1, after=before)
        if ids is None:
            raise BadRequest("after: no job of yours by that id.", param="after")
        data: list[JsonObject] = []
        for job_id in ids[:most]:
            if (record := await record_of(parts, job_id)) is not None:
                shown = listed(record)
                data.append(await shaped(shown.result, job_record, shown))
        return _json({"object": "list", "data": data, "has_more": len(ids) > most})

    _add_one_job(routes, parts)
    return routes


async def taken(parts: Parts, accepted: Acceptance) -> Response:
    """202 with the job's id: the one just made, or the one that its idempotency key names."""
    job = accepted.job
    job_id = accepted.admitted.job_id if accepted.admitted else job.id
    status = State.DELAYED if job.delay_ms > 0 else State.QUEUED
    headers = {"Location": f"/v1/jobs/{job_id}", "Retry-After": str(POLL_AFTER_S)}
    if job_id != job.id:
        record = await record_of(parts, job_id)
        job, status = (job, status) if record is None else (record.job, record.state)
        headers |= REPLAYED
    elif accepted.admitted:
        headers |= limit_headers(accepted.admitted, least_ms=job.delay_ms)
    headers |= job_headers(job_id, journaled=job.journal) | choice_headers(job)
    body = {"id": job_id, "object": "job", "status": status.value, "links": links(job_id)}
    return Response(orjson.dumps(body), 202, headers, "application/json")


def _add_one_job(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/v1/jobs/{job_id}", **JOB)
    async def get_job(request: Request, job_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await own(parts, parts.auth.principal(request), job_id)
        headers = {} if record.state.ended else {"Retry-After": str(POLL_AFTER_S)}
        return _json(await _shown(parts, record), headers)

    @routes.post("/v1/jobs/{job_id}/cancel", **CANCEL_JOB)
    async def cancel_job(request: Request, job_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json(await _shown(parts, await cancelled(parts, parts.auth.principal(request), job_id)))

    @routes.get("/v1/jobs/{job_id}/events", **JOB_EVENTS)
    async def job_events(request: Request, job_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await own(parts, parts.auth.principal(request), job_id)
        seen = _position(request)
        if request.method == "HEAD":
            return EventStream(parts.hub, no_frames(), _headers(record.job))
        if seen is None and not record.state.ended:
            return await follow(parts, record, None, seen=None)
        last = await last_entry(parts, record)
        start = None if seen is None else start_after(record, seen, last)
        if seen is not None and start is None:
            return Response(status_code=204)
        return await follow(parts, record, start, seen=seen)


async def own(parts: Parts, principal: Principal, job_id: str) -> Record:
    """The caller's own job. Raises NotFound for an unknown id and for another tenant's alike."""
    record = await record_of(parts, job_id) if pool_of(job_id) in parts.settings.all_pools else None
    if record is None or record.job.tenant != principal.tenant:
        raise NotFound("There is no job by that id.", code="job_not_found")
    return record


async def record_of(parts: Parts, job_id: str) -> Record | None:
    """The job as the store has it; as the ledger has it, where the store lost it or has an end that does not count."""
    record = await parts.queue.get(job_id)
    if record is not None and not record.deferred:
        return record
    return await parts.journal.record(job_id) or record


async def cancelled(parts: Parts, principal: Principal, job_id: str) -> Record:
    """The caller's own job, after it was told to end. Raises NotFound, LedgerUnavailable."""
    record = await own(parts, principal, job_id)
    code = await parts.queue.cancel(job_id)
    if record.job.journal:
        await parts.journal.cancelled(job_id, known=code is not Cancelling.UNKNOWN)
    return await own(parts, principal, job_id)


async def follow(parts: Parts, record: Record, start: Position | None, *, seen: Position | None) -> EventStream:
    """The job's events after `start`, for a reader that has seen those up to `seen`.

    Raises StreamLost, PositionGone where they are no longer there.
    """
    job = record.job
    reader, first = await watched(parts, record, start)
    shape = ChunkShape(job.id, record.created_ms // 1000, job.model, job.include_usage, queue_events=True)
    relay = Relay(reader, shape, parts.metrics, on_interrupt=job.on_interrupt, seen=seen)
    return EventStream(parts.hub, relay.bytes(first), _headers(job))


def _headers(job: Job) -> dict[str, str]:
    return {**job_headers(job.id), **choice_headers(job)}


async def watched(parts: Parts, record: Record, start: Position | None) -> tuple[Subscription, list[Entry]]:
    """A reader of the job's stream after `start`, and what it has at once. Raises StreamLost, PositionGone."""
    reader = await parts.hub.watch(record.job.id, start)
    try:
        first = await reader.next() if record.state.ended else []
        if record.position is not None:
            [reader.place] = await parts.queue.places(record.job.pool, [record.job.id])
    except BaseException:
        reader.close()
        raise
    return reader, first


async def last_entry(parts: Parts, record: Record) -> Position:
    """Where the job's stream ends at this moment. Raises PositionGone where there is none."""
    _, last = (await parts.streams.glance(record.job.pool, [record.job.id]))[0]
    if last is None:
        raise PositionGone("This stream is no longer kept; the job's result may still be.")
    return last


def start_after(record: Record, seen: Position, last: Position) -> Position | None:
    """The position to read on from, for a reader that has seen all up to `seen`; None where that was the end.

    Raises PositionGone for a position that never was.
    """
    end = end_of_stream(last, record.outcome, include_usage=record.job.include_usage)
    if seen > end:
        raise PositionGone("Last-Event-ID is not a position of this stream.", param="Last-Event-ID")
    if not record.state.ended or seen < last:
        return seen
    # Between the two events of the last entry, the entry itself is read once more.
    return None if seen == end else Position(last.fence, last.seq - 1)


def links(job_id: str) -> dict[str, str]:
    """Where a job can be asked for, followed and cancelled."""
    home = f"/v1/jobs/{job_id}"
    return {"self": home, "events": f"{home}/events", "cancel": f"{home}/cancel"}


def _position(request: Request) -> Position | None:
    given = (request.headers.get("last-event-id"), request.query_params.get("last_event_id"))
    try:
        found = [Position.parse(text) for text in given if text]
        return found[0] if found else None
    except ValueError:
        form = "Last-Event-ID: two numbers and a dash are expected, as in the stream's own ids."
        raise BadRequest(form, param="Last-Event-ID") from None


def limit_of(text: str, most: int = MOST_LISTED) -> int:
    """How many a page may have. Raises BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_LIMIT_DIGITS and 1 <= int(text) <= most):
        raise BadRequest(f"limit: a number from 1 to {most} is expected.", param="limit")
    return int(text)


async def _shown(parts: Parts, record: Record) -> JsonObject:
    shown = await shaped(record.result, job_record, record)
    shown["links"] = links(record.job.id)
    shown["cost_usd"] = cost_usd(parts, record)
    if record.position is not None:
        [place] = await parts.queue.places(record.job.pool, [record.job.id])
        shown["queue"] = queue_object(place) if place is not None and place.position is not None else None
    return shown


def cost_usd(parts: Parts, record: Record) -> float | None:
    """What the job cost by its model's price, in US dollars; None where nobody knows its price or its usage."""
    return parts.prices.cost_usd(record.job.model, record.outcome, record.created_ms)


def _json(document: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), 200, headers, "application/json")
