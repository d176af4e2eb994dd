"""One HTTP exchange with a model server: open it, read it, and turn whatever goes wrong into our errors."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx
import orjson

from common.contracts import JsonObject
from common.errors import (
    ContentFiltered,
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from workers.providers.base import Call
from workers.providers.phrases import filtered, no_money, too_long
from workers.providers.scrub import MAX_RAW_CHARACTERS, Secrets, safe

MAX_ERROR_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_RETRY_AFTER_S: Final = 3_600.0
# How long a finished answer may take to end its HTTP body before its connection is given up instead of kept.
DRAIN_S: Final = 0.1
# How long an answer that misses nothing but its last word may leave its body open before it is taken for whole.
SETTLE_S: Final = 1.0


def bearer(call: Call) -> dict[str, str]:
    """The header that carries the key in most APIs; none where there is no key."""
    return {"authorization": f"Bearer {call.api_key}"} if call.api_key else {}


class ToError(Protocol):
    """A provider's mapping from an HTTP refusal to our error; `secrets` must not appear in its message."""

    def __call__(
        self, status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()
    ) -> UpstreamError: ...


# --- the exchange ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient,
    call: Call,
    path: str,
    *,
    body: JsonObject,
    to_error: ToError,
    headers_of: Callable[[Call], dict[str, str]] = bearer,
) -> AsyncGenerator[httpx.Response]:
    """The upstream's answer to `body`: its status was 200, its bytes are not read yet. Closed on the way out.

    `headers_of` gives what the upstream wants beside the usual headers: the key, in its own place.
    """
    if call.timeout_s <= 0:  # to the HTTP client, 0 would mean no limit at all
        raise UpstreamTimeout
    with translated():
        response = await client.send(_request(client, call, path, body, headers_of(call)), stream=True)
        try:
            if call.on_answer is not None:
                call.on_answer(response.status_code, response.headers)
            if response.status_code != 200:
                text = await _read_some(response)
                raise to_error(response.status_code, text, response.headers, secrets=secrets_of(call))
            yield response
        finally:
            await response.aclose()


async def read_all(response: httpx.Response) -> bytes:
    """The whole body. Raises UpstreamProtocolError past MAX_BODY_BYTES."""
    parts: list[bytes] = []
    size_bytes = 0
    async for piece in reads(response):
        parts.append(piece)
        size_bytes += len(piece)
        if size_bytes > MAX_BODY_BYTES:
            raise UpstreamProtocolError(f"The model's server sent more than {MAX_BODY_BYTES} bytes.")
    return b"".join(parts)


def reads(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body's bytes as they come: `stream` itself, for `aiter_raw` costs one more generator a token."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def read_settled(rest: AsyncIterator[bytes]) -> bytes:
    """The next bytes of an answer that misses nothing; none at its end, nor where it is left open for SETTLE_S."""
    try:
        async with asyncio.timeout(SETTLE_S):
            return await anext(rest, b"")
    except TimeoutError:
        return b""


async def drain(rest: AsyncIterator[bytes]) -> None:
    """Reads a finished answer's last bytes, so that its connection can be used again; gives up after DRAIN_S."""
    try:
        async with asyncio.timeout(DRAIN_S):
            async for _ in rest:
                pass
    except (TimeoutError, httpx.HTTPError):
        return  # the answer is complete; only its connection is lost


def is_json(response: httpx.Response) -> bool:
    """Whether the body is one JSON document and not a stream of events."""
    return response.headers.get("content-type", "").startswith("application/json")


async def _read_some(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    async for piece in reads(response):
        parts.append(piece)
        size_bytes += len(piece)
        if size_bytes >= MAX_ERROR_BYTES:
            break
    return b"".join(parts)[:MAX_ERROR_BYTES]


def _request(client: httpx.AsyncClient, call: Call, path: str, body: JsonObject, own: dict[str, str]) -> httpx.Request:
    accepted = "text/event-stream" if call.stream else "application/json"
    headers = {"content-type": "application/json", "accept": accepted, **own}
    if call.request_id:
        headers["x-request-id"] = call.request_id
    return client.build_request(
        "POST",
        _url(call.backend.url, path),
        content=_written(body),
        headers=headers,
        extensions={"timeout": _limits_s(call)},
    )


def _written(body: JsonObject) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # It was read, and what reads goes deeper than what writes.
        raise UpstreamRefused("The request is nested too deeply.") from None


@lru_cache(maxsize=1024)
def _url(base: str, path: str) -> httpx.URL:
    return httpx.URL(base + path)


def _limits_s(call: Call) -> dict[str, float]:
    connect_s = min(call.backend.connect_timeout_s, call.timeout_s)
    # An answer that comes as one piece is silent until it is whole: only the total bounds it.
    read_s = min(call.backend.idle_timeout_s, call.timeout_s) if call.stream else call.timeout_s
    return {"connect": connect_s, "read": read_s, "write": call.timeout_s, "pool": connect_s, "total": call.timeout_s}


def secrets_of(call: Call) -> Secrets:
    """What must not come back in an error: the key, the address, the prompt."""
    url = urlsplit(call.backend.url)
    host = url.netloc.rpartition("@")[2]
    # A host's name without a dot, as `vllm`, may as well be another thing's.
    hosts = (name for name in (host, url.hostname or "") if "." in name or ":" in name)
    return Secrets(tuple(one for one in (call.api_key, call.backend.url, *hosts, url.password) if one), call.body)


# --- foreign errors, translated once ---------------------------------------------------------------------------------


@contextmanager
def translated() -> Generator[None]:
    """Raises the HTTP client's errors as ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise UpstreamUnreachable from error
    except httpx.TimeoutException as error:
        raise UpstreamTimeout from error
    except httpx.NetworkError as error:
        raise UpstreamUnreachable("The connection to the model's server broke.") from error
    except (httpx.ProtocolError, httpx.DecodingError, httpx.UnsupportedProtocol) as error:
        raise UpstreamProtocolError from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise UpstreamError from error


# --- refusals --------------------------------------------------------------------------------------------------------

_NO_MODEL: Final = frozenset({"model_not_found", "DeploymentNotFound"})
_OF_MODEL: Final = re.compile(r"\bmodels?\b", re.IGNORECASE)
_TIMED_OUT: Final = frozenset({408, 504})
_BUSY: Final = frozenset({429, 529})
_CREDENTIALS: Final = frozenset({401, 402, 403})


def refusal(
    status: int,
    told: Any,
    *,
    secrets: Iterable[str] = (),
    code: str = "",
    param: str | None = None,
    retry_after_s: float | None = None,
) -> UpstreamError:
    """Our error for an upstream's status; its text and code count only where the status can't tell.

    `told` is its message as it came, which is what is judged: what was taken out may be what it was about. In the
    error stands what is safe to pass on, without `secrets`.
    """
    heard, message = _heard(told), words(told, secrets) or None
    if status == 403 and (error := _of_no_key(heard, code, param)) is not None:
        return error
    if status in _CREDENTIALS or no_money(message or "", code):
        return UpstreamCredentials()  # the upstream's words would tell whose account it is, and often part of the key
    if status in _BUSY or (status == 503 and retry_after_s is not None):
        return UpstreamBusy(message, retry_after_s=retry_after_s)
    if status in _TIMED_OUT:
        return UpstreamTimeout(message)
    if status == 501 or 400 <= status < 500:
        if _has_no_such_model(status, heard, code, param):
            return UpstreamModelMissing(message, param=param)
        return _refused(heard, message, code, param)
    if status >= 500:
        return UpstreamError(message, retry_after_s=retry_after_s)
    return UpstreamProtocolError(f"The model's server answered with the unexpected status {status}.")


def _of_no_key(heard: str, code: str, param: str | None) -> UpstreamRefused | None:
    """What a 403 says about the request; None where it is about the key."""
    if filtered(heard, code):
        return ContentFiltered(param=param)
    # The account lacks the model. Its words would tell whose it is.
    return UpstreamModelMissing(param=param) if code in _NO_MODEL else None


def _heard(told: Any) -> str:
    """What is judged of an upstream's message, and never passed on: it may repeat the prompt."""
    return told[:MAX_RAW_CHARACTERS] if isinstance(told, str) else ""


def _has_no_such_model(status: int, message: str, code: str, param: str | None) -> bool:
    """Whether the server lacks the model: a 404 alone may as well be a wrong address, which would miss everywhere."""
    return code in _NO_MODEL or (status == 404 and (param == "model" or _OF_MODEL.search(message) is not None))


def _refused(heard: str, message: str | None, code: str, param: str | None) -> UpstreamRefused:
    if filtered(heard, code):
        return ContentFiltered(param=param)  # its words would tell what was found in the prompt
    if too_long(heard, code):
        return ContextTooLong(message, param=param)
    return UpstreamRefused(message, param=param)


def words(value: Any, secrets: Iterable[str]) -> str:
    """An upstream's message, safe to pass on; empty where it is no text."""
    return safe(value, secrets) if isinstance(value, str) else ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `retry-after-ms` or `retry-after` name, by the upstream's own clock; None where neither does."""
    exact_ms = _number(headers.get("retry-after-ms", ""))
    if exact_ms is not None:
        return _bounded(exact_ms / 1_000)
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is None and value:
        seconds = _seconds_between(headers.get("date", ""), value)
    return None if seconds is None else _bounded(seconds)


def _bounded(seconds: float) -> float | None:
    return min(seconds, MAX_RETRY_AFTER_S) if math.isfinite(seconds) and seconds > 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _seconds_between(earlier: str, later: str) -> float | None:
    try:
        return (parsedate_to_datetime(later) - parsedate_to_datetime(earlier)).total_seconds()
    except (ValueError, TypeError):
        return None
