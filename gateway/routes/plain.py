"""Routes whose handlers take the request as it is; and HEAD wherever there is GET."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class PlainRoute(APIRoute):
    """A route that hands the request straight to its handler, where that asks for nothing else.

    What FastAPI does for arguments, dependencies and answers costs as much as all before it, and our handlers need none
    of it: they read bodies with limits and answer in bytes. The API's description stays FastAPI's.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler itself; FastAPI's own way where it has other parameters."""
        plain = [*inspect.signature(self.endpoint).parameters] == ["request"]
        return self.endpoint if plain else super().get_route_handler()


def answer_heads(routes: APIRouter) -> None:
    """Has HEAD answered wherever there is GET, as HTTP wants it: by the same handlers, and the server drops the body.

    The API's description says nothing of it. A handler that streams must look at the method, and begin nothing.
    """
    found = [one for one in routes.routes if isinstance(one, APIRoute)]
    answered = {one.path for one in found if "HEAD" in (one.methods or ())}
    for one in found:
        if "GET" in (one.methods or ()) and one.path not in answered:
            routes.add_api_route(one.path, one.endpoint, methods=["HEAD"], include_in_schema=False)
