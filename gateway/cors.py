"""Which pages of other sites may call, what they may send, and what they may read of the answers."""

from __future__ import annotations

import re
from typing import Final

from gateway.limits import ANTHROPIC_LIMITS, OPENAI_LIMITS

RawHeaders = list[tuple[bytes, bytes]]

# A browser remembers for so long what it may send.
PREFLIGHT_LIFE_S: Final = 600

_ALLOWED: Final = frozenset(
    {
        *("authorization", "content-type", "accept", "x-api-key", "idempotency-key", "last-event-id", "cache-control"),
        *("openai-beta", "openai-organization", "openai-project", "user-agent"),
        *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    }
)
_ALLOWED_PREFIXED: Final = re.compile(r"(?:x-stainless-|x-headrace-)[a-z0-9-]{1,64}")
_EXPOSED: Final = (
    b"x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms, location, "
    b"x-headrace-job-id, x-headrace-durability, x-headrace-model, x-headrace-choice-reason, x-headrace-replayed, "
    b"x-headrace-queue-position, x-headrace-estimated-wait-ms, "
) + ", ".join((*OPENAI_LIMITS, *ANTHROPIC_LIMITS)).encode()


class Cors:
    """Which pages of other sites may call; by default none. Keys travel in a header, so cookies play no part."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, request: RawHeaders) -> RawHeaders:
        """What lets the page that asked read the answer."""
        if not self._origins:
            return []
        origin = _header(request, b"origin")
        if not origin or not (self._any or origin in self._origins):
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", b"*" if self._any else origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]

    def asks(self, request: RawHeaders) -> bool:
        """Whether this is a browser asking what a page may send."""
        return bool(self._origins and _header(request, b"access-control-request-method"))

    def preflight(self, request: RawHeaders) -> RawHeaders:
        """What a page may send; of the headers it asks for, those that are known."""
        wanted = _header(request, b"access-control-request-headers").decode("latin-1").lower().split(",")
        names = [name.strip() for name in wanted[:100]]
        allowed = [name for name in names if name in _ALLOWED or _ALLOWED_PREFIXED.fullmatch(name)]
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", ", ".join(allowed).encode("latin-1")),
            (b"access-control-max-age", b"%d" % PREFLIGHT_LIFE_S),
        ]


def _header(headers: RawHeaders, wanted: bytes) -> bytes:
    for name, value in headers:
        if name == wanted:
            return value
    return b""
