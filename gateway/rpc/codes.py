"""Our errors as gRPC's: the status that each code of `gateway/errors.py` becomes, and the details that go with it."""

from __future__ import annotations

import math
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from common.contracts import Failure
from gateway.errors import TABLE, row_of

DOMAIN: Final = "headrace"
DETAILS: Final = "grpc-status-details-bin"
# What gRPC's own retries obey: so many ms, or never.
PUSHBACK: Final = "grpc-retry-pushback-ms"
NEVER: Final = "-1"
# It travels twice in the trailers, which clients bound at 8 KiB.
MOST_MESSAGE_CHARACTERS: Final = 1_000

Metadata = tuple[tuple[str, str | bytes], ...]

_BY_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Where HTTP has one status for what gRPC tells apart.
_BY_CODE: Final = {
    "idempotency_key_reused": grpc.StatusCode.ALREADY_EXISTS,
    "stream_expired": grpc.StatusCode.OUT_OF_RANGE,
    "stream_lost": grpc.StatusCode.ABORTED,
    "upstream_interrupted": grpc.StatusCode.ABORTED,
    "slow_reader": grpc.StatusCode.ABORTED,
    # UNAVAILABLE says that trying again may help; these stay as they are until an operator mends them.
    "upstream_credentials": grpc.StatusCode.INTERNAL,
    "upstream_protocol_error": grpc.StatusCode.INTERNAL,
}


def status_of(failure: Failure) -> grpc.StatusCode:
    """The status that this failure is told by."""
    row = row_of(failure.code)
    other = grpc.StatusCode.FAILED_PRECONDITION if row.status < 500 else grpc.StatusCode.INTERNAL
    return _BY_CODE.get(failure.code) or _BY_STATUS.get(row.status, other)


def message_of(failure: Failure) -> str:
    """The sentence that goes with the status."""
    return failure.message[:MOST_MESSAGE_CHARACTERS]


def trailers_of(failure: Failure) -> Metadata:
    """The trailing metadata of a refusal: google.rpc.Status with its details, and when to try again."""
    details = Status(code=status_of(failure).value[0], message=message_of(failure))
    details.details.extend(map(_packed, _details(failure)))
    return (DETAILS, details.SerializeToString()), *_pushback(failure)


def reason_of(failure: Failure) -> str:
    """The stable word for a failure: the one that HTTP has for it."""
    row = row_of(failure.code)
    return row.sent or (failure.code if failure.code in TABLE else "internal_error")


def _details(failure: Failure) -> list[Message]:
    found: list[Message] = [ErrorInfo(reason=reason_of(failure), domain=DOMAIN)]
    if failure.param is not None:
        fault = BadRequest.FieldViolation(field=failure.param, description=message_of(failure))
        found.append(BadRequest(field_violations=[fault]))
    if failure.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(_retry_ms(failure.retry_after_s))
        found.append(RetryInfo(retry_delay=delay))
    return found


def _pushback(failure: Failure) -> Metadata:
    if row_of(failure.code).retry is False:
        return ((PUSHBACK, NEVER),)
    return () if failure.retry_after_s is None else ((PUSHBACK, str(_retry_ms(failure.retry_after_s))),)


def _retry_ms(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


def _packed(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
