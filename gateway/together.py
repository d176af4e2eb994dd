"""A request for several completions, answered as one by several jobs: whole, or as a stream in which they take turns.

All of them are asked for or none; where one ends badly, so does the answer, and the others are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import Failure, Job, State
from common.errors import HeadraceError
from common.queue import Record
from common.stream import Entry
from gateway.answers import (
    REPLAYED,
    Awaited,
    Ended,
    Opened,
    as_begun,
    await_end,
    choice_headers,
    early_failure,
    ended,
    first_entries,
    hung_up,
    job_headers,
    not_ended,
    open_stream,
    refusal,
    shaped,
    why,
)
from gateway.dialects.completions import TextPart, joined, together
from gateway.dialects.native import JobOptions
from gateway.limits import as_last_left
from gateway.parts import Parts
from gateway.relay import EventStream, Relay, stored_frames

log = structlog.get_logger(__name__)

JOB_ID: Final = "x-headrace-job-id"


def options_of(options: JobOptions, place: int) -> JobOptions:
    """The options of the job at this place: each has an idempotency key of its own, the first the caller's.

    A caller's key holds no line's end, so that the others are nobody's.
    """
    if place == 0 or not options.idempotency_key:
        return options
    return replace(options, idempotency_key=f"{options.idempotency_key}\n{place}")


# --- whole ------------------------------------------------------------------------------------------------------------


async def whole_together(parts: Parts, jobs: Sequence[Job], request: Request) -> Response:
    """The results of all these jobs in one answer; nothing, when the caller hung up before."""
    awaited: list[Awaited] = []
    try:
        for job in jobs:
            awaited.append(await await_end(parts, job))
        ends = await _ends(parts, awaited, request)
    except HeadraceError:
        await _cancel(parts, _unfinished(awaited))
        raise
    finally:
        for one in awaited:
            parts.hub.leave(one.waiter)
    if ends is None:
        return Response(status_code=499)
    failed = _failed(ends)
    if failed is not None:
        await _cancel(parts, _unfinished(awaited))
        all_jobs = {JOB_ID: ", ".join(one.job.id for one in awaited)}
        return refusal(failed.failure or why(None), failed.job, failed.headers | all_jobs)
    return await _joined(ends)


async def _joined(ends: Sequence[Ended]) -> Response:
    answers = [(end.job, end.created_ms // 1000, end.result or b"") for end in ends]
    largest = max((result for _, _, result in answers), key=len)
    headers = _headers([end.headers for end in ends])
    return Response(await shaped(largest, joined, answers), 200, headers, "application/json")


async def _ends(parts: Parts, awaited: Sequence[Awaited], request: Request) -> list[Ended] | None:
    """How the jobs ended, in their order, or some of them where one failed; None where the caller hung up."""
    found: dict[str, Ended] = {}
    hangup = asyncio.ensure_future(hung_up(request))
    until_s = asyncio.get_running_loop().time() + max(one.limit_s for one in awaited)
    try:
        while len(found) < len(awaited) and _failed(found.values()) is None:
            open_ = [one.waiter.end for one in awaited if one.job.id not in found]
            left_s = until_s - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait([*open_, hangup], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise not_ended()
            if done == {hangup}:
                return None
            for one in awaited:
                if one.job.id not in found and one.waiter.end.done():
                    found[one.job.id] = await ended(parts, one)
    finally:
        hangup.cancel()
    return [found[one.job.id] for one in awaited if one.job.id in found]


def _failed(ends: Iterable[Ended]) -> Ended | None:
    """The one that ended badly; of several rather one that nobody cancelled, since that is why the others were."""
    failed = [end for end in ends if end.failure is not None]
    return min(failed, key=lambda end: end.outcome.status is State.CANCELLED, default=None)


def _unfinished(awaited: Sequence[Awaited]) -> list[str]:
    return [one.job.id for one in awaited if one.own and not one.waiter.ended]


async def _cancel(parts: Parts, job_ids: Iterable[str]) -> None:
    """Ends jobs that nobody will read. One that can't be told now is cancelled for want of readers, after the grace."""
    for job_id in job_ids:
        try:
            await parts.queue.cancel(job_id)
        except HeadraceError as error:
            log.warning("together.cancel_failed", job_id=job_id, error=error.failure.message)


def _headers(all_headers: Sequence[dict[str, str]]) -> dict[str, str]:
    """Those of the first job; but all jobs' ids, in the order of the prompts, and the limit as the last one left it."""
    left = as_last_left(all_headers)
    return {**all_headers[0], **left, JOB_ID: ", ".join(headers[JOB_ID] for headers in all_headers)}


# --- streamed ---------------------------------------------------------------------------------------------------------


async def stream_together(parts: Parts, jobs: Sequence[Job]) -> Response:
    """The tokens of all these jobs as they come. A bad end of the first before any token is an HTTP status."""
    opened: list[Opened | Record] = []
    try:
        for job in jobs:
            opened.append(await open_stream(parts, job))
        return await _begun(parts, opened, _own(opened, jobs))
    except BaseException as error:
        _close(opened)
        if isinstance(error, HeadraceError):
            await _cancel(parts, _own(opened, jobs))
        raise


async def _begun(parts: Parts, opened: Sequence[Opened | Record], own: Sequence[str]) -> Response:
    """The stream, once the first of the jobs has a token, or once the status can't wait any longer."""
    leader = opened[0]
    first = await first_entries(leader.reader, parts.settings.status_wait_s) if isinstance(leader, Opened) else []
    now_s = parts.clock.monotonic_s()
    headers = _headers([_headers_of(one, now_s) for one in opened])
    if (failed := _failed_before(opened, first)) is not None:
        _close(opened)
        await _cancel(parts, own)
        failure, job = failed
        return refusal(failure, job, headers)
    head = as_begun(leader.job, first)
    shapes = [TextPart(one.job, leader.created_ms // 1000, of=head) for one in opened]
    firsts = [first, *([] for _ in opened[1:])]
    bodies = [_body(parts, *each) for each in zip(opened, shapes, firsts, strict=True)]
    turns = Turns(parts, [one.job.id for one in opened], shapes, own)
    return EventStream(parts.hub, turns.bytes(bodies), headers)


def _headers_of(one: Opened | Record, now_s: float) -> dict[str, str]:
    if isinstance(one, Opened):
        return one.told(now_s)
    return {**job_headers(one.job.id), **choice_headers(one.job), **REPLAYED}


def _own(opened: Sequence[Opened | Record], jobs: Sequence[Job]) -> list[str]:
    """The jobs that were made for this request, and not for an earlier one with the same idempotency key."""
    return [job.id for one, job in zip(opened, jobs, strict=False) if one.job.id == job.id]


def _failed_before(opened: Iterable[Opened | Record], first: list[Entry]) -> tuple[Failure, Job] | None:
    """Why the answer can't begin, and the job that says so: the first one's early end, or one that is only stored."""
    found: list[tuple[Failure, Job]] = []
    for one in opened:
        if isinstance(one, Record) and (one.state is not State.SUCCEEDED or not one.result):
            found.append((why(one.outcome), one.job))
        elif isinstance(one, Opened) and (failure := early_failure(first)) is not None:
            found.append((failure, one.job))
        first = []
    return min(found, key=lambda each: each[0].code == "cancelled", default=None)


def _body(parts: Parts, one: Opened | Record, shape: TextPart, first: list[Entry]) -> AsyncGenerator[bytes, None]:
    if isinstance(one, Opened):
        return Relay(one.reader, shape, parts.metrics, on_interrupt=one.job.on_interrupt).bytes(first)
    assert one.outcome is not None and one.result is not None, "a stored answer that is none was refused before"
    return stored_frames(shape, one.fence, one.outcome, one.result)


def _close(opened: Iterable[Opened | Record]) -> None:
    for one in opened:
        if isinstance(one, Opened):
            one.reader.close()


class Turns:
    """Several bodies as one: what each says as it comes, every piece whole; then their usage, or the first bad end."""

    def __init__(self, parts: Parts, job_ids: Sequence[str], shapes: Sequence[TextPart], own: Sequence[str]) -> None:
        self._parts = parts
        self._shapes = dict(zip(job_ids, shapes, strict=True))
        self._own = own
        self._pieces: asyncio.Queue[bytes | asyncio.Task[None]] = asyncio.Queue()
        self._room = asyncio.Semaphore(len(shapes))

    async def bytes(self, bodies: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
        """The stream's bytes. Closes the bodies."""
        tasks = [asyncio.create_task(self._pour(body), name="together") for body in bodies]
        for task in tasks:
            task.add_done_callback(self._pieces.put_nowait)
        left = len(tasks)
        ended_badly: Failure | None = None
        try:
            while left and ended_badly is None:
                piece = await self._pieces.get()
                if isinstance(piece, asyncio.Task):
                    piece.result()
                    left -= 1
                    # Only now: what its body said before has come.
                    ended_badly = self._failure()
                else:
                    yield piece
                    self._room.release()
        finally:
            # Each closes its body on its way out. It is not waited for: whoever hung up has this cancelled, too.
            for task in tasks:
                task.cancel()
        yield await self._last_words(ended_badly)

    async def _pour(self, body: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(body):
            async for piece in body:
                if piece:
                    await self._room.acquire()
                    self._pieces.put_nowait(piece)

    def _failure(self) -> Failure | None:
        failures = [shape.failure for shape in self._shapes.values() if shape.failure is not None]
        return min(failures, key=lambda failure: failure.code == "cancelled", default=None)

    async def _last_words(self, failure: Failure | None) -> bytes:
        shapes = list(self._shapes.values())
        if failure is not None:
            open_ = [job_id for job_id, shape in self._shapes.items() if shape.outcome is None and not shape.failure]
            await _cancel(self._parts, [job_id for job_id in open_ if job_id in self._own])
            return shapes[0].error(failure)
        usages = [shape.outcome.usage.to_openai() for shape in shapes if shape.outcome and shape.outcome.usage]
        return shapes[0].last_words(together(usages) if usages else None)
