"""The stand-in upstream: OpenAI's chat endpoint over a raw protocol, all bytes rendered before the first request.

Its answers are scripted by the model's name. One timer wheel paces all streams, so that it is never the bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import httptools
import orjson
import uvloop

from tests.bench import visits
from tests.bench.visits import Visit

MOST_VISITS: Final = 200_000
CREATED_S: Final = 1_760_000_000
ANSWER_ID: Final = "chatcmpl-standin"
_JSON_HEAD: Final = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
SSE_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_REASONS: Final = {200: b"OK", 400: b"Bad Request", 404: b"Not Found"}


@dataclass(frozen=True, slots=True)
class Script:
    """How a model answers: so many numbered tokens, the first after `ttft_ms`, the others `gap_ms` apart."""

    tokens: int
    ttft_ms: int
    gap_ms: int

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(token(number) for number in range(self.tokens))

    @property
    def lasts_s(self) -> float:
        """How long the answer takes."""
        return (self.ttft_ms + self.gap_ms * (self.tokens - 1)) / 1000


SCRIPTS: Final = {
    "bench-instant": Script(tokens=16, ttft_ms=0, gap_ms=0),
    "bench-stream": Script(tokens=64, ttft_ms=50, gap_ms=10),
    "bench-slow": Script(tokens=20, ttft_ms=1000, gap_ms=1000),
    "bench-long": Script(tokens=60, ttft_ms=1000, gap_ms=1000),
    "bench-second": Script(tokens=15, ttft_ms=100, gap_ms=100),
    "bench-overload": Script(tokens=24, ttft_ms=500, gap_ms=100),
}


def token(number: int) -> str:
    """The text of an answer's token: distinct, so that a lost, doubled or misplaced one shows."""
    return f"t{number} "


@dataclass(slots=True)
class Counts:
    """What the stand-in has seen, as `/stats` tells it."""

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    open: int = 0
    most_open: int = 0

    def began(self) -> None:
        """Notes an answer that has begun."""
        self.requests += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def ended(self, *, whole: bool) -> None:
        """Notes an answer that has ended, whole or not."""
        self.open -= 1
        self.finished += whole
        self.aborted += not whole


# --- the bytes, rendered once -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rendered:
    """A model's answers as bytes: at once, and as the writes of a stream, without and with usage."""

    script: Script
    whole: bytes
    plain: tuple[bytes, ...]
    with_usage: tuple[bytes, ...]


def answer(status: int, document: object) -> bytes:
    """A JSON answer's bytes."""
    body = orjson.dumps(document)
    return _JSON_HEAD % (status, _REASONS[status], len(body)) + body


def refusal(status: int, message: str) -> bytes:
    """OpenAI's error object as an answer's bytes."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return answer(status, {"error": error})


def render(model: str, script: Script) -> Rendered:
    """All that this model will ever say."""
    usage = {"prompt_tokens": 24, "completion_tokens": script.tokens, "total_tokens": 24 + script.tokens}
    message = {"role": "assistant", "content": script.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": ANSWER_ID, "object": "chat.completion", "created": CREATED_S, "model": model}
    whole = answer(200, {**head, "choices": [choice], "usage": usage})
    return Rendered(script, whole, _writes(model, script, None), _writes(model, script, usage))


def _writes(model: str, script: Script, usage: dict[str, int] | None) -> tuple[bytes, ...]:
    head = {"id": ANSWER_ID, "object": "chat.completion.chunk", "created": CREATED_S, "model": model}
    null_usage: dict[str, object] = {} if usage is None else {"usage": None}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(orjson.dumps({**head, "choices": [choice], **null_usage}))

    writes = [chunk({"content": token(number)}) for number in range(script.tokens)]
    writes[0] = SSE_HEAD + chunk({"role": "assistant", "content": ""}) + writes[0]
    last = [chunk({}, "stop")]
    if usage is not None:
        last.append(event(orjson.dumps({**head, "choices": [], "usage": usage})))
    writes[-1] += b"".join(last) + event(b"[DONE]") + b"0\r\n\r\n"
    return tuple(writes)


def event(data: bytes) -> bytes:
    """A server-sent event as an HTTP chunk."""
    frame = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(frame), frame)


# --- time -------------------------------------------------------------------------------------------------------------


class Wheel:
    """One timer for everything that is to happen later, in ticks of 1 ms; it stands still when nothing is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[int, list[Callable[[int], None]]] = {}
        self._tick = 0
        self._turning = False

    def now(self) -> int:
        """The current tick."""
        return int(self._loop.time() * 1000)

    def at(self, tick: int, act: Callable[[int], None]) -> None:
        """Has `act` called with its tick once that tick has come."""
        if not self._turning:
            self._turning = True
            self._tick = self.now()
            self._loop.call_later(0.001, self._turn)
        self._due.setdefault(max(tick, self._tick + 1), []).append(act)

    def _turn(self) -> None:
        now = self.now()
        while self._tick < now:
            self._tick += 1
            for act in self._due.pop(self._tick, ()):
                act(self._tick)
        self._turning = bool(self._due)
        if self._turning:
            self._loop.call_later(0.001, self._turn)


# --- the connection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """What all connections share."""

    wheel: Wheel
    models: dict[str, Rendered]
    counts: Counts
    visits: deque[Visit] = field(default_factory=lambda: deque[Visit](maxlen=MOST_VISITS))
    _shortened: dict[tuple[str, int], Rendered] = field(default_factory=dict[tuple[str, int], Rendered])

    def shortened(self, model: Rendered, asked: dict[str, Any]) -> Rendered:
        """The model's answer of as many tokens as were asked for, where those are fewer; kept once rendered."""
        tokens = int(asked.get("max_tokens") or model.script.tokens)
        if tokens >= model.script.tokens:
            return model
        key = (str(asked["model"]), tokens)
        if key not in self._shortened:
            self._shortened[key] = render(key[0], replace(model.script, tokens=tokens))
        return self._shortened[key]


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; one answer at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._transport: asyncio.Transport | None = None
        self._writes: tuple[bytes, ...] | None = None
        self._next = 0
        self._gap = 0
        self._visit: Visit | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue]  # a TCP server hands in a Transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._writes is not None:
            self._end(whole=False)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(400, "not HTTP")

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._writes is not None:
            self._refuse(400, "one request at a time on a connection")
        elif self._url == b"/v1/chat/completions":
            self._chat()
        else:
            self._write(self._page())

    # --- answers ---

    def _page(self) -> bytes:
        if self._url == b"/stats":
            return answer(200, asdict(self._site.counts))
        if self._url == b"/log":
            return answer(200, {"visits": visits.encode(list(self._site.visits))})
        if self._url == b"/health":
            return answer(200, {"status": "ok"})
        if self._url == b"/v1/models":
            rows = [{"id": n, "object": "model", "created": CREATED_S, "owned_by": "bench"} for n in self._site.models]
            return answer(200, {"object": "list", "data": rows})
        return refusal(404, "there is nothing here")

    def _chat(self) -> None:
        try:
            asked: dict[str, Any] = orjson.loads(self._body)
            model = self._site.models[asked["model"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self._refuse(400, "unknown model, or no JSON")
            return
        self._site.counts.began()
        script = model.script
        if (number := visits.number_of(asked)) >= 0:
            model = self._site.shortened(model, asked)
            script = model.script
            self._visit = Visit(number, time.monotonic(), output_tokens=script.tokens)
            self._site.visits.append(self._visit)
        if not asked.get("stream"):
            self._begin((model.whole,), int(script.lasts_s * 1000), 0)
            return
        options = asked.get("stream_options") or {}
        self._begin(model.with_usage if options.get("include_usage") else model.plain, script.ttft_ms, script.gap_ms)

    def _begin(self, writes: tuple[bytes, ...], wait: int, gap: int) -> None:
        self._writes, self._next, self._gap = writes, 0, gap
        if wait == 0 and gap == 0:
            self._write(b"".join(writes))
            self._end()
        else:
            wheel = self._site.wheel
            wheel.at(wheel.now() + wait, self._step)

    def _step(self, tick: int) -> None:
        writes = self._writes
        if writes is None:
            return
        self._write(writes[self._next])
        self._next += 1
        if self._next == len(writes):
            self._end()
        else:
            # Counted from when it was due, so that a late turn does not slow the stream down.
            self._site.wheel.at(tick + self._gap, self._step)

    def _end(self, *, whole: bool = True) -> None:
        self._writes = None
        self._site.counts.ended(whole=whole)
        if self._visit is not None:
            self._visit.ended_s, self._visit.whole = time.monotonic(), whole
            self._visit = None

    def _refuse(self, status: int, message: str) -> None:
        self._write(refusal(status, message))
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int) -> None:
    """Serves until it is cancelled."""
    loop = asyncio.get_running_loop()
    site = Site(Wheel(loop), {name: render(name, script) for name, script in SCRIPTS.items()}, Counts())
    gc.freeze()
    server = await loop.create_server(lambda: Connection(site), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serves on the port named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
