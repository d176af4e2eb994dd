"""The frame around every call, as `gateway/http.py` is around requests: its id, its caller, its errors, its count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import structlog
from structlog.contextvars import bind_contextvars

from common.contracts import Failure
from common.errors import HeadraceError
from gateway.auth import Principal
from gateway.errors import row_of
from gateway.http import new_request_id
from gateway.limits import TenantFull
from gateway.parts import Parts
from gateway.rpc.codes import NEVER, PUSHBACK, Metadata, message_of, status_of, trailers_of
from gateway.rpc.connections import Connections
from gateway.rpc.reading import RawHeaders

log = structlog.get_logger(__name__)

REQUEST_ID: Final = "x-request-id"
OK: Final = 200
LEFT: Final = 499

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")


@dataclass(slots=True)
class Call:
    """One call under way: who asks, what came as metadata, and what its answer's metadata tells."""

    context: Context
    principal: Principal
    request_id: str
    headers: RawHeaders
    began_s: float
    peer: str
    told: dict[str, str] = field(default_factory=dict[str, str])
    job_id: str = ""
    """The job whose answer this call is: of no use to anybody once its callers want it no more."""
    wrote: bool = False
    final: bool = False
    """Whether the same request would only have the same end again."""

    @property
    def left_s(self) -> float | None:
        """How long the caller still waits; None where it named no deadline."""
        return self.context.time_remaining()

    async def begin(self, headers: dict[str, str]) -> None:
        """Sends the initial metadata: the request's id and these."""
        self.told = headers
        await self.context.send_initial_metadata(((REQUEST_ID, self.request_id), *headers.items()))


class Frame:
    """Gives each call its id and its principal, and answers what goes wrong by the table."""

    def __init__(self, parts: Parts, connections: Connections) -> None:
        self._parts = parts
        self._connections = connections
        self._giving_up: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()

    async def answer(self, route: str, context: Context, work: Callable[[Call], Awaitable[Answer]]) -> Answer:
        """What the work came to. Ends the call with a status where it failed; `route` is the method's full name.

        Counted by HTTP's statuses, so that one metric tells of both.
        """
        self._count(1)
        call = Call(context, _NOBODY, new_request_id(), headers_of(context), time.perf_counter(), context.peer())
        bind_contextvars(request_id=call.request_id)
        status = LEFT
        try:
            call.principal = self._parts.auth.principal_of(call.headers)
            answer = await work(call)
            status = OK
            return answer
        except asyncio.CancelledError:
            self._hung_up(call)
            raise
        except HeadraceError as error:
            failure = self._refused(call, error)
            status = row_of(failure.code).status
        except Exception as error:
            # As at HTTP's outermost layer, the one blind handler: whatever went wrong, the caller gets an answer.
            if context.done() or isinstance(error, grpc.aio.InternalError):
                # Nobody is left to answer: what failed was writing to somebody who hung up.
                log.debug("call.client_left")
                self._hung_up(call)
                raise asyncio.CancelledError from None
            log.exception("call.failed", route=route)
            failure = Failure("internal_error", "Something went wrong on our side.")
            status = row_of(failure.code).status
        finally:
            self._count(-1)
            self._parts.metrics.request(route, status, time.perf_counter() - call.began_s)
        await context.abort(status_of(failure), message_of(failure), _trailers(call, failure))

    def _refused(self, call: Call, error: HeadraceError) -> Failure:
        if isinstance(error, TenantFull):
            call.told = error.headers()
        self._parts.metrics.refused(error.failure.code)
        return error.failure

    def _hung_up(self, call: Call) -> None:
        if not call.job_id:
            return
        # Beside the call, which gRPC cancels, maybe while this is under way.
        task = asyncio.create_task(self._give_up(call), name="rpc give up")
        self._giving_up.add(task)
        self._count(1)
        task.add_done_callback(self._gave_up)

    async def _give_up(self, call: Call) -> None:
        """Who cancels a call wants no answer any more; whose connection was lost may come back for it.

        Calls that this gateway itself cuts lose their connection, too.
        """
        if await self._connections.stands(call.peer):
            await self._parts.hub.give_up(call.job_id)

    def _gave_up(self, task: asyncio.Task[None]) -> None:
        self._giving_up.discard(task)
        self._count(-1)

    def _count(self, step: int) -> None:
        self._under_way += step
        (self._idle.clear if self._under_way else self._idle.set)()

    def first_token(self, call: Call) -> None:
        """Counts how long the first token took."""
        self._parts.metrics.first_token(time.perf_counter() - call.began_s)


_NOBODY: Final = Principal("")


def headers_of(context: Context) -> RawHeaders:
    """The call's metadata as HTTP has headers."""
    found = context.invocation_metadata() or ()
    return [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in found]


def _trailers(call: Call, failure: Failure) -> Metadata:
    """With the request's id, since a refusal has no initial metadata: gRPC retries only what has none."""
    found = trailers_of(failure)
    if call.final:
        found = (*(pair for pair in found if pair[0] != PUSHBACK), (PUSHBACK, NEVER))
    return (REQUEST_ID, call.request_id), *call.told.items(), *found
