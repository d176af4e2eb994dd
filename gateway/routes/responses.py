"""OpenAI's responses: made, looked at, followed from any event, gone on from, cancelled, deleted. Each is a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import Failure, Job, JsonObject, OnDisconnect, OnInterrupt, Position, Priority, State, pool_of
from common.errors import BadRequest, LaterError, ModelNotFound, NotFound, PositionGone, TooLarge
from common.queue import Cancelling, Record
from gateway.admission import STREAMED, WAITED_FOR, Manner
from gateway.answers import (
    REPLAYED,
    as_begun,
    choice_headers,
    job_headers,
    refusal,
    shaped,
    stream_answer,
    wait_for_end,
)
from gateway.auth import Principal
from gateway.dialects.names import RESPONSES
from gateway.dialects.native import parse_options
from gateway.dialects.openai import ChatRequest
from gateway.dialects.responses_input import (
    in_response,
    job_id_of,
    read_response_request,
    response_id,
    response_request,
)
from gateway.dialects.responses_listed import items_page
from gateway.dialects.responses_output import conversation, named_items, recorded_response, whole_response
from gateway.dialects.responses_reference import Allowance, referenced, with_items
from gateway.dialects.responses_stream import ResponseShape
from gateway.dialects.responses_turns import Known, Turns
from gateway.dialects.surfaces import answered_by
from gateway.docs.openai import CANCEL_RESPONSE, CREATE_RESPONSE, DELETE_RESPONSE, INPUT_ITEMS, INPUT_TOKENS, RESPONSE
from gateway.http import read_body, request_id
from gateway.limits import limit_headers
from gateway.parts import Parts
from gateway.relay import EventStream, Relay, no_frames, stored_frames
from gateway.routes.jobs import limit_of, record_of, watched
from gateway.routes.plain import PlainRoute

IN_BACKGROUND: Final = Manner(Priority.STANDARD, OnDisconnect.CONTINUE, OnInterrupt.RESTART, stream=True)
# So long an order to cancel is waited for; a worker obeys within milliseconds.
CANCEL_WAIT_S: Final = 5.0
MOST_EVENTS_DIGITS: Final = 9
# The first of an attempt's events is among these, if there is one yet.
FIRST_ENTRIES: Final = 4


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/responses", **CREATE_RESPONSE)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        body = read_response_request(await _body(parts, request))
        job = _job(parts, principal, body, await _asked(parts, principal, body), request)
        if body.get("background"):
            return await _in_background(parts, job, streamed=bool(body.get("stream")))
        return await (stream_answer(parts, job) if body.get("stream") else _whole(parts, job, request))

    @routes.get("/v1/responses/{response_id}", **RESPONSE)
    async def retrieve(request: Request, response_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await _own(parts, parts.auth.principal(request), response_id)
        after = _starting_after(request)
        if after is None:
            return await _shown(parts, record)
        if request.method == "HEAD":
            return EventStream(parts.hub, no_frames(), _headers(record.job))
        return await _follow(parts, record, after)

    @routes.delete("/v1/responses/{response_id}", **DELETE_RESPONSE)
    async def delete(request: Request, response_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await _own(parts, parts.auth.principal(request), response_id)
        await _delete(parts, await _cancelled(parts, record))
        return _json({"id": response_id, "object": "response", "deleted": True})

    _add_parts_of_one(routes, parts)
    return routes


def _add_parts_of_one(routes: APIRouter, parts: Parts) -> None:
    @routes.post("/v1/responses/compact", include_in_schema=False)
    async def compact(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        raise NotFound("Conversations are not compacted here; send a shorter one.", code="unknown_url")

    @routes.post("/v1/responses/{response_id}/cancel", **CANCEL_RESPONSE)
    async def cancel(request: Request, response_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await _own(parts, parts.auth.principal(request), response_id)
        return await _shown(parts, await _cancelled(parts, record))

    @routes.get("/v1/responses/{response_id}/input_items", **INPUT_ITEMS)
    async def items(request: Request, response_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        record = await _own(parts, parts.auth.principal(request), response_id)
        return await _page(request, record.job)

    @routes.post("/v1/responses/input_tokens", **INPUT_TOKENS)
    async def input_tokens(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        body = read_response_request(await _body(parts, request))
        if body["model"] not in parts.settings.model_names:
            raise ModelNotFound(f"The model {body['model'][:128]!r} does not exist.", param="model")
        asked = await _asked(parts, principal, body)
        counted = await parts.tokens.count_prompt(asked.body)
        return _json({"object": "response.input_tokens", "input_tokens": counted})


async def _body(parts: Parts, request: Request) -> bytes:
    settings = parts.settings
    return await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)


# --- one response -----------------------------------------------------------------------------------------------------


async def _find(parts: Parts, principal: Principal, text: str) -> Record | None:
    """The caller's own response of this id, if it is one that is kept."""
    job_id = job_id_of(text)
    if job_id is None or pool_of(job_id) not in parts.settings.all_pools:
        return None
    record = await record_of(parts, job_id)
    if record is None or record.job.tenant != principal.tenant or record.job.dialect != RESPONSES:
        return None
    return record if record.job.asked.get("store") else None


async def _own(parts: Parts, principal: Principal, text: str) -> Record:
    """The caller's own response. Raises NotFound for an unknown id and for another tenant's alike."""
    record = await _find(parts, principal, text)
    if record is None:
        raise NotFound(f"Response with id {text[:64]!r} not found.")
    return record


async def _shown(parts: Parts, record: Record) -> Response:
    shown = replace(record, job=await _answering(parts, record, record.fence))
    body = await shaped(record.result, recorded_response, shown)
    return Response(body, 200, _headers(record.job), "application/json")


async def _answering(parts: Parts, record: Record, fence: int) -> Job:
    """The job under the name of the model that answered; of one that runs, as its events from this attempt on say."""
    if record.state is not State.RUNNING:
        return answered_by(record.job, record.outcome)
    begun = await parts.streams.after(record.job.id, Position(fence, 0) if fence else None, most=FIRST_ENTRIES)
    return as_begun(record.job, begun)


def _headers(job: Job) -> dict[str, str]:
    return job_headers(job.id, journaled=job.journal) | choice_headers(job)


def _json(document: JsonObject) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


# --- made -------------------------------------------------------------------------------------------------------------


async def _asked(parts: Parts, principal: Principal, body: JsonObject) -> ChatRequest:
    """The chat request for a checked request. Raises BadRequest, TooLarge.

    What it goes on from or names is worked on beside the event loop: a few bytes may stand for thousands of messages.
    """
    whole = await _with_items(parts, principal, body)
    before = await _before(parts, principal, body.get("previous_response_id"))
    if whole is body and not before.turns:
        return response_request(body)
    return await asyncio.to_thread(response_request, whole, before)


async def _before(parts: Parts, principal: Principal, previous: str | None) -> Turns:
    """The conversation that a request goes on from. Raises BadRequest where there is none by that id."""
    if previous is None:
        return Turns()
    record, param = await _find(parts, principal, previous), "previous_response_id"
    if record is None:
        text = f"Previous response with id {previous[:64]!r} not found."
        raise BadRequest(text, param=param, code="previous_response_not_found")
    if record.state is not State.SUCCEEDED or not record.result:
        raise BadRequest(f"{param}: this response has no answer to go on from (yet).", param=param)
    before, size_bytes = await asyncio.to_thread(_measured, record.job, record.result)
    # Each turn holds all before it: without this a conversation could grow without an end.
    most_bytes = parts.settings.max_body_bytes
    if size_bytes > most_bytes:
        raise TooLarge(f"{param}: the conversation before is too large: more than {most_bytes} bytes.", param=param)
    return before


def _measured(job: Job, result: bytes) -> tuple[Turns, int]:
    """A response's conversation, and its size in bytes."""
    before = conversation(job, result)
    return before, len(orjson.dumps(before.messages))


async def _with_items(parts: Parts, principal: Principal, body: JsonObject) -> JsonObject:
    """The request with the items that it only names. Raises BadRequest where one is not the caller's, TooLarge."""
    items: dict[str, Known] = {}
    left = Allowance.of(parts.settings.max_body_bytes)
    wanted = referenced(body)
    for digits, ids in wanted.items():
        record = await _of_digits(parts, principal, digits)
        if record is None:
            continue
        items |= await asyncio.to_thread(_named, record, ids, left)
    return with_items(body, items) if wanted else body


def _named(record: Record, ids: list[str], left: Allowance) -> dict[str, Known]:
    """These items of a response, as far as there are any. Raises TooLarge."""
    read_bytes = len(orjson.dumps(record.job.body)) + len(record.result or b"")
    left.take(0, read_bytes)
    found = named_items(record, ids)
    left.take(len(orjson.dumps([*found.values()])), 0)
    return found


async def _of_digits(parts: Parts, principal: Principal, digits: str) -> Record | None:
    """The caller's own response whose id ends so, whatever its pool."""
    for pool in parts.settings.all_pools:
        if (record := await _find(parts, principal, f"resp_{pool}_{digits}")) is not None:
            return record
    return None


def _job(parts: Parts, principal: Principal, body: JsonObject, asked: ChatRequest, request: Request) -> Job:
    manner = IN_BACKGROUND if body.get("background") else STREAMED if body.get("stream") else WAITED_FOR
    try:
        return parts.admission.job(
            principal,
            asked,
            parse_options(request.scope["headers"]),
            manner,
            request_id=request_id(request),
            metadata=body.get("metadata"),
        )
    except BadRequest as error:
        raise in_response(error) from None


async def _whole(parts: Parts, job: Job, request: Request) -> Response:
    ended = await wait_for_end(parts, job, request)
    if ended is None:
        return Response(status_code=499)
    failure, result = ended.failure, ended.result
    if failure is not None or result is None:
        return refusal(failure or Failure("internal_error", "There is no answer."), ended.job, ended.headers)
    created_s = ended.created_ms // 1000
    body = await shaped(result, whole_response, ended.job, created_s, result, ended.outcome)
    return Response(body, 200, ended.headers, "application/json")


async def _in_background(parts: Parts, job: Job, *, streamed: bool) -> Response:
    """The response as it was just queued, or as the one stands that its idempotency key names; or its stream."""
    accepted = await parts.journal.accept(job)
    job, admitted = accepted.job, accepted.admitted
    known = await record_of(parts, admitted.job_id if admitted else job.id)
    if known is None:
        raise NotFound(f"Response with id {response_id(job.id)!r} not found.")
    answer = await (_follow(parts, known, -1) if streamed else _shown(parts, known))
    if known.job.id != job.id:
        answer.headers.update(REPLAYED)
    elif admitted:
        answer.headers.update(limit_headers(admitted, least_ms=job.delay_ms))
    return answer


# --- followed ---------------------------------------------------------------------------------------------------------


def _starting_after(request: Request) -> int | None:
    """The last event that the reader has, -1 for none; None where no stream is asked for. Raises BadRequest."""
    streamed, after = request.query_params.get("stream", "false"), request.query_params.get("starting_after")
    if streamed.lower() not in ("true", "false", "1", "0"):
        raise BadRequest("stream: must be true or false.", param="stream")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= MOST_EVENTS_DIGITS):
        raise BadRequest("starting_after: must be the number of an event.", param="starting_after")
    if streamed.lower() in ("true", "1"):
        return -1 if after is None else int(after)
    if after is not None:
        raise BadRequest("starting_after: allowed only when stream is true.", param="starting_after")
    return None


async def _follow(parts: Parts, record: Record, after: int) -> Response:
    """The response's events after this one, live where it still runs. Raises PositionGone where they are gone."""
    job, headers = await _answering(parts, record, 0), _headers(record.job)
    shape = ResponseShape(job, record.created_ms // 1000, after=after)
    _, last = (await parts.streams.glance(job.pool, [job.id]))[0]
    if last is None and record.state.ended:
        return EventStream(parts.hub, _stored(shape, record, after), headers)
    try:
        reader, first = await watched(parts, record, None)
    except NotFound:
        # Accepted by the ledger, and the queue has it only later (again).
        return EventStream(parts.hub, _not_yet(shape), headers)
    told = Relay(reader, shape, parts.metrics, on_interrupt=job.on_interrupt).bytes(first)
    if record.state.ended and after >= 0:
        told = await _known(told, shape, after)
    return EventStream(parts.hub, told, headers)


async def _known(told: AsyncGenerator[bytes, None], shape: ResponseShape, after: int) -> AsyncGenerator[bytes, None]:
    """An ended response's events after a number, in bytes. Raises BadRequest for the number of none of its events."""
    async for piece in told:
        if piece:
            return _led_by(piece, told)
    if after > shape.last_number:
        text = f"starting_after: the response has ended, and its last event is {shape.last_number}."
        raise BadRequest(text, param="starting_after")
    return _led_by(b"", told)


async def _led_by(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _stored(shape: ResponseShape, record: Record, after: int) -> AsyncGenerator[bytes, None]:
    """The stored answer as a stream. Its events are fewer than they were, so nobody can go on from one of those."""
    if after >= 0:
        raise PositionGone("This stream is no longer kept; the response may still be.", param="starting_after")
    outcome = record.outcome
    if outcome is not None and outcome.status is State.SUCCEEDED and record.result:
        return stored_frames(shape, record.fence, outcome, record.result)
    failure = outcome.failure if outcome else None
    return _failed(shape, record.fence, failure or Failure("internal_error", "The answer is no longer kept."))


async def _failed(shape: ResponseShape, fence: int, failure: Failure) -> AsyncGenerator[bytes, None]:
    yield shape.opening() + shape.failed(Position(fence, 1), failure)


async def _not_yet(shape: ResponseShape) -> AsyncGenerator[bytes, None]:
    text = "The response is accepted and cannot be followed yet; ask for its stream again."
    yield shape.opening() + shape.failed(None, Failure("store_unavailable", text))


# --- ended, deleted ---------------------------------------------------------------------------------------------------


async def _cancelled(parts: Parts, record: Record) -> Record:
    """The response when it has ended, by itself or by this."""
    if record.state.ended:
        return record
    job_id = record.job.id
    code = await parts.queue.cancel(job_id)
    if record.job.journal:
        await parts.journal.cancelled(job_id, known=code is not Cancelling.UNKNOWN)
    if code is Cancelling.TOLD:
        await _until_ended(parts, job_id)
    return await record_of(parts, job_id) or record


async def _until_ended(parts: Parts, job_id: str) -> None:
    waiter = await parts.hub.watch_end(job_id)
    try:
        known = await parts.queue.get(job_id)
        if known is not None and not known.state.ended:
            async with asyncio.timeout(CANCEL_WAIT_S):
                await asyncio.shield(waiter.end)
    except TimeoutError:
        pass
    finally:
        parts.hub.leave(waiter)


async def _delete(parts: Parts, record: Record) -> None:
    """Nothing is left of the response. Raises LaterError while it still runs."""
    job = record.job
    if not record.state.ended:
        raise LaterError("The response is still being cancelled; try again.", retry_after_s=1)
    # First of all from the ledger, which would have an open job run again that the store has lost; and once more from
    # there, since the store's news of its end may have come in between.
    if job.journal:
        await parts.journal.erase(job.id)
    if not await parts.queue.erase(job.id, job.tenant):
        raise LaterError("The response is still being cancelled; try again.", retry_after_s=1)
    if job.journal:
        await parts.journal.erase(job.id)


# --- input items ------------------------------------------------------------------------------------------------------


async def _page(request: Request, job: Job) -> Response:
    """A page of the items, the last one first unless asked otherwise. Raises BadRequest."""
    query = request.query_params
    most, order, after = limit_of(query.get("limit", "20")), query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise BadRequest("order: must be asc or desc.", param="order")
    page = await asyncio.to_thread(items_page, job, most, descending=order == "desc", after=after)
    return Response(page, media_type="application/json")
