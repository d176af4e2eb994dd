"""OpenAI's batches: made, listed, shown, cancelled. What becomes of them is `gateway/batches`' work."""

from __future__ import annotations

from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import JsonObject
from common.errors import BadRequest, NotFound
from common.ledger.batches import CANCELLABLE, Batch, new_batch_id
from gateway.auth import Principal
from gateway.dialects.batches import WINDOW_MS, batch_object, parse_batch
from gateway.dialects.files import BATCH, page_object
from gateway.docs.files import BATCH as BATCH_ROUTE
from gateway.docs.files import BATCHES, CANCEL_BATCH, CREATE_BATCH
from gateway.http import read_body
from gateway.idempotency import parse_key, reused
from gateway.parts import Parts
from gateway.routes.files import no_such_file
from gateway.routes.jobs import limit_of
from gateway.routes.plain import PlainRoute

MOST_LISTED: Final = 100


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/batches", **CREATE_BATCH)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        settings = parts.settings
        raw = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
        key = parse_key(request.scope["headers"])
        batch = await _create(parts, principal, parse_batch(raw), key)
        parts.runner.wake()
        return _json(batch_object(batch))

    @routes.get("/v1/batches", **BATCHES)
    async def list_batches(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        most = limit_of(request.query_params.get("limit", "20"), MOST_LISTED)
        given = request.query_params.get("after")
        after = await _own(parts, principal, given) if given else None
        found = await parts.batches.page(principal.tenant, most=most + 1, after=after)
        shown = found[:most]
        return _json(page_object(shown, [batch_object(batch) for batch in shown], has_more=len(found) > most))

    @routes.get("/v1/batches/{batch_id}", **BATCH_ROUTE)
    async def retrieve(request: Request, batch_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json(batch_object(await _own(parts, parts.auth.principal(request), batch_id)))

    @routes.post("/v1/batches/{batch_id}/cancel", **CANCEL_BATCH)
    async def cancel(request: Request, batch_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        batch = await _cancel(parts, parts.auth.principal(request), batch_id)
        return _json(batch_object(batch))

    return routes


async def _create(parts: Parts, principal: Principal, body: JsonObject, key: str) -> Batch:
    """The batch just made, or the one that this idempotency key made. Raises NotFound, BadRequest, KeyReused."""
    now_ms = await parts.queue.now_ms()
    expiry: JsonObject = body.get("output_expires_after") or {}
    batch = Batch(
        id=new_batch_id(principal.tenant, key),
        tenant=principal.tenant,
        weight=principal.weight,
        endpoint=body["endpoint"],
        input_file_id=body["input_file_id"],
        metadata=orjson.dumps(body["metadata"]) if body.get("metadata") is not None else None,
        output_life_s=expiry.get("seconds"),
        created_ms=now_ms,
        expires_ms=now_ms + WINDOW_MS,
    )
    file = await parts.files.get(batch.input_file_id, principal.tenant, now_ms=now_ms)
    if file is not None and file.purpose != BATCH:
        text = f"input_file_id: the file's purpose must be 'batch', not {file.purpose!r}."
        raise BadRequest(text, param="input_file_id")
    made = await parts.batches.create(batch)
    if made is None:
        raise no_such_file(batch.input_file_id, "input_file_id")
    if _asked(made) != _asked(batch):
        raise reused()
    return made


def _asked(batch: Batch) -> tuple[str, str, bytes | None, int | None]:
    return batch.endpoint, batch.input_file_id, batch.metadata, batch.output_life_s


async def _own(parts: Parts, principal: Principal, batch_id: str) -> Batch:
    """The caller's own batch. Raises NotFound for an unknown id and for another tenant's alike."""
    batch = await parts.batches.get(batch_id[:64], principal.tenant)
    if batch is None:
        raise NotFound(f"No batch found with id {batch_id[:64]!r}.", param="batch_id")
    return batch


async def _cancel(parts: Parts, principal: Principal, batch_id: str) -> Batch:
    """The caller's own batch, being cancelled. Raises NotFound, and BadRequest where it is too late."""
    batch = await _own(parts, principal, batch_id)
    if batch.status in CANCELLABLE:
        await parts.batches.cancel(batch.id, now_ms=await parts.queue.now_ms())
        batch = await _own(parts, principal, batch_id)
        parts.runner.wake()
    if batch.cancelling_ms is None:
        # Not a 409, which SDKs try again.
        raise BadRequest(f"A batch that is {batch.status} cannot be cancelled.", param="batch_id")
    return batch


def _json(document: JsonObject) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
