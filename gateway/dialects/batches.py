"""OpenAI's wire shapes for batches: the request that makes one, and the object."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Required

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject
from common.ledger.batches import CANCELLED, COMPLETED, EXPIRED, FAILED, Batch
from gateway.dialects.bounded import read_object
from gateway.dialects.chat_schema import check
from gateway.dialects.files import LONGEST_LIFE_S, SHORTEST_LIFE_S

WINDOW: Final = "24h"
WINDOW_MS: Final = 86_400_000

_CLOSED: Final = ConfigDict(strict=True, extra="forbid")
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


@with_config(_CLOSED)
class OutputExpiry(TypedDict):
    """When the files that a batch makes go by themselves."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_LIFE_S, le=LONGEST_LIFE_S)]


@with_config(_CLOSED)
class BatchBody(TypedDict, total=False):
    """OpenAI's request for a batch."""

    input_file_id: Required[Annotated[str, Field(min_length=1, max_length=64)]]
    endpoint: Required[Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]]
    completion_window: Required[Literal["24h"]]
    metadata: Metadata | None
    output_expires_after: OutputExpiry | None


BATCH_BODY: Final = TypeAdapter(BatchBody)


def parse_batch(raw: bytes) -> JsonObject:
    """The checked request in a body. Raises BadRequest naming the field."""
    body = read_object(raw, lambda _: ())
    check(BATCH_BODY, body)
    return body


def batch_object(batch: Batch) -> JsonObject:
    """OpenAI's batch object without what is not known (yet): by its schema a key is there or not, and never null."""
    ended_at = {batch.status: _seconds(batch.ended_ms)} if batch.ended_ms is not None else {}
    shown: JsonObject = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": orjson.loads(batch.errors) if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_ms // 1000,
        "in_progress_at": _seconds(batch.in_progress_ms),
        "expires_at": batch.expires_ms // 1000,
        "finalizing_at": _seconds(batch.finalizing_ms),
        "completed_at": ended_at.get(COMPLETED),
        "failed_at": ended_at.get(FAILED),
        "expired_at": ended_at.get(EXPIRED),
        "cancelling_at": _seconds(batch.cancelling_ms),
        "cancelled_at": ended_at.get(CANCELLED),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _usage(batch),
    }
    metadata = orjson.loads(batch.metadata) if batch.metadata else None
    return {name: value for name, value in shown.items() if value is not None} | {"metadata": metadata}


def _usage(batch: Batch) -> JsonObject:
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": batch.cached_tokens},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": batch.reasoning_tokens},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
