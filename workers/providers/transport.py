"""The HTTP client that providers are given: httpx's face over aiohttp's connections.

Why not httpx's own connections: `tests/bench/transport.py` has the measurement, `README.md` its numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from typing import Any, Final

import aiohttp
import httpx

KEEPALIVE_S: Final = 30.0
DNS_CACHE_S: Final = 30
READ_BUFFER_BYTES: Final = 64 * 1024
FIRST_READ_TIMEOUT_S: Final = 60.0


def new_client(*, max_connections: int = 0, keepalive_s: float = KEEPALIVE_S) -> httpx.AsyncClient:
    """A client for one event loop; the caller closes it. 0 connections means no limit: workers bound their own calls.

    It keeps no cookies (one tenant's must not reach another's call), follows no redirect (a key must not travel) and
    reads neither proxies nor passwords from the environment.
    """
    transport = AiohttpTransport(max_connections=max_connections, keepalive_s=keepalive_s)
    # Compressing tiny events costs more than it saves, and the bytes are read as they come.
    headers = {"accept-encoding": "identity", "user-agent": "headrace"}
    return _Client(transport, headers)


class _Client(httpx.AsyncClient):
    """httpx's client that sends straight to its transport.

    What httpx does between the two (redirects, cookies, authentication, hooks) is switched off here anyway, and took
    longer than all the rest of sending; a first token waits for it twice.
    """

    def __init__(self, transport: AiohttpTransport, headers: dict[str, str]) -> None:
        super().__init__(transport=transport, headers=headers, cookies=_NoCookies(), trust_env=False)
        self._straight = transport

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: object) -> httpx.Response:
        if self.is_closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        response = await self._straight.handle_async_request(request)
        if not stream:
            await response.aread()
        return response


class _NoCookies(CookieJar):
    """Takes no cookie and gives none."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        return

    def add_cookie_header(self, request: Any) -> None:
        return


class AiohttpTransport(httpx.AsyncBaseTransport):
    """httpx requests on aiohttp's connection pool.

    Beside httpx's `connect` and `read`, the request's `timeout` extension may name `total`: seconds from sending to
    the answer's last byte. It runs out only inside a read, so it never cancels what the reader does in between.
    """

    def __init__(self, *, max_connections: int, keepalive_s: float) -> None:
        self._max_connections = max_connections
        self._keepalive_s = keepalive_s
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # aiohttp wants a running loop when a session is made, so the first request makes it.
        session = self._session = self._session or self._new_session()
        with _as_httpx_errors(request):
            response = await session.request(
                request.method,
                str(request.url),
                headers=request.headers,
                data=await request.aread(),
                allow_redirects=False,
                timeout=_timeout(request),
            )
        return httpx.Response(
            response.status, headers=response.raw_headers, stream=_Body(response, request), request=request
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections, keepalive_timeout=self._keepalive_s, ttl_dns_cache=DNS_CACHE_S
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
        )


class _Body(httpx.AsyncByteStream):
    """An answer's bytes, in the pieces in which they came."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        read = self._response.content.readany
        with _as_httpx_errors(self._request):
            while piece := await read():
                yield piece

    async def aclose(self) -> None:
        # A body read to its end has given its connection back already; any other connection is closed here.
        self._response.close()


def _timeout(request: httpx.Request) -> aiohttp.ClientTimeout:
    limits = request.extensions.get("timeout", {})
    return aiohttp.ClientTimeout(
        total=limits.get("total"),
        sock_connect=limits.get("connect"),
        sock_read=limits.get("read", FIRST_READ_TIMEOUT_S),
    )


@contextmanager
def _as_httpx_errors(request: httpx.Request) -> Generator[None]:
    """Raises aiohttp's errors as httpx's; their text is left out, for it may hold addresses."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout("connecting took too long", request=request) from error
    except asyncio.TimeoutError as error:  # noqa: UP041 - aiohttp's own name for it
        raise httpx.ReadTimeout("reading took too long", request=request) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError("connecting failed", request=request) from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError) as error:
        raise httpx.ReadError("the connection broke", request=request) from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise httpx.UnsupportedProtocol("not a usable address", request=request) from error
    except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, ValueError) as error:
        raise httpx.RemoteProtocolError("not an answer in HTTP", request=request) from error
