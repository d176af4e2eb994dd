"""OpenAI's embeddings: a job like any other, answered whole."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import WAITED_FOR
from gateway.answers import whole_answer
from gateway.dialects.embeddings import parse_embeddings
from gateway.dialects.native import parse_options
from gateway.docs.openai import EMBEDDINGS
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.plain import PlainRoute


def router(parts: Parts) -> APIRouter:
    """The route, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/embeddings", **EMBEDDINGS)
    async def embeddings(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        settings = parts.settings
        raw = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
        job = parts.admission.job(
            principal,
            parse_embeddings(raw),
            parse_options(request.scope["headers"]),
            WAITED_FOR,
            request_id=request_id(request),
        )
        return await whole_answer(parts, job, request)

    return routes
