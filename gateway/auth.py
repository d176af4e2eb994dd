"""A key in, a Principal out. Called by each route that needs one: never decided from a path."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.requests import Request

from common.config import Settings
from common.errors import Unauthenticated

log = structlog.get_logger(__name__)

MAX_KEY_BYTES: Final = 512
SHORT_KEY_BYTES: Final = 16
LOCAL_TENANT: Final = "local"
ADMIN: Final = "admin"
MEMBER: Final = "member"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tenant` owns the jobs; it never tells the key. `weight` is its part in the fair share.

    An admin may also do what concerns the whole fleet.
    """

    tenant: str
    role: str = ADMIN
    weight: float = 1.0


class Auth:
    """The keys of this deployment: static ones, each a tenant of its own, and those of the tenants configured."""

    def __init__(self, settings: Settings) -> None:
        # Fresh in each process: digests made with it say nothing to anyone who sees how long a comparison takes.
        self._pepper = secrets.token_bytes(32)
        self._open = Principal(LOCAL_TENANT) if settings.auth == "off" else None
        known = list(_principals(settings))
        if any(len(key) < SHORT_KEY_BYTES for key, _ in known):
            log.warning("auth.short_api_key", advice=f"Keys of fewer than {SHORT_KEY_BYTES} characters can be guessed.")
        self._known = [(self._digest(key), principal) for key, principal in known]

    def principal(self, request: Request) -> Principal:
        """Whoever sent this request. Raises Unauthenticated, the same for every kind of wrong key."""
        return self.principal_of(request.scope["headers"])

    def principal_of(self, headers: list[tuple[bytes, bytes]]) -> Principal:
        """Whoever sent these headers, or this metadata. Raises Unauthenticated."""
        if self._open is not None:
            return self._open
        key = _presented(headers)
        found = None
        if key and len(key) <= MAX_KEY_BYTES:
            digest = self._digest(key)
            for known, principal in self._known:
                # No early end: how long this takes depends on the number of keys only.
                if hmac.compare_digest(known, digest):
                    found = principal
        if found is None:
            raise Unauthenticated()
        return found

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._pepper, key, "sha256")


def _principals(settings: Settings) -> Iterator[tuple[bytes, Principal]]:
    """Every key there is, with whom it stands for."""
    for key in settings.api_keys:
        raw = key.get_secret_value().encode()
        yield raw, Principal(tenant_of(raw))
    for name, tenant in settings.tenants.items():
        for key in tenant.api_keys:
            raw = key.get_secret_value().encode()
            yield raw, Principal(name, MEMBER, tenant.weight)


def tenant_of(key: bytes) -> str:
    """The tenant that a static key stands for: stable over restarts, and of no use as a key."""
    return hashlib.sha256(key).hexdigest()[:16]


def _presented(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The key that came with a request, or nothing: `Authorization: Bearer`, else `x-api-key`."""
    other = b""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
        if name == b"x-api-key":
            other = value.strip()
    return other
