"""The stand-in engines over HTTP: OpenAI's streamed chat, one port and one engine each, all in one process.

A prompt's token is a word. Tokens go out at the ends of the engine's steps, numbered, as the bench's judge wants them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httptools
import orjson
import uvloop

from tests.bench import visits
from tests.bench.engine import Constants, Engine, Generation
from tests.bench.upstream import ANSWER_ID, CREATED_S, SSE_HEAD, answer, event, refusal, token
from tests.bench.visits import Visit

MODEL: Final = "bench-engine"
_TEXT_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"


@dataclass(eq=False, slots=True)
class Call:
    """A request at an engine: its place there, where its tokens go, and what is noted of it."""

    generation: Generation
    visit: Visit
    write: Callable[[bytes], None]
    ended: Callable[[], None]
    with_usage: bool


@dataclass(slots=True)
class Site:
    """One engine in real time, and what it has seen."""

    engine: Engine
    visits: list[Visit] = field(default_factory=list[Visit])
    calls: dict[Generation, Call] = field(default_factory=dict[Generation, Call])
    work: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, call: Call) -> None:
        """A request has come."""
        self.visits.append(call.visit)
        self.calls[call.generation] = call
        self.work.set()

    def leave(self, call: Call) -> None:
        """Its caller has gone."""
        call.generation.gone = True
        call.visit.ended_s = time.monotonic()
        self.calls.pop(call.generation, None)

    async def run(self) -> None:
        """Steps for ever: each takes its time, counted from when the one before was to end."""
        due_s = time.monotonic()
        while True:
            step = self.engine.step()
            if step is None:
                self.work.clear()
                await self.work.wait()
                due_s = time.monotonic()
                continue
            due_s += step.lasts_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            for generation in self.engine.made(step):
                self._give(self.calls[generation])

    def _give(self, call: Call) -> None:
        generation, visit = call.generation, call.visit
        if visit.first_s is None:
            visit.first_s = time.monotonic()
            visit.cached_tokens = generation.cached_tokens
            call.write(SSE_HEAD + _chunk({"role": "assistant", "content": ""}))
        call.write(_chunk({"content": token(generation.made - 1)}))
        if generation.ended:
            visit.ended_s, visit.whole, visit.output_tokens = time.monotonic(), True, generation.made
            del self.calls[generation]
            call.write(_last(call) + b"0\r\n\r\n")
            call.ended()

    def metrics(self) -> bytes:
        """vLLM's names for how it does."""
        engine = self.engine
        lines = [
            f"vllm:num_requests_running {len(engine.running)}",
            f"vllm:num_requests_waiting {len(engine.waiting)}",
            f"vllm:prefix_cache_queries_total {engine.queried_tokens}",
            f"vllm:prefix_cache_hits_total {engine.hit_tokens}",
        ]
        return "\n".join([*lines, ""]).encode()

    def reset(self) -> None:
        """As after a restart: nothing cached, nothing seen. Only for an engine that has nothing to do."""
        self.engine.forget()
        self.engine.queried_tokens = self.engine.hit_tokens = 0
        self.visits.clear()


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event([choice], {})


def _last(call: Call) -> bytes:
    ends = _chunk({}, "stop")
    if call.with_usage:
        told = {"prompt_tokens": call.visit.prompt_tokens, "completion_tokens": call.generation.made}
        details = {"prompt_tokens_details": {"cached_tokens": call.generation.cached_tokens}}
        ends += _event([], {"usage": {**told, "total_tokens": sum(told.values()), **details}})
    return ends + event(b"[DONE]")


def _event(choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
    head = {"id": ANSWER_ID, "object": "chat.completion.chunk", "created": CREATED_S, "model": MODEL}
    return event(orjson.dumps({**head, "choices": choices, **more}))


# --- the connection ---------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; one answer at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parser = httptools.HttpRequestParser(self)
        self._url = self._body = b""
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue]  # a TCP server hands in a Transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._call is not None:
            self._site.leave(self._call)
            self._call = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write(refusal(400, "not HTTP"))

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._call is not None:
            self._write(refusal(400, "one request at a time on a connection"))
        elif self._url == b"/v1/chat/completions":
            self._chat()
        else:
            self._write(self._page())

    # --- answers ---

    def _page(self) -> bytes:
        site = self._site
        match self._url:
            case b"/health":
                return answer(200, {"status": "ok"})
            case b"/metrics":
                body = site.metrics()
                return _TEXT_HEAD % len(body) + body
            case b"/log":
                return answer(200, {"visits": visits.encode(site.visits)})
            case b"/reset":
                site.reset()
                return answer(200, {})
            case b"/v1/models":
                row = {"id": MODEL, "object": "model", "created": CREATED_S, "owned_by": "bench"}
                return answer(200, {"object": "list", "data": [row]})
            case _:
                return refusal(404, "there is nothing here")

    def _chat(self) -> None:
        try:
            asked: dict[str, Any] = orjson.loads(self._body)
            words = " ".join(str(message["content"]) for message in asked["messages"]).split()
            generation = self._site.engine.add(words, int(asked["max_tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            self._write(refusal(400, str(error)))
            return
        visit = Visit(visits.number_of(asked), time.monotonic(), prompt_tokens=len(words))
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._call = Call(generation, visit, self._write, self._ended, with_usage)
        self._site.begin(self._call)

    def _ended(self) -> None:
        self._call = None

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(ports: list[int], constants: Constants) -> None:
    """Serves an engine on each port until it is cancelled."""
    loop = asyncio.get_running_loop()
    sites = [Site(Engine(constants)) for _ in ports]
    gc.freeze()
    async with AsyncExitStack() as open_ports:
        for port, site in zip(ports, sites, strict=True):
            server = await loop.create_server(lambda site=site: Connection(site), "127.0.0.1", port, backlog=4096)
            await open_ports.enter_async_context(server)
        await asyncio.gather(*(site.run() for site in sites))


def main() -> None:
    """Serves on the ports named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    uvloop.run(serve(parser.parse_args().ports, Constants()))


if __name__ == "__main__":
    main()
