"""OpenAI's chat completions and models, and the plain prompt."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.errors import ModelNotFound
from gateway.admission import STREAMED, WAITED_FOR
from gateway.answers import stream_answer, whole_answer
from gateway.auth import Principal
from gateway.dialects.native import parse_options, parse_prompt
from gateway.dialects.openai import ChatRequest, model_list, model_object, parse_chat
from gateway.docs.jobs import PROMPT
from gateway.docs.openai import CHAT, MODEL, MODELS
from gateway.errors import asks_anthropic
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.messages import list_models, show_model
from gateway.routes.plain import PlainRoute


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/chat/completions", **CHAT)
    async def chat_completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        chat = parse_chat(await _body(parts, request))
        return await _answer(parts, request, principal, chat)

    @routes.post("/prompt", **PROMPT)
    async def prompt(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        chat = parse_prompt(await _body(parts, request), default_model=_only_model(parts))
        return await _answer(parts, request, principal, chat)

    @routes.get("/v1/models", **MODELS)
    async def models(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        if asks_anthropic(request.scope):
            return list_models(parts, request)
        return Response(model_list(list(parts.settings.model_names)), media_type="application/json")

    # A model's name may hold slashes and colons.
    @routes.get("/v1/models/{model:path}", **MODEL)
    async def model(request: Request, model: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        if model not in parts.settings.model_names:
            raise ModelNotFound(f"The model {model[:128]!r} does not exist.", param="model")
        if asks_anthropic(request.scope):
            return show_model(parts, model)
        return Response(model_object(model), media_type="application/json")

    return routes


async def _body(parts: Parts, request: Request) -> bytes:
    settings = parts.settings
    return await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)


async def _answer(parts: Parts, request: Request, principal: Principal, chat: ChatRequest) -> Response:
    job = parts.admission.job(
        principal,
        chat,
        parse_options(request.scope["headers"]),
        STREAMED if chat.stream else WAITED_FOR,
        request_id=request_id(request),
    )
    return await (stream_answer(parts, job) if chat.stream else whole_answer(parts, job, request))


def _only_model(parts: Parts) -> str | None:
    """The model for a caller that names none: the only one there is, or the first."""
    return next(iter(parts.settings.models), None)
