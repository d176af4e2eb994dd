"""Routes whose handlers take the request as it is; and HEAD wherever there is GET."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send


class PlainRoute(APIRoute):
    """A route that hands the request straight to its handler, where that asks for nothing else.

    What FastAPI does for arguments, dependencies and answers costs as much as all before it, and our handlers need none
    of it: they read bodies with limits and answer in bytes. The API's description stays FastAPI's.

    HEAD is answered wherever there is GET, as HTTP wants it: by the same handler, and the server drops the body. One
    that streams must look at the method, and begin nothing. As routes of their own they would be looked through, too.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        match, found = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL and self._is_head(scope) else match), found

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers it."""
        await (self.app if self._is_head(scope) else super().handle)(scope, receive, send)

    def _is_head(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in (self.methods or ())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler itself; FastAPI's own way where it has other parameters."""
        plain = [*inspect.signature(self.endpoint).parameters] == ["request"]
        return self.endpoint if plain else super().get_route_handler()


def answer_heads(routes: APIRouter) -> None:
    """Has HEAD answered by FastAPI's own routes too where there is GET; the API's description says nothing of it."""
    for one in [*routes.routes]:
        if isinstance(one, APIRoute) and not isinstance(one, PlainRoute) and "GET" in (one.methods or ()):
            routes.add_api_route(one.path, one.endpoint, methods=["HEAD"], include_in_schema=False)
