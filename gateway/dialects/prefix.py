"""Pure: the batching key of a chat request, from the part of its prompt that others are likely to share."""

from __future__ import annotations

from hashlib import blake2b
from itertools import takewhile
from typing import Final

import orjson

from common.contracts import JsonObject

# Engines cache whole blocks of tokens (vLLM's are of 16): below a few of them nothing is gained by running together.
LEAST_BYTES: Final = 256
_LEADING: Final = frozenset({"system", "developer"})


def prefix_key(body: JsonObject) -> str:
    """The key of the prompt's shared beginning, or '' where it is too short to be worth one.

    The beginning is what engines put first: tools, then the leading system messages. A caller who knows better says so
    by OpenAI's `prompt_cache_key`. The model (an adapter is a model of its own) is the lane's, so it isn't in the key.
    """
    if named := body.get("prompt_cache_key"):
        return _digest(b"named:" + str(named).encode())
    messages: list[JsonObject] = body["messages"]
    leading = list(takewhile(lambda message: message.get("role") in _LEADING, messages))
    tools = body.get("tools")
    if not leading and not tools:
        return ""
    text = orjson.dumps((tools, [message.get("content") for message in leading]))
    return _digest(text) if len(text) >= LEAST_BYTES else ""


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()
