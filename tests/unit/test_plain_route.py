"""A plain route gives its handler the request and nothing more; whoever asks for more still gets it."""

from __future__ import annotations

import httpx
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.routes.plain import PlainRoute


def an_app(called_itself: list[bool]) -> FastAPI:
    """Two routes; `called_itself` is told of each whether its handler is called without anything between."""
    app, routes = FastAPI(), APIRouter(route_class=PlainRoute)

    @routes.post("/plain", summary="Takes the request")
    async def plain(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(await request.body())

    @routes.get("/named/{name}")
    async def named(request: Request, name: str, times: int = 1) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(name * times)

    app.include_router(routes)
    handlers = {route.path: route.get_route_handler() for route in routes.routes if isinstance(route, PlainRoute)}
    called_itself += [handlers["/plain"] is plain, handlers["/named/{name}"] is named]
    return app


async def test_a_handler_of_requests_is_called_itself_and_others_get_their_parameters() -> None:
    called_itself: list[bool] = []
    app = an_app(called_itself)
    assert called_itself == [True, False]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        assert (await client.post("/plain", content=b"what came")).content == b"what came"
        assert (await client.get("/named/mill?times=2")).content == b"millmill"
        assert (await client.get("/named/mill?times=x")).status_code == 422


def test_the_description_names_plain_routes() -> None:
    assert an_app([]).openapi()["paths"]["/plain"]["post"]["summary"] == "Takes the request"
