"""Ollama's API: chats, prompts and embeddings as jobs, and what it tells of models."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import STREAMED, WAITED_FOR
from gateway.answers import stream_answer, whole_answer
from gateway.dialects import ollama, ollama_answers
from gateway.dialects.native import Asked, parse_options
from gateway.dialects.ollama import Idle
from gateway.dialects.openai import ChatRequest
from gateway.docs.ollama import (
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_GENERATE,
    OLLAMA_PS,
    OLLAMA_SHOW,
    OLLAMA_TAGS,
    OLLAMA_VERSION,
)
from gateway.http import read_body, request_id
from gateway.parts import Parts
from gateway.routes.plain import PlainRoute

Parse = Callable[[bytes, Container[str]], Asked | Idle]
AnswerIdle = Callable[[Idle, int], bytes]
JSON: Final = "application/json"


def router(parts: Parts) -> APIRouter:
    """The routes, over these parts."""
    routes = APIRouter(route_class=PlainRoute)

    @routes.post("/api/chat", **OLLAMA_CHAT)
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _answer(parts, request, ollama.parse_chat, ollama_answers.idle_message)

    @routes.post("/api/generate", **OLLAMA_GENERATE)
    async def generate(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _answer(parts, request, ollama.parse_generate, ollama_answers.idle_response)

    @routes.post("/api/embed", **OLLAMA_EMBED)
    async def embed(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _answer(parts, request, ollama.parse_embed, ollama_answers.idle_embed)

    @routes.post("/api/embeddings", **OLLAMA_EMBEDDINGS)
    async def embeddings(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _answer(parts, request, ollama.parse_embeddings, ollama_answers.idle_embeddings)

    _add_models(routes, parts)
    return routes


def _add_models(routes: APIRouter, parts: Parts) -> None:
    models, names = parts.settings.models, parts.settings.model_names

    # Ollama's clients ask this first, to see whether somebody is there, and many compare the words.
    @routes.get("/", include_in_schema=False)
    async def here(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response("Ollama is running", media_type="text/plain")

    @routes.get("/api/tags", **OLLAMA_TAGS)
    async def tags(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        return Response(ollama_answers.tags(names), media_type=JSON)

    @routes.get("/api/ps", **OLLAMA_PS)
    async def running(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        rows = [(name, models[row].longest_context) for name, row in names.items()]
        return Response(ollama_answers.running(rows), media_type=JSON)

    @routes.post("/api/show", **OLLAMA_SHOW)
    async def show(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        row = models[names[ollama.shown_model(await _body(parts, request), names)]]
        return Response(ollama_answers.shown(row.longest_context, row.capabilities or ()), media_type=JSON)

    @routes.get("/api/version", **OLLAMA_VERSION)
    async def version(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        parts.auth.principal(request)
        return Response(ollama_answers.version(), media_type=JSON)


async def _answer(parts: Parts, request: Request, parse: Parse, answer_idle: AnswerIdle) -> Response:
    principal = parts.auth.principal(request)
    asked = parse(await _body(parts, request), parts.settings.model_names)
    options = parse_options(request.scope["headers"])
    if isinstance(asked, Idle):
        return Response(answer_idle(asked, parts.clock.now_ms()), media_type=JSON)
    streams = isinstance(asked, ChatRequest) and asked.stream
    job = parts.admission.job(
        principal,
        asked,
        options,
        STREAMED if streams else WAITED_FOR,
        request_id=request_id(request),
    )
    return await (stream_answer(parts, job) if streams else whole_answer(parts, job, request))


async def _body(parts: Parts, request: Request) -> bytes:
    settings = parts.settings
    # Ollama's own examples post with curl, which names no JSON.
    return await read_body(
        request, limit_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s, forms=True
    )
