"""How the fleet stands: for probes, dashboards and people."""

from __future__ import annotations

from functools import cache
from importlib import metadata

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.backends import BackendSlots
from common.breaker import BreakerStore
from common.contracts import JsonObject, Priority
from common.errors import HeadraceError
from common.queue import LaneDepth, WorkerRow
from gateway.auth import ADMIN
from gateway.docs.operations import HEALTH, LIVEZ, METRICS, QUEUES, READYZ, WORKERS
from gateway.parts import Parts


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter()

    @routes.get("/livez", **LIVEZ)
    async def livez() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response("ok\n", media_type="text/plain")

    @routes.get("/readyz", **READYZ)
    async def readyz() -> Response:  # pyright: ignore[reportUnusedFunction]
        trouble = await _store_trouble(parts)
        # A full store is no reason to send readers elsewhere: every gateway has the same one, and running work goes on.
        said = trouble or ("ok; the store is full: new work is refused" if parts.pressure.full else "ok")
        return Response(f"{said}\n", 503 if trouble else 200, media_type="text/plain")

    @routes.get("/health", **HEALTH)
    @routes.get("/healthz", include_in_schema=False)
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        trouble = await _store_trouble(parts)
        workers = 0 if trouble else sum([len(await parts.queue.workers(pool)) for pool in parts.settings.all_pools])
        status = "unavailable" if trouble else "ok" if workers and not parts.pressure.full else "degraded"
        body = {
            "status": status,
            "store": trouble or ("full" if parts.pressure.full else "ok"),
            "store_memory_share": round(parts.pressure.share, 3),
            "workers": workers,
            "streams": parts.hub.readers,
            "version": metadata_version(),
        }
        return Response(orjson.dumps(body), 503 if trouble else 200, media_type="application/json")

    @routes.get("/workers", **WORKERS)
    async def workers(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        rows: list[JsonObject] = []
        for pool in parts.settings.all_pools:
            backends = await _backends(parts, pool)
            workers = await parts.queue.workers(pool)
            rows += [_worker(row, backends, with_jobs=principal.role == ADMIN) for row in workers]
        return Response(orjson.dumps(rows), media_type="application/json")

    @routes.get("/v1/queues", **QUEUES)
    async def queues(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        data = [await _pool(parts, pool) for pool in parts.settings.all_pools]
        return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")

    @routes.get("/metrics", **METRICS)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(parts.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


@cache
def metadata_version() -> str:
    """Headrace's version, where it is installed as a package."""
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "source"


async def _store_trouble(parts: Parts) -> str | None:
    try:
        await parts.store.command("PING")
    except HeadraceError as error:
        return error.failure.message
    return None


async def _backends(parts: Parts, pool: str) -> list[JsonObject]:
    rows = [row for row in parts.settings.backends if pool in row.pool]
    known = await parts.health.read(pool)
    breakers = await BreakerStore(parts.store).read([row.name for row in rows])
    shown: list[JsonObject] = []
    for row in rows:
        health, slots = known.get(row.name), await BackendSlots(parts.store).read(row.name)
        shown.append(
            {
                "name": row.name,
                "kind": row.kind,
                "breaker": breakers[row.name].phase.value,
                "failures": breakers[row.name].failures,
                "retry_ms": breakers[row.name].retry_ms,
                "healthy": health.healthy if health else None,
                "checked_ms": health.checked_ms if health else None,
                "load": health.load if health else None,
                "concurrency": row.concurrency,
                "in_use": sum(in_use for _, in_use in slots.values()),
            }
        )
    return shown


def _worker(row: WorkerRow, backends: list[JsonObject], *, with_jobs: bool) -> JsonObject:
    own = {state["name"]: state for state in row.info.get("backend_states", ())}
    return {
        **{name: value for name, value in row.info.items() if name != "backend_states"},
        "id": row.id,
        "pool": row.pool,
        "status": "draining" if row.draining else "active",
        "version": row.info.get("version"),
        "started_at": row.info.get("started_at"),
        "lease_expires_ms": row.lease_expires_ms,
        # What is held in this pool now: what the worker tells of itself is of all its pools, and a beat old.
        "running": len(row.jobs),
        "concurrency": row.info.get("concurrency", 0),
        # Whose they are is nobody's business but the operators'.
        **({"jobs": list(row.jobs)} if with_jobs else {}),
        "backends": [{**backend, **_seen(own.get(backend["name"], {}))} for backend in backends],
    }


def _seen(own: JsonObject) -> JsonObject:
    """What a worker itself told of a backend: the breaker as it sees it, its own slots, how many keys don't rest."""
    return {"breaker_seen": own.get("breaker"), "slots": own.get("slots"), "keys": own.get("keys")}


async def _pool(parts: Parts, pool: str) -> JsonObject:
    lanes = await parts.queue.lanes(pool)
    stats = await parts.queue.stats(pool)
    now_ms = await parts.queue.now_ms()
    return {
        "pool": pool,
        "depth": sum(lane.depth for lane in lanes),
        "delayed": await parts.queue.delayed_count(pool),
        "by_class": {priority.label: _class_depth(lanes, priority) for priority in Priority},
        "lanes": [_lane(lane, now_ms) for lane in lanes],
        "drain_jobs_per_s": stats.get("drain_jobs_per_s"),
        "counts": {
            name: int(value) for name, value in stats.items() if ":" not in name and not name.startswith("drain_")
        },
    }


def _class_depth(lanes: list[LaneDepth], priority: Priority) -> int:
    return sum(lane.depth for lane in lanes if lane.priority is priority)


def _lane(lane: LaneDepth, now_ms: int) -> JsonObject:
    age_ms = None if lane.oldest_ms is None else max(0, now_ms - lane.oldest_ms)
    return {"class": lane.priority.label, "model": lane.model, "depth": lane.depth, "oldest_age_ms": age_ms}
