"""A bare pass-through to set the others beside: FastAPI in front, aiohttp behind, bytes copied, nothing decided."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse


def build(upstream: str) -> FastAPI:
    """The application: one route, one client session."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await request.body()
        headers = {"content-type": "application/json"}
        answer = await request.app.state.session.post(f"{upstream}/v1/chat/completions", data=body, headers=headers)
        if answer.content_type == "text/event-stream":
            return StreamingResponse(_copied(answer), status_code=answer.status, media_type="text/event-stream")
        async with answer:
            return Response(await answer.read(), status_code=answer.status, media_type=answer.content_type)

    return app


async def _copied(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for data in answer.content.iter_any():
            yield data


def main() -> None:
    """Serves on the port named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    asked = parser.parse_args()
    uvicorn.run(
        build(asked.upstream), host="127.0.0.1", port=asked.port, log_level="warning", loop="uvloop", http="httptools"
    )


if __name__ == "__main__":
    main()
