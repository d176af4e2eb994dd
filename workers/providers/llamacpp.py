"""llama.cpp's server: OpenAI's dialect, with integer error codes, `timings`, and 500 for what the caller did wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from common.contracts import Chunk, JsonObject
from common.errors import ContextTooLong, UpstreamBusy, UpstreamError, UpstreamRefused
from workers.providers import openai
from workers.providers.counts import Counts, count, told_in
from workers.providers.openai_request import to_open_embedding_wire, to_open_wire
from workers.providers.wire import is_object

# --- 2. their events to ours -----------------------------------------------------------------------------------------


def from_wire(event: JsonObject) -> Chunk | None:
    """The chunk in a streamed event, or None where it says nothing."""
    chunk = openai.from_wire(event)
    if "timings" in event and chunk is not None and chunk.usage is None:
        return _counted(chunk, event["timings"])
    return chunk


def from_body(event: JsonObject) -> Chunk:
    """The one chunk that holds a whole answer."""
    chunk = openai.from_body(event)
    return chunk if chunk.usage is not None else _counted(chunk, event.get("timings"))


def _counted(chunk: Chunk, timings: object) -> Chunk:
    """Servers from before `include_usage` count only here: tokens read, tokens taken from the cache, tokens made."""
    if not is_object(timings):
        return chunk
    read, made = count(timings.get("prompt_n")), count(timings.get("predicted_n"))
    cached = count(timings.get("cache_n", 0)) or 0
    return told_in(chunk.choices, Counts(None if read is None else read + cached, made), chunk.extra)


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------

_CALLERS_FAULT: Final = re.compile(
    r"(?:image|audio|video) input is not supported|mmproj|does not support (?:images|audio|multimodal)", re.IGNORECASE
)

# An embedding's text must go in at once; a server started with a small batch has room for less than its model.
_TOO_LARGE: Final = re.compile(r"input .*is too large to process", re.IGNORECASE)


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    error = openai.to_error(status, body, headers, secrets=secrets)
    failure = error.failure
    if status == 500 and _CALLERS_FAULT.search(failure.message):
        return UpstreamRefused(failure.message, param="messages")
    if status == 500 and _TOO_LARGE.search(failure.message):
        return ContextTooLong(failure.message, param="input")
    if status == 503:  # the model is still being loaded, or no slot is free: nothing is broken
        return UpstreamBusy(failure.message, retry_after_s=failure.retry_after_s)
    return error


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class LlamaCppProvider(openai.OpenAIProvider):
    """A llama.cpp server."""

    kind: ClassVar[str] = "llamacpp"
    to_wire = staticmethod(to_open_wire)
    to_embedding_wire = staticmethod(to_open_embedding_wire)
    from_wire = staticmethod(from_wire)
    from_body = staticmethod(from_body)
    to_error = staticmethod(to_error)
