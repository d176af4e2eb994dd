"""The Idempotency-Key header, and the fingerprint of what came with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

import orjson

from common.contracts import JsonObject
from common.errors import BadRequest, KeyReused

HEADER: Final = "Idempotency-Key"
MAX_CHARACTERS: Final = 255

_RAW_HEADER: Final = HEADER.lower().encode()
_KEY: Final = re.compile(rf"[\x21-\x7e](?:[\x20-\x7e]{{0,{MAX_CHARACTERS - 2}}}[\x21-\x7e])?")


def parse_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's key, or '' where there is none. Raises BadRequest.

    It may stand in quotes, as draft-ietf-httpapi-idempotency-key-header-07 has it, or bare, as most clients send it.
    """
    found = [value for name, value in headers if name == _RAW_HEADER]
    if not found:
        return ""
    if len(found) > 1:
        raise BadRequest(f"{HEADER}: given more than once.", param=HEADER)
    key = found[0].decode("latin-1").strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1].strip()
    if not _KEY.fullmatch(key):
        raise BadRequest(f"{HEADER}: must be 1 to {MAX_CHARACTERS} printable ASCII characters.", param=HEADER)
    return key


def reused() -> KeyReused:
    """The refusal of a key that came with another request before."""
    return KeyReused(f"{HEADER}: it came with another request before.", param=HEADER)


def key_digest(key: str) -> str:
    """The key as it stands in the store: 128 bits of its hash, since callers put all sorts of things into keys."""
    return blake2b(b"key:" + key.encode(), digest_size=16).hexdigest()


def fingerprint(endpoint: str, stream: bool, body: JsonObject, *more: Any) -> str:
    """128 bits that tell one request's body from another's, whatever the order of its fields."""
    text = orjson.dumps((endpoint, stream, body, more), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return blake2b(text, digest_size=16).hexdigest()
