"""vLLM: OpenAI's dialect with more request fields; its reasoning and its errors in mid-stream are read by the base."""

from __future__ import annotations

import hmac
from typing import Any, ClassVar

from common.contracts import JsonObject
from workers.providers.base import Call
from workers.providers.openai import OpenAIProvider, to_open_embedding_wire, to_open_wire


def to_wire(call: Call) -> JsonObject:
    """The body for vLLM, with what the backend's `options` add.

    `priority: true` sends the job's class, which the server must be started for (`--scheduling-policy priority`).
    `cache_salt`, true or a secret, keeps each tenant's cached prefixes from all others, who could time them otherwise.
    """
    body, options = to_open_wire(call), call.backend.options
    # The turn in the server's queue is never the caller's to choose.
    body.pop("priority", None)
    if options.get("priority"):
        body["priority"] = int(call.priority)
    if secret := options.get("cache_salt"):
        body["cache_salt"] = _salt(secret, call.tenant, body.get("cache_salt"))
    return body


def _salt(secret: Any, tenant: str, own: Any) -> str:
    """The tenant's salt. A caller may divide its own part of the cache further, and can't enter another's."""
    key = secret.encode() if isinstance(secret, str) else b"headrace"
    text = "\0".join((tenant, own if isinstance(own, str) else ""))
    return hmac.new(key, text.encode("utf-8", "replace"), "sha256").hexdigest()


class VllmProvider(OpenAIProvider):
    """A vLLM server."""

    kind: ClassVar[str] = "vllm"
    to_wire = staticmethod(to_wire)
    to_embedding_wire = staticmethod(to_open_embedding_wire)
