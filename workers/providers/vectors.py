"""Embeddings off the wire: numbers or base64 to packed little-endian float32, each proved to be a vector."""

from __future__ import annotations

import asyncio
import math
import struct
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from common.contracts import JsonObject, Usage
from common.errors import UpstreamProtocolError, UpstreamRefused, UpstreamTimeout, UpstreamUnsupported
from workers.providers.base import Embedded
from workers.providers.wire import is_list, is_object

FLOAT_BYTES: Final = 4


def pack(numbers: list[float]) -> bytes:
    """The numbers as little-endian float32. Raises UpstreamProtocolError where they are no vector."""
    try:
        packed = struct.pack(f"<{len(numbers)}f", *numbers)
    except (struct.error, OverflowError):
        raise _no_vector() from None
    if not packed:
        raise _no_vector()
    return packed


def unpack(vector: bytes) -> tuple[float, ...]:
    """The numbers of a packed vector."""
    return struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)


def from_data(data: Any) -> list[bytes]:
    """The vectors in OpenAI's `data`, in the order of their `index`. Raises UpstreamProtocolError."""
    if not is_list(data):
        raise UpstreamProtocolError("The model's server sent no list of embeddings.")
    found: dict[int, bytes] = {}
    for number, item in enumerate(data):
        if not is_object(item) or type(index := item.get("index", number)) is not int:
            raise UpstreamProtocolError("The model's server sent an embedding that is not one.")
        found[index] = _vector(item.get("embedding"))
    if len(found) != len(data) or any(index not in found for index in range(len(data))):
        raise UpstreamProtocolError("The model's server numbered its embeddings wrongly.")
    return [found[index] for index in range(len(data))]


def _vector(value: Any) -> bytes:
    if isinstance(value, str):
        return _from_base64(value)
    if not is_list(value):
        raise _no_vector()
    return pack(value)


def _from_base64(text: str) -> bytes:
    try:
        vector = a2b_base64(text, strict_mode=True)
    except (NotBase64, ValueError):
        raise _no_vector() from None
    if not vector or len(vector) % FLOAT_BYTES or not math.isfinite(sum(unpack(vector))):
        raise _no_vector()
    return vector


def checked(vectors: list[bytes], body: JsonObject) -> list[bytes]:
    """The vectors, one for each input and each of the length asked for.

    Raises UpstreamProtocolError where they are too few or differ; UpstreamRefused where `dimensions` was not heeded.
    """
    if len(vectors) != len(inputs_of(body)):
        raise UpstreamProtocolError("The model's server did not send one embedding for each input.")
    lengths = {len(vector) // FLOAT_BYTES for vector in vectors}
    if len(lengths) != 1:
        raise UpstreamProtocolError("The model's server sent embeddings of different lengths.")
    asked = body.get("dimensions")
    if asked is not None and lengths != {asked}:
        text = f"This model does not make embeddings of {asked} dimensions; it made {lengths.pop()}."
        raise UpstreamRefused(text, param="dimensions")
    return vectors


def inputs_of(body: JsonObject) -> list[Any]:
    """A request's inputs, each a text or a list of tokens, also where it has only one."""
    given = body.get("input")
    if not is_list(given):
        return [given]
    return [given] if given and isinstance(given[0], int) else given


def texts_of(body: JsonObject) -> list[str]:
    """A request's inputs where they are all texts. Raises UpstreamUnsupported for tokens."""
    texts = [one for one in inputs_of(body) if isinstance(one, str)]
    if len(texts) != len(inputs_of(body)):
        raise UpstreamUnsupported("This model's server embeds texts only, not tokens.", param="input")
    return texts


async def in_parts(
    body: JsonObject, most: int, timeout_s: float, ask: Callable[[list[str]], Awaitable[Embedded]]
) -> Embedded:
    """The embeddings of a request's texts, asked for with at most so many texts a call, one call after the other.

    Raises UpstreamTimeout where all of them together take longer than `timeout_s`; UpstreamUnsupported for tokens; what
    `ask` and `checked` raise.
    """
    parts: list[Embedded] = []
    try:
        async with asyncio.timeout(timeout_s):
            for texts in _sliced(texts_of(body), most):
                parts.append(await ask(texts))
    except TimeoutError:
        raise UpstreamTimeout from None
    return Embedded(checked([vector for part in parts for vector in part.vectors], body), _total(parts))


def _sliced(texts: list[str], most: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), most):
        yield texts[start : start + most]


def _total(parts: list[Embedded]) -> Usage | None:
    """The usage of all parts, where every part told it."""
    told = [part.usage for part in parts if part.usage is not None]
    return Usage(sum(one.prompt_tokens for one in told)) if told and len(told) == len(parts) else None


def _no_vector() -> UpstreamProtocolError:
    return UpstreamProtocolError("The model's server sent an embedding that is no vector of finite numbers.")
