"""The one message of a call, which gRPC itself would wait for without an end: here it has the time that a body has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from common.contracts import Failure
from gateway.rpc.codes import message_of, status_of, trailers_of

Handler = Any  # grpc names no type of it at run time
Context = grpc.aio.ServicerContext[Any, Any]
Work = Callable[[Any, Context], Awaitable[Any]]
Refuse = Callable[[str, Context, Failure], Awaitable[None]]
"""Ends a call of the method with this full name."""

NOT_IN_TIME: Final = Failure("request_timeout", "The call's message did not arrive in time.")
UNREADABLE: Final = Failure("invalid_request", "The call's message is none of this method's.")
NO_MESSAGE: Final = Failure("invalid_request", "The call ended without its message.")


class Arrival(grpc.aio.ServerInterceptor):
    """Reads the message of calls that have one, each within this time, before anything else of them begins."""

    def __init__(self, limit_s: float, refusing: Mapping[str, Refuse]) -> None:
        """`refusing`: by the service's name what ends its calls; those of other services are ended plainly."""
        self._limit_s = limit_s
        self._refusing = refusing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler; where the caller sends one message, as one of a stream, which can be waited for."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        many = handler.response_streaming
        make = grpc.stream_stream_rpc_method_handler if many else grpc.stream_unary_rpc_method_handler
        work = self._timely(handler_call_details.method, handler.unary_stream if many else handler.unary_unary)
        return make(work, handler.request_deserializer, handler.response_serializer)

    def _timely(self, method: str, work: Work) -> Work:
        async def read_first(_messages: Any, context: Context) -> Any:
            return await work(await self._message(method, context), context)

        return read_first

    async def _message(self, method: str, context: Context) -> Any:
        """The call's message. Ends the call where there is none in time, or none that can be read."""
        failure = NO_MESSAGE
        try:
            async with asyncio.timeout(self._limit_s):
                message = await context.read()
            if message is not grpc.aio.EOF:
                return message
        except TimeoutError:
            failure = NOT_IN_TIME
        except DecodeError:
            failure = UNREADABLE
        await self._refusing.get(method.split("/")[1], _plainly)(method, context, failure)


async def _plainly(_method: str, context: Context, failure: Failure) -> None:
    await context.abort(status_of(failure), message_of(failure), trailers_of(failure))
