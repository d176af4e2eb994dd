"""The contract's calls: each reads its request, asks the parts that HTTP's routes ask, and answers in messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Final, TypeVar

import anyio
from google.protobuf.message import Message as AnyMessage

from common.contracts import Failure, Job, Position, State
from common.errors import BadRequest, HeadraceError, LaterError, PositionGone, TooLarge
from common.queue import Record
from gateway.admission import BACKGROUND, STREAMED, WAITED_FOR, Manner
from gateway.answers import (
    REPLAYED,
    Ended,
    Opened,
    await_end,
    choice_headers,
    ended,
    job_headers,
    not_ended,
    open_stream,
    shaped,
)
from gateway.dialects.openai import ChatRequest
from gateway.limits import limit_headers
from gateway.parts import Parts
from gateway.readers import SlowReader
from gateway.relay import Relay, stored_frames
from gateway.routes.jobs import cancelled, cost_usd, last_entry, own, record_of, start_after, watched
from gateway.rpc.calls import Call, Context, Frame
from gateway.rpc.connections import Connections
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.headrace.v1 import inference_pb2_grpc as rpc
from gateway.rpc.reading import chat_of, options_of, prompt_of, submission_of, view_of
from gateway.rpc.shape import EventShape
from gateway.rpc.writing import STATUSES, completion_of, job_of, place_of, text_of, words_of
from gateway.sending import SEND_TIMEOUT_S

NAME: Final = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
# In one message of a stream: far below the 4 MiB that clients take, unless they say otherwise.
MOST_EVENTS: Final = 256
MOST_EVENTS_BYTES: Final = 1024 * 1024
# What clients take in one message unless they say otherwise: 4 MiB with the response's own few bytes.
MOST_UNASKED_BYTES: Final = 4 * 1024 * 1024 - 64
TOO_LARGE: Final = (
    "The job with its answer is {:,} bytes, more than the 4 MiB that clients take unless they say otherwise. Raise "
    "grpc.max_receive_message_length and ask for JOB_VIEW_FULL, or ask for JOB_VIEW_BASIC, which leaves the answer out."
)
TOO_SLOW: Final = "This reader fell too far behind; WatchJob goes on after the last position that it has."
GOING_AWAY: Final = "This gateway is going away; WatchJob at another one goes on after the last position."

Message = TypeVar("Message", bound=AnyMessage)
Written = Callable[[list[pb.JobEvent]], list[Message]]
"""Makes events messages of the call's own."""


class InferenceService(rpc.InferenceServiceServicer):
    """The calls, over the gateway's opened parts."""

    def __init__(self, parts: Parts, connections: Connections) -> None:
        self._parts = parts
        self._frame = Frame(parts, connections)

    async def idle(self) -> None:
        """Returns when no call is under way."""
        await self._frame.idle()

    async def refuse(self, method: str, context: Context, failure: Failure) -> None:
        """Ends a call whose message is none, as one that was begun."""

        async def work(_call: Call) -> None:
            raise _error(failure)

        await self._frame.answer(method, context, work)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def ChatCompletion(self, request: pb.ChatCompletionRequest, context: Context) -> pb.ChatCompletionResponse:
        """A chat completion, whole."""

        async def work(call: Call) -> pb.ChatCompletionResponse:
            return pb.ChatCompletionResponse(completion=await self._whole(call, chat_of(request.chat), request.options))

        return await self._frame.answer(f"/{NAME}/ChatCompletion", context, work)

    async def ChatCompletionStream(self, request: pb.ChatCompletionStreamRequest, context: Context) -> None:
        """A chat completion, as it comes."""

        def written(events: list[pb.JobEvent]) -> list[pb.ChatCompletionStreamResponse]:
            return [pb.ChatCompletionStreamResponse(events=events)]

        async def work(call: Call) -> None:
            await self._stream(call, chat_of(request.chat), request.options, written)

        await self._frame.answer(f"/{NAME}/ChatCompletionStream", context, work)

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.InferResponse:
        """The answer to a plain prompt, whole."""

        async def work(call: Call) -> pb.InferResponse:
            return text_of(await self._whole(call, self._prompt(request.prompt), request.options))

        return await self._frame.answer(f"/{NAME}/Infer", context, work)

    async def InferStream(self, request: pb.InferStreamRequest, context: Context) -> None:
        """The answer to a plain prompt, as it comes."""

        async def work(call: Call) -> None:
            await self._stream(call, self._prompt(request.prompt), request.options, words_of)

        await self._frame.answer(f"/{NAME}/InferStream", context, work)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.SubmitJobResponse:
        """A job left to be done; the call's own deadline is none of the job's."""

        async def work(call: Call) -> pb.SubmitJobResponse:
            submission = submission_of(request, call.headers, default_model=self._first_model())
            job = self._parts.admission.job(
                call.principal,
                submission.asked,
                submission.options,
                BACKGROUND,
                request_id=call.request_id,
                metadata=submission.metadata,
            )
            return await self._taken(call, job)

        return await self._frame.answer(f"/{NAME}/SubmitJob", context, work)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """A job as it stands."""

        async def work(call: Call) -> pb.GetJobResponse:
            record = await own(self._parts, call.principal, request.job_id)
            job = await self._shown(record, with_answer=view_of(request) != pb.JOB_VIEW_BASIC)
            if request.view == pb.JOB_VIEW_UNSPECIFIED and job.ByteSize() > MOST_UNASKED_BYTES:
                call.final = True
                raise TooLarge(TOO_LARGE.format(job.ByteSize()), code="answer_too_large")
            return pb.GetJobResponse(job=job)

        return await self._frame.answer(f"/{NAME}/GetJob", context, work)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> None:
        """A job's events; after the last one of an ended job there is nothing, and the call ends well."""

        def written(events: list[pb.JobEvent]) -> list[pb.WatchJobResponse]:
            return [pb.WatchJobResponse(events=events)]

        async def work(call: Call) -> None:
            record = await own(self._parts, call.principal, request.job_id)
            await self._watch(call, record, _position(request.after), written)

        await self._frame.answer(f"/{NAME}/WatchJob", context, work)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        """A job, told to end."""

        async def work(call: Call) -> pb.CancelJobResponse:
            record = await cancelled(self._parts, call.principal, request.job_id)
            job = await self._shown(record)
            if job.ByteSize() > MOST_UNASKED_BYTES:
                job.ClearField("answer")
            return pb.CancelJobResponse(job=job)

        return await self._frame.answer(f"/{NAME}/CancelJob", context, work)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _job(self, call: Call, asked: ChatRequest, given: pb.JobOptions, manner: Manner) -> Job:
        """The job that a call waits for: it ends by the call's deadline, where that is sooner than its own."""
        options = options_of(given, call.headers)
        if options.delay_ms:
            raise BadRequest("delay_ms: only SubmitJob takes it.", param="delay_ms")
        job = self._parts.admission.job(call.principal, asked, options, manner, request_id=call.request_id)
        left_s = call.left_s
        if left_s is None or left_s * 1000 >= job.deadline_in_ms:
            return job
        return replace(job, deadline_in_ms=max(1, int(left_s * 1000)))

    async def _whole(self, call: Call, asked: ChatRequest, options: pb.JobOptions) -> pb.Completion:
        end = await self._ended(call, self._job(call, asked, options, WAITED_FOR))
        call.told = end.headers
        if end.failure is not None or end.result is None:
            call.final = bool(end.job.idempotency)
            raise _error(end.failure)
        await call.begin(end.headers)
        return await shaped(end.result, completion_of, end.job, end.created_ms, end.result)

    async def _ended(self, call: Call, job: Job) -> Ended:
        """How the job ended, or the one that its idempotency key names."""
        call.job_id = job.id
        awaited = await await_end(self._parts, job)
        call.job_id = awaited.job.id
        call.told = job_headers(awaited.job.id)
        try:
            with self._cuttable():
                async with asyncio.timeout(awaited.limit_s):
                    await asyncio.shield(awaited.waiter.end)
            return await ended(self._parts, awaited)
        except TimeoutError:
            raise not_ended() from None
        finally:
            self._parts.hub.leave(awaited.waiter)

    async def _stream(self, call: Call, asked: ChatRequest, options: pb.JobOptions, written: Written[Message]) -> None:
        job = self._job(call, asked, options, STREAMED)
        call.job_id = job.id
        opened = await open_stream(self._parts, job)
        call.job_id = opened.job.id
        shape = EventShape(opened.job.include_usage)
        if isinstance(opened, Record):
            await self._stored(call, opened, shape, written)
            return
        await self._live(call, opened, shape, written)

    async def _live(self, call: Call, opened: Opened, shape: EventShape, written: Written[Message]) -> None:
        try:
            await call.begin(opened.told(self._parts.clock.monotonic_s()))
        except BaseException:
            opened.reader.close()
            raise
        relay = Relay(opened.reader, shape, self._parts.metrics, on_interrupt=opened.job.on_interrupt)
        await self._send(call, relay.bytes([]), shape, written)

    async def _stored(self, call: Call, record: Record, shape: EventShape, written: Written[Message]) -> None:
        """The stored answer as a stream: its own stream is no longer kept."""
        call.told = {**job_headers(record.job.id), **choice_headers(record.job), **REPLAYED}
        outcome = record.outcome
        if outcome is None or outcome.status is not State.SUCCEEDED or not record.result:
            call.final = True
            raise _error(outcome.failure if outcome else None)
        await call.begin(call.told)
        await self._send(call, stored_frames(shape, record.fence, outcome, record.result), shape, written)

    async def _watch(self, call: Call, record: Record, seen: Position | None, written: Written[Message]) -> None:
        start = None
        if seen is not None or record.state.ended:
            last = await last_entry(self._parts, record)
            start = None if seen is None else _start(record, seen, last)
        await call.begin({**job_headers(record.job.id), **choice_headers(record.job)})
        if seen is not None and start is None:
            return
        job = record.job
        reader, first = await watched(self._parts, record, start)
        shape = EventShape(job.include_usage)
        relay = Relay(reader, shape, self._parts.metrics, on_interrupt=job.on_interrupt, seen=seen)
        await self._send(call, relay.bytes(first), shape, written)

    async def _send(
        self, call: Call, batches: AsyncGenerator[bytes, None], shape: EventShape, written: Written[Message]
    ) -> None:
        """Writes what the shape collects until the stream's end. Raises its bad end, and LaterError on draining."""
        with self._cuttable():
            async with aclosing(batches):
                async for _ in batches:
                    await self._write(call, shape.taken(), written)
        if shape.failure is not None:
            raise _error(shape.failure)

    @contextmanager
    def _cuttable(self) -> Generator[None]:
        """What this holds is ended when the gateway goes. Raises LaterError then."""
        with anyio.CancelScope() as scope, self._parts.hub.cuttable(scope):
            yield
        if scope.cancelled_caught:
            raise LaterError(GOING_AWAY, retry_after_s=1)

    async def _write(self, call: Call, events: list[pb.JobEvent], written: Written[Message]) -> None:
        """Raises SlowReader where the caller takes nothing: it is told so once it does."""
        for start in range(0, len(events), MOST_EVENTS):
            some = events[start : start + MOST_EVENTS]
            for message in _fitting(some, written):
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await call.context.write(message)
                except TimeoutError:
                    raise SlowReader(TOO_SLOW) from None
            if not call.wrote and any(event.HasField("chunk") for event in some):
                call.wrote = True
                self._frame.first_token(call)

    async def _taken(self, call: Call, job: Job) -> pb.SubmitJobResponse:
        accepted = await self._parts.journal.accept(job)
        job_id = accepted.admitted.job_id if accepted.admitted else accepted.job.id
        replayed = job_id != accepted.job.id
        record = await record_of(self._parts, job_id) if replayed else None
        known = record.job if record else accepted.job
        state = record.state if record else State.DELAYED if job.delay_ms else State.QUEUED
        told = job_headers(job_id, journaled=known.journal) | choice_headers(known)
        if replayed:
            told |= REPLAYED
        elif accepted.admitted:
            told |= limit_headers(accepted.admitted, least_ms=known.delay_ms)
        await call.begin(told)
        return pb.SubmitJobResponse(job_id=job_id, status=STATUSES[state], replayed=replayed)

    async def _shown(self, record: Record, *, with_answer: bool = True) -> pb.Job:
        place = None
        if record.position is not None:
            [place] = await self._parts.queue.places(record.job.pool, [record.job.id])
        cost = cost_usd(self._parts, record)
        stands = place_of(place)
        return await shaped(record.result, job_of, record, queue=stands, cost_usd=cost, with_answer=with_answer)

    def _prompt(self, given: pb.Prompt) -> ChatRequest:
        return prompt_of(given, default_model=self._first_model())

    def _first_model(self) -> str | None:
        return next(iter(self._parts.settings.models), None)


def _fitting(events: list[pb.JobEvent], written: Written[Message]) -> list[Message]:
    """The messages of these events: more of them where they are large. One event is never divided."""
    messages = written(events)
    if len(events) == 1 or all(message.ByteSize() <= MOST_EVENTS_BYTES for message in messages):
        return messages
    middle = len(events) // 2
    return _fitting(events[:middle], written) + _fitting(events[middle:], written)


def _error(failure: Failure | None) -> HeadraceError:
    """A job's bad end, to be told as the call's."""
    if failure is None:
        return HeadraceError("The job ended without a reason.")
    return HeadraceError(failure.message, param=failure.param, code=failure.code, retry_after_s=failure.retry_after_s)


def _position(text: str) -> Position | None:
    try:
        return Position.parse(text) if text else None
    except ValueError:
        raise BadRequest("after: a position of the stream's own events is expected.", param="after") from None


def _start(record: Record, seen: Position, last: Position) -> Position | None:
    try:
        return start_after(record, seen, last)
    except PositionGone:
        raise PositionGone("after: it is no position of this stream.", param="after") from None
