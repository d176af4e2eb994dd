"""Anthropic's Messages API: messages, what a prompt counts, and the models as its clients want them listed."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from common.contracts import JsonObject
from common.errors import ModelNotFound
from gateway.admission import STREAMED, WAITED_FOR
from gateway.answers import stream_answer, whole_answer
from gateway.dialects.anthropic import model_info, model_page, models_object
from gateway.dialects.anthropic_request import parse_count, parse_message
from gateway.dialects.native import parse_options
from gateway.docs.anthropic import COUNT_TOKENS, MESSAGES
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.plain import PlainRoute


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/v1/messages", **MESSAGES)
    async def messages(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        principal = parts.auth.principal(request)
        chat = parse_message(await _body(parts, request))
        job = parts.admission.job(
            principal,
            chat,
            parse_options(request.scope["headers"]),
            STREAMED if chat.stream else WAITED_FOR,
            request_id=request_id(request),
        )
        return await (stream_answer(parts, job) if chat.stream else whole_answer(parts, job, request))

    @routes.post("/v1/messages/count_tokens", **COUNT_TOKENS)
    async def count_tokens(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        asked = parse_count(await _body(parts, request))
        if asked.model not in parts.settings.model_names:
            raise ModelNotFound(f"The model {asked.model[:128]!r} does not exist.", param="model")
        counted = await parts.tokens.count_prompt(asked.body)
        return Response(orjson.dumps({"input_tokens": counted}), media_type="application/json")

    return routes


def list_models(parts: Parts, request: Request) -> Response:
    """A page of the models, for a client of Anthropic's. Raises BadRequest."""
    names, more = model_page(list(parts.settings.model_names), dict(request.query_params))
    return _json(models_object([_info(parts, name) for name in names], has_more=more))


def show_model(parts: Parts, name: str) -> Response:
    """One of the models, for a client of Anthropic's."""
    return _json(orjson.dumps(_info(parts, name)))


def _info(parts: Parts, name: str) -> JsonObject:
    row = parts.settings.models[parts.settings.model_names[name]]
    return model_info(name, row.max_tokens, row.longest_context)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _body(parts: Parts, request: Request) -> bytes:
    settings = parts.settings
    return await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
