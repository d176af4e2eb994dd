"""OpenAI's files: uploaded, listed, shown, read, deleted. A file of another tenant answers like one that never was."""

from __future__ import annotations

from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from common.contracts import JsonObject
from common.errors import BadRequest, NotFound
from common.ledger.files import File
from gateway.auth import Principal
from gateway.dialects.files import file_object, page_object
from gateway.docs.files import CREATE_FILE, DELETE_FILE, FILE, FILE_CONTENT, FILES
from gateway.downloads import Download
from gateway.errors import asks_anthropic
from gateway.parts import Parts
from gateway.routes.jobs import limit_of
from gateway.routes.plain import PlainRoute
from gateway.uploads import receive_file

MOST_LISTED: Final = 10_000


class _OpenAIsRoute(PlainRoute):
    """A route that is not there for Anthropic's clients, whose files by the same address are of another shape."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        return (Match.NONE, {}) if asks_anthropic(scope) else super().matches(scope)


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=_OpenAIsRoute)

    @routes.post("/v1/files", **CREATE_FILE)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        timeout_s = parts.settings.request_timeout_s
        file = await receive_file(request, parts.files, principal.tenant, parts.queue.now_ms, timeout_s=timeout_s)
        return _json(file_object(file))

    @routes.get("/v1/files", **FILES)
    async def list_files(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        return _json(await _page(parts, principal, request))

    @routes.get("/v1/files/{file_id}", **FILE)
    async def retrieve(request: Request, file_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json(file_object(await own_file(parts, parts.auth.principal(request), file_id)))

    @routes.delete("/v1/files/{file_id}", **DELETE_FILE)
    async def delete(request: Request, file_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        if not await parts.files.delete(file_id[:64], principal.tenant, now_ms=await parts.queue.now_ms()):
            raise no_such_file(file_id)
        return _json({"id": file_id, "object": "file", "deleted": True})

    @routes.get("/v1/files/{file_id}/content", **FILE_CONTENT)
    async def content(request: Request, file_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        file = await own_file(parts, parts.auth.principal(request), file_id)
        return Download(parts.hub, parts.files, file)

    return routes


async def own_file(parts: Parts, principal: Principal, file_id: str, *, param: str = "id") -> File:
    """The caller's own file. Raises NotFound for an unknown id, an expired one, and another tenant's alike.

    `param`: the field that names it.
    """
    file = await parts.files.get(file_id[:64], principal.tenant, now_ms=await parts.queue.now_ms())
    if file is None:
        raise no_such_file(file_id, param)
    return file


def no_such_file(file_id: str, param: str = "id") -> NotFound:
    """The refusal of an id that is no file of the caller's."""
    return NotFound(f"No such File object: {file_id[:64]!r}.", param=param)


async def _page(parts: Parts, principal: Principal, request: Request) -> JsonObject:
    given = request.query_params
    most = limit_of(given.get("limit", str(MOST_LISTED)), MOST_LISTED)
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order: must be 'asc' or 'desc'.", param="order")
    after = await own_file(parts, principal, given["after"], param="after") if given.get("after") else None
    found = await parts.files.page(
        principal.tenant,
        most=most + 1,
        now_ms=await parts.queue.now_ms(),
        purpose=given.get("purpose"),
        after=after,
        ascending=order == "asc",
    )
    shown = found[:most]
    return page_object(shown, [file_object(file) for file in shown], has_more=len(found) > most)


def _json(document: JsonObject) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
