"""vLLM: OpenAI's dialect with more request fields; its reasoning and its errors in mid-stream are read by the base."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from common.contracts import Chunk, JsonObject
from common.errors import UpstreamError
from workers.providers import openai
from workers.providers.base import Call
from workers.providers.openai import OpenAIProvider
from workers.providers.openai_request import to_open_embedding_wire, to_open_wire

# --- 1. our shapes to theirs -----------------------------------------------------------------------------------------


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


# --- 2. their events to ours -----------------------------------------------------------------------------------------


def from_wire(event: JsonObject) -> Chunk | None:
    """The chunk in a streamed event, or None where it says nothing."""
    chunk = openai.from_wire(event)
    for choice in chunk.choices if chunk else ():
        # Beside every token stands that nobody asked for its number, which would be kept and sent with each.
        if choice.get("token_ids", choice) is None:
            del choice["token_ids"]
    return chunk


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------

_NAMELY: Final = re.compile(r"""'msg': (?:'([^']*)'|"([^"]*)")""")


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    told = openai.error_object(body)
    plain = {"message": _plain(told.get("message")), "param": _field(told.get("param"))}
    return openai.of_refusal(status, {**told, **plain}, headers, secrets)


def _plain(message: Any) -> Any:
    """The first thing found wrong, out of a list of them written as Python writes it; else the message as it is."""
    found = _NAMELY.search(message) if isinstance(message, str) else None
    return (found[1] or found[2]) if found else message


def _field(param: Any) -> str | None:
    """The request's own field: `input_tokens` is none, and each stands in the body."""
    return param.removeprefix("body.") if isinstance(param, str) and param != "input_tokens" else None


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class VllmProvider(OpenAIProvider):
    """A vLLM server."""

    kind: ClassVar[str] = "vllm"
    to_wire = staticmethod(to_wire)
    to_embedding_wire = staticmethod(to_open_embedding_wire)
    from_wire = staticmethod(from_wire)
    to_error = staticmethod(to_error)
