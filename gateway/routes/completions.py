"""OpenAI's older completions: each prompt is answered as a job of one user message."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import STREAMED, WAITED_FOR
from gateway.answers import stream_answer, whole_answer
from gateway.auth import Principal
from gateway.dialects.completions import parse_completions
from gateway.dialects.native import parse_options
from gateway.dialects.openai import ChatRequest
from gateway.docs.openai import COMPLETIONS
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.plain import PlainRoute
from gateway.together import options_of, stream_together, whole_together


def router(parts: Parts) -> APIRouter:
    """The route, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/completions", **COMPLETIONS)
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        settings = parts.settings
        raw = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
        return await _answer(parts, request, principal, parse_completions(raw))

    return routes


async def _answer(parts: Parts, request: Request, principal: Principal, asked: list[ChatRequest]) -> Response:
    options, streamed = parse_options(request.scope["headers"]), asked[0].stream
    jobs = [
        parts.admission.job(
            principal,
            one,
            options_of(options, place),
            STREAMED if streamed else WAITED_FOR,
            request_id=request_id(request),
        )
        for place, one in enumerate(asked)
    ]
    if len(jobs) > 1:
        return await (stream_together(parts, jobs) if streamed else whole_together(parts, jobs, request))
    return await (stream_answer(parts, jobs[0]) if streamed else whole_answer(parts, jobs[0], request))
