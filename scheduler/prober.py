"""The prober: asks each backend whether it lives and how busy it is, and notes the answer for all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import ClassVar, Final

import httpx
import structlog

from common.clock import Clock
from common.health import HealthStore, Load, Probe
from common.servers import Backend, Kind
from scheduler import load

log = structlog.get_logger(__name__)

MOST_BODY_BYTES: Final = 1024 * 1024
LIVES_FOR_PERIODS: Final = 4
TURN_SHARE: Final = 0.75
"""A turn lasts this part of a period: long enough that only one scheduler probes, over before the next round."""


@dataclass(frozen=True, slots=True)
class Check:
    """How a kind of server is asked. `load_path` is asked when `path` said that it lives.

    `any_answer`: the path is an ordinary route that a server may lack or guard, so that only silence, a fault of its
    own or a refused key count as failures. `key_header`: where the API key goes; `headers`: what goes beside it.
    """

    path: str
    load_path: str = ""
    read: Callable[[bytes], tuple[Load, str]] = lambda _: (Load(), "")
    any_answer: bool = False
    key_header: str = "authorization"
    headers: tuple[tuple[str, str], ...] = ()


CHECKS: Final[dict[Kind, Check]] = {
    "vllm": Check("/health", "/metrics", lambda body: (load.vllm(body), "")),
    "llamacpp": Check("/health", "/slots", lambda body: (load.llamacpp(body), "")),
    "ollama": Check("/api/version", "/api/ps", lambda body: (Load(), load.loaded_models(body))),
    "openai": Check("/v1/models", any_answer=True),
    "anthropic": Check(
        "/v1/models", any_answer=True, key_header="x-api-key", headers=(("anthropic-version", "2023-06-01"),)
    ),
    "gemini": Check("/v1beta/models", any_answer=True, key_header="x-goog-api-key"),
    "cohere": Check("/v1/models", any_answer=True),
}
"""A kind that isn't here lives in the worker itself and is always healthy."""


@dataclass(frozen=True, slots=True)
class ProberParams:
    """A request of a probe gets half a period, and never more than `most_s`."""

    period_s: float = 5
    most_s: float = 2.5

    @property
    def limit_s(self) -> float:
        return min(self.most_s, self.period_s / 2)


class Prober:
    """Probes backends. Stopped: what was known is forgotten after four periods, and every backend counts as healthy."""

    name: ClassVar[str] = "prober"

    def __init__(
        self, health: HealthStore, clock: Clock, backends: Sequence[Backend], params: ProberParams | None = None
    ) -> None:
        self._health = health
        self._clock = clock
        self._backends = backends
        self._params = params or ProberParams()
        # Making one reads the machine's certificates, so it is made once for all clients.
        self._tls = httpx.create_ssl_context()

    @property
    def period_s(self) -> float:
        return self._params.period_s

    async def round(self) -> int:
        """How many backends were probed from here."""
        return sum(await asyncio.gather(*(self._one(backend) for backend in self._backends)))

    async def _one(self, backend: Backend) -> bool:
        turn_ms = int(self._params.period_s * 1000 * TURN_SHARE)
        if not await self._health.take_turn(backend.pool[0], backend.name, for_ms=turn_ms):
            return False
        found = await probe(backend, self._tls, self._clock, limit_s=self._params.limit_s)
        for pool in backend.pool:
            await self._note(pool, backend.name, found)
        return True

    async def _note(self, pool: str, backend: str, found: Probe) -> None:
        life_ms = int(self._params.period_s * 1000 * LIVES_FOR_PERIODS)
        turned = await self._health.note(pool, backend, found, life_ms=life_ms)
        if turned.was_healthy and not turned.healthy:
            log.warning("backend.unhealthy", backend=backend, pool=pool, detail=found.detail)
        elif turned.healthy and not turned.was_healthy:
            log.info("backend.healthy", backend=backend, pool=pool)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: a status and a body, or why neither came."""

    status: int = 0
    body: bytes = b""
    trouble: str = ""


async def probe(backend: Backend, tls: ssl.SSLContext, clock: Clock, *, limit_s: float) -> Probe:
    """What the backend answers now; a failed probe, never an exception, where it doesn't. Takes at most two limits."""
    check = check_of(backend)
    if check is None:
        return Probe(succeeded=True, latency_ms=0)
    # A client for each probe: a new connection is part of what is to be proven, and none can be left stuck in a pool.
    async with httpx.AsyncClient(verify=tls, trust_env=False, timeout=limit_s, headers=_headers(backend)) as client:
        started_s = clock.monotonic_s()
        answer = await _get(client, backend.url + check.path, limit_s)
        latency_ms = (clock.monotonic_s() - started_s) * 1000
        trouble = answer.trouble or judge(answer.status, any_answer=check.any_answer)
        if trouble:
            return Probe(succeeded=False, latency_ms=latency_ms, detail=trouble)
        found, detail = await _load(client, backend, check, limit_s)
        return Probe(succeeded=True, latency_ms=latency_ms, detail=detail, load=found)


def check_of(backend: Backend) -> Check | None:
    """How this backend is asked; None where there is nothing to ask. Its own `health_path` wins, and '' means never."""
    check = CHECKS.get(backend.kind)
    if check is None:
        return None
    if backend.health_path is None:
        return replace(check, path=backend.path_of(check.path))
    if not backend.health_path:
        return None
    return replace(check, path="/" + backend.health_path.lstrip("/"), any_answer=False)


def judge(status: int, *, any_answer: bool) -> str:
    """Why this status means that the backend can't be used, in words; '' when it can."""
    if status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT):
        return ""
    if not any_answer:
        return f"the health check was answered with {status}"
    if status == HTTPStatus.UNAUTHORIZED:
        return "the API key was refused"
    return f"the server fails with {status}" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""


async def _load(client: httpx.AsyncClient, backend: Backend, check: Check, limit_s: float) -> tuple[Load, str]:
    """The load and a detail where the server tells them; not telling is no failure."""
    if not check.load_path:
        return Load(), ""
    answer = await _get(client, backend.url + check.load_path, limit_s)
    return check.read(answer.body) if answer.status == HTTPStatus.OK else (Load(), "")


async def _get(client: httpx.AsyncClient, url: str, limit_s: float) -> Answer:
    """The answer, or why there is none."""
    try:
        async with asyncio.timeout(limit_s), client.stream("GET", url) as response:
            return Answer(response.status_code, await _body(response))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
        return Answer(trouble=_in_words(error))


async def _body(response: httpx.Response) -> bytes:
    """The body; one longer than the bound counts as one that was not sent."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MOST_BODY_BYTES:
            return b""
    return bytes(body)


def _headers(backend: Backend) -> dict[str, str]:
    key = backend.api_keys[0].get_secret_value() if backend.api_keys else None
    return {"accept-encoding": "identity", "user-agent": "headrace-prober", **key_headers(backend.kind, key)}


def key_headers(kind: Kind, key: str | None) -> dict[str, str]:
    """What a server of this kind wants to be told beside the address: the key, in its own place."""
    check = CHECKS.get(kind)
    name = check.key_header if check else "authorization"
    headers = dict(check.headers) if check else {}
    if key:
        headers[name] = f"Bearer {key}" if name == "authorization" else key
    return headers


def _in_words(error: Exception) -> str:
    """What went wrong, without the address, which may hold secrets."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "it did not answer in time"
    if isinstance(error, httpx.ConnectError):
        return "it cannot be connected to"
    return f"no proper answer ({type(error).__name__})"
