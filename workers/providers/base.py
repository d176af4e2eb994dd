"""What every provider honours: a call goes in, chunks come out, our errors are raised."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from common.contracts import Chunk, JsonObject, Priority, Usage
from common.servers import Backend


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one backend.

    `body` is the public request in OpenAI's shape, `model` the model's name at the backend. `stream` tells whether
    the upstream is asked for tokens as they come; otherwise the one chunk holds the whole answer as its deltas.
    `timeout_s` bounds the whole call (the smaller of the backend's own limit and what the job's deadline leaves).
    `priority` and `tenant` are the job's, for servers that queue or cache by them.
    `on_answer` is told the status and headers of the upstream's answer, as soon as they are there. `public_model` is
    the name that callers know the model by.
    """

    backend: Backend
    endpoint: str
    model: str
    body: JsonObject
    stream: bool
    timeout_s: float
    api_key: str | None = None
    request_id: str = ""
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    on_answer: Callable[[int, Mapping[str, str]], None] | None = None
    public_model: str = ""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The inputs' embeddings in the inputs' order, each packed as little-endian float32; usage where it was told."""

    vectors: list[bytes]
    usage: Usage | None = None


class Provider(Protocol):
    """A kind of model server. It knows of no queue, breaker, retry or browser."""

    kind: ClassVar[str]

    def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order; usage comes with or before the last where the upstream tells it.

        Each choice has `index`, `delta` and `finish_reason`; the first delta of each says `role`, and one of its
        chunks, none before the last of its text, has a finish reason of OpenAI's. An answer that ends without one
        is an error, never a short answer. Nothing of the key, the address or the prompt is in an error's message.

        Raises an UpstreamError (never a foreign exception). Closing the generator, or cancelling the task that
        drives it, closes the upstream connection.
        """
        ...

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs: one for each, all of one length, as many numbers as were asked for.

        Raises an UpstreamError, as `stream` does. Cancelling the task closes the upstream connection.
        """
        ...
