"""The description at /docs/api, and Swagger UI at /docs/swagger, its assets from our own process."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Final

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response

from common.errors import NotFound
from gateway.docs.document import describe

API_PATH: Final = "/docs/api"
SWAGGER_PATH: Final = "/docs/swagger"
ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
# Swagger UI is started by a script in the page, and draws with styles and pictures that it holds as data.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def install(app: FastAPI, models: Sequence[str]) -> None:
    """Adds the description, with these models, and the page that shows it. Call it after the routes are there."""
    files = {name: _asset(name) for name in ASSETS}
    made: list[bytes] = []

    @app.get(API_PATH, include_in_schema=False)
    async def api() -> Response:  # pyright: ignore[reportUnusedFunction]
        # Made when it is first asked for: it takes longer than a gateway otherwise needs to start.
        if not made:
            made.append(orjson.dumps(describe(app, models)))
        return Response(made[0], media_type="application/json")

    @app.get(SWAGGER_PATH, include_in_schema=False)
    async def swagger(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=root + API_PATH,
            title="Headrace: API",
            swagger_js_url=f"{root}{SWAGGER_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{SWAGGER_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{root}{SWAGGER_PATH}/favicon-32x32.png",
        )
        page.headers["content-security-policy"] = _POLICY
        return page

    @app.get(SWAGGER_PATH + "/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        if name not in files:
            raise NotFound()
        return Response(files[name], headers={"cache-control": "public, max-age=86400"}, media_type=ASSETS[name])


def _asset(name: str) -> bytes:
    return (resources.files("fastapi_swagger.resources") / name).read_bytes()
