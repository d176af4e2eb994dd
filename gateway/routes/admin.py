"""What operators do: send a worker away. What each tenant may do about its dead letters: look, and run them anew."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import Failure, JsonObject, new_job_id, pool_of
from common.errors import BadRequest, Forbidden, NotFound
from common.queue import Record
from gateway.auth import ADMIN, Principal
from gateway.dialects.native import attempt_errors, job_record
from gateway.docs.jobs import DEAD_LETTER, DEAD_LETTERS, REPLAY
from gateway.docs.operations import DRAIN_WORKER
from gateway.errors import error_fields
from gateway.http import request_id
from gateway.idempotency import key_digest
from gateway.parts import Parts
from gateway.routes.jobs import limit_of, links, taken

MOST_WORKER_ID_CHARACTERS: Final = 128
# No caller's key can be this: one of theirs is printable.
REPLAY_KEY: Final = "replay\0"
UNTOLD: Final = Failure("internal_error", "The job ended without a reason.")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: the job, when it died, and the job that was made of it since."""

    record: Record
    died_ms: int
    replayed_as: str | None


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter()

    @routes.post("/v1/admin/workers/{worker_id}/drain", **DRAIN_WORKER)
    async def drain(request: Request, worker_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        if parts.auth.principal(request).role != ADMIN:
            raise Forbidden("Workers are the operators' to drain.")
        pools = parts.settings.all_pools if len(worker_id) <= MOST_WORKER_ID_CHARACTERS else ()
        told = await asyncio.gather(*(parts.queue.drain(pool, worker_id) for pool in pools))
        if not any(told):
            raise NotFound("There is no worker by that id.", code="worker_not_found")
        return _json({"id": worker_id, "status": "draining"}, 202)

    _add_dead_letters(routes, parts)
    return routes


def _add_dead_letters(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/v1/admin/dead-letters", **DEAD_LETTERS)
    async def dead_letters(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        most = limit_of(request.query_params.get("limit", "20"))
        after = await _after(parts, principal, request.query_params.get("after"))
        pools = _pools(parts, request.query_params.get("pool"))
        found = await asyncio.gather(
            *(parts.queue.dead_letters(pool, principal.tenant, most=most + 1, after=after) for pool in pools)
        )
        newest = sorted((letter for of_pool in found for letter in of_pool), reverse=True)
        letters = await asyncio.gather(*(_letter(parts, job_id, died_ms) for died_ms, job_id in newest[:most]))
        data = [_summary(letter) for letter in letters if letter is not None]
        return _json({"object": "list", "data": data, "has_more": len(newest) > most})

    @routes.get("/v1/admin/dead-letters/{job_id}", **DEAD_LETTER)
    async def dead_letter(request: Request, job_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json(_whole(await _own(parts, parts.auth.principal(request), job_id)))

    @routes.post("/v1/admin/dead-letters/{job_id}/replay", **REPLAY)
    async def replay(request: Request, job_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        letter = await _own(parts, principal, job_id)
        job = replace(
            letter.record.job,
            id=new_job_id(letter.record.job.pool),
            delay_ms=0,
            request_id=request_id(request),
            weight=principal.weight,
            idempotency=key_digest(REPLAY_KEY + job_id),
            fingerprint=job_id,
            journal=False,
            replay_of=job_id,
        )
        return await taken(parts, await parts.journal.accept(job))


# --- dead letters -----------------------------------------------------------------------------------------------------


async def _own(parts: Parts, principal: Principal, job_id: str) -> Letter:
    """The caller's own dead letter. Raises NotFound for an unknown one and for another tenant's alike."""
    pool = pool_of(job_id)
    died_ms = await parts.queue.died_ms(pool, job_id) if pool and pool in parts.settings.all_pools else None
    letter = None if died_ms is None else await _letter(parts, job_id, died_ms)
    if letter is None or letter.record.job.tenant != principal.tenant:
        raise NotFound("There is no dead letter by that id.", code="dead_letter_not_found")
    return letter


async def _letter(parts: Parts, job_id: str, died_ms: int) -> Letter | None:
    """A dead letter as it stands; None where its record is gone, or nobody can read it."""
    try:
        record = await parts.queue.get(job_id)
    except (ValueError, TypeError, KeyError):
        return None
    if record is None:
        return None
    job = record.job
    replayed_as = await parts.queue.by_key(job.pool, job.tenant, key_digest(REPLAY_KEY + job_id))
    return Letter(record, died_ms, replayed_as)


async def _after(parts: Parts, principal: Principal, job_id: str | None) -> tuple[int, str] | None:
    """Where the page before ended."""
    if job_id is None:
        return None
    try:
        return (await _own(parts, principal, job_id)).died_ms, job_id
    except NotFound:
        raise BadRequest("after: no dead letter of yours by that id.", param="after") from None


def _pools(parts: Parts, asked: str | None) -> tuple[str, ...]:
    if asked is None:
        return parts.settings.all_pools
    if asked not in parts.settings.all_pools:
        raise BadRequest("pool: there is no pool by that name.", param="pool")
    return (asked,)


def _summary(letter: Letter) -> JsonObject:
    record = letter.record
    failure = record.outcome.failure if record.outcome else None
    home = f"/v1/admin/dead-letters/{record.job.id}"
    return {
        "id": record.job.id,
        "object": "dead_letter",
        "pool": record.job.pool,
        "model": record.job.model,
        "endpoint": record.job.endpoint,
        "priority": record.job.priority.label,
        "reason": error_fields(failure or UNTOLD),
        "attempt": record.attempt,
        "failures": len(record.errors),
        "created_at": record.created_ms // 1000,
        "died_at": letter.died_ms // 1000,
        "replayed_as": letter.replayed_as,
        "links": {"self": home, "replay": f"{home}/replay", "job": links(record.job.id)["self"]},
    }


def _whole(letter: Letter) -> JsonObject:
    record = letter.record
    shown = job_record(record)
    return {
        **_summary(letter),
        "request": record.job.body,
        "attempts": attempt_errors(record),
        "started_at": shown["started_at"],
        "timings_ms": shown["timings_ms"],
        "usage": shown["usage"],
        "metadata": shown["metadata"],
        "replay_of": record.job.replay_of or None,
    }


def _json(document: JsonObject, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
