"""A stand-in for a server of embeddings: each input's vector tells which input it was, each call is kept."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b
from struct import pack
from typing import Any, Final

import orjson

from tests.support.upstream import HANG, Reply, Request, Upstream

DIMENSIONS: Final = 8
BAD: Final = "unreadable"
"""An input with this word in it has the whole call refused."""
BROKEN: Final = "overheated"
"""An input with this word in it has the whole call fail with 500."""
SILENT: Final = "silence"
"""A call with this word in an input is never answered."""


def vector_of(one: Any, dimensions: int = DIMENSIONS) -> list[float]:
    """The vector of an input; its numbers are the same in 32 bits and in 64."""
    return [float(byte) for byte in blake2b(orjson.dumps(one), digest_size=dimensions).digest()]


class Embedder(Upstream):
    """The server. `most` inputs go into one call; `numbers`: it does not know base64."""

    def __init__(self, *, most: int = 2_048, numbers: bool = False) -> None:
        super().__init__(self._reply)
        self.most = most
        self.numbers = numbers

    @property
    def calls(self) -> list[list[Any]]:
        """The inputs of each call so far."""
        return [request.json()["input"] for request in self.requests if request.method == "POST"]

    def _reply(self, request: Request) -> Reply:
        if request.method == "GET":
            return _json({"data": []})
        body = request.json()
        said = " ".join(one for one in body["input"] if isinstance(one, str))
        if SILENT in said:
            return Reply([HANG])
        if BROKEN in said:
            return _refusal(500, "The engine died.")
        if BAD in said or len(body["input"]) > self.most:
            return _refusal(400, "There is something wrong with this input.")
        return _json(self._answer(body))

    def _answer(self, body: Any) -> Any:
        in_base64 = body.get("encoding_format") == "base64" and not self.numbers
        vectors = [vector_of(one, body.get("dimensions") or DIMENSIONS) for one in body["input"]]
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(vector) if in_base64 else vector}
            for i, vector in enumerate(vectors)
        ]
        tokens = sum(len(one) for one in body["input"])
        # Their order is the index's to tell.
        return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    @contextmanager
    def in_a_thread(self) -> Generator[Embedder]:
        """Itself, listening in a thread of its own."""
        listening, ending = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            async with self.running():
                listening.set()
                await ending.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            assert listening.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join()
            loop.close()


def _packed(vector: list[float]) -> str:
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _json(document: Any, status: int = 200) -> Reply:
    return Reply([orjson.dumps(document)], status=status, content_type="application/json", chunked=False)


def _refusal(status: int, text: str) -> Reply:
    return _json({"error": {"message": text, "type": "some_error", "param": "input", "code": None}}, status)
