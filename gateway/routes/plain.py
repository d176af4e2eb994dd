"""Routes whose handlers take the request as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

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
