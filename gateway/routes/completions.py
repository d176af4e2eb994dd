"""OpenAI's older completions: a prompt, answered as a job of one user message."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import STREAMED, WAITED_FOR
from gateway.answers import stream_answer, whole_answer
from gateway.dialects.completions import parse_completions
from gateway.dialects.native import parse_options
from gateway.docs import COMPLETIONS
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.plain import PlainRoute


def router(parts: Parts) -> APIRouter:
    """The route, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/completions", **COMPLETIONS)
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        settings = parts.settings
        raw = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
        asked = parse_completions(raw)
        job = parts.admission.job(
            principal,
            asked,
            parse_options(request.scope["headers"]),
            STREAMED if asked.stream else WAITED_FOR,
            request_id=request_id(request),
        )
        return await (stream_answer(parts, job) if asked.stream else whole_answer(parts, job, request))

    return routes
