"""The load: a fast HTTP/1.1 client that keeps its connections, times each answer and judges it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import httptools
import orjson

from tests.bench.answers import Check, StreamedAnswer, WholeAnswer
from tests.bench.upstream import SCRIPTS

_MOST_ERRORS: Final = 20
_PROMPT: Final = "Which river drives the mill, how wide is its headrace, and who keeps the sluice in a dry summer?"


class LoadFailed(RuntimeError):
    """An answer was wrong or missing: the figures of this run mean nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests go."""

    name: str
    port: int
    api_key: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's bytes for one target, and what its answer must say."""

    raw: bytes
    text: str
    stream: bool

    def check(self) -> Check:
        """A fresh judge for one answer."""
        return StreamedAnswer(self.text) if self.stream else WholeAnswer(self.text)


def chat(target: Target, model: str, *, stream: bool) -> Request:
    """A chat request to one of the stand-in's models."""
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": _PROMPT}]
    body = orjson.dumps({"model": model, "messages": messages, "stream": stream, "max_tokens": 256})
    key = f"authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\n{key}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, SCRIPTS[model].text, stream)


@dataclass(slots=True)
class Tally:
    """What a load has seen. Times in seconds; `first_s` is to the first token of a stream."""

    total_s: list[float] = field(default_factory=list[float])
    first_s: list[float] = field(default_factory=list[float])
    errors: Counter[str] = field(default_factory=Counter[str])
    wall_s: float = 0.0
    flowing: int = 0
    most_flowing: int = 0

    @property
    def done(self) -> int:
        """How many answers were whole."""
        return len(self.total_s)

    def fail_on_errors(self) -> None:
        """Raises LoadFailed where any answer was wrong or missing."""
        if self.errors:
            worst = "; ".join(f"{count} × {text}" for text, count in self.errors.most_common(3))
            raise LoadFailed(f"{sum(self.errors.values())} of {self.done + self.errors.total()} failed: {worst}")


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


# --- one connection ---------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One kept connection: a request at a time; `ended` is called after each answer, with what was wrong."""

    def __init__(self, tally: Tally, ended: Callable[[Connection, str | None], None]) -> None:
        self._tally = tally
        self._ended = ended
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._check: Check | None = None
        self._began_s = 0.0
        self._first_s: float | None = None
        self._refusal = b""
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue]  # TCP connections are Transports
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        after_s = time.perf_counter() - self._began_s
        self._end(f"the connection was lost {after_s:.1f} s after the request ({exc}): {self._check}")

    def send(self, request: Request) -> None:
        """Sends a request; `ended` follows."""
        self._check = request.check()
        self._first_s = None
        self._refusal = b""
        self._began_s = time.perf_counter()
        if self._transport is None or not self.open:
            self._end("the connection was closed")
        else:
            self._transport.write(request.raw)

    def on_end(self, ended: Callable[[Connection, str | None], None]) -> None:
        """Has another called after the next answer."""
        self._ended = ended

    def close(self) -> None:
        """Closes the connection; an answer under way no longer counts."""
        self._check = None
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"no HTTP answer: {error}")

    # --- what the parser calls ---

    def on_body(self, body: bytes) -> None:
        check = self._check
        if check is None or self._parser.get_status_code() != 200:
            self._refusal += body
            return
        check.feed(body)
        if self._first_s is None and check.started:
            self._first_s = time.perf_counter() - self._began_s
            self._tally.flowing += 1
            self._tally.most_flowing = max(self._tally.most_flowing, self._tally.flowing)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._end(f"status {status}: {self._refusal[:200]!r}")
        elif self._check is not None:
            self._end(self._check.verdict())

    def _end(self, wrong: str | None) -> None:
        if self._check is None:
            return
        self._check = None
        tally = self._tally
        if self._first_s is not None:
            tally.flowing -= 1
        if wrong is None:
            tally.total_s.append(time.perf_counter() - self._began_s)
            tally.first_s.append(self._first_s or 0.0)
        else:
            tally.errors[wrong] += 1
        self._ended(self, wrong)


@contextmanager
def _steady() -> Generator[None]:
    # A collection in the middle of a run would show up as someone else's latency.
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- closed loop: as many at once as there are connections ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: `total` requests over `connections`, started evenly over `ramp_s`."""

    request: Request
    port: int
    connections: int
    total: int
    ramp_s: float = 0.0
    limit_s: float = 300.0


class _Loop:
    def __init__(self, plan: Closed, tally: Tally) -> None:
        self._plan = plan
        self._tally = tally
        self._sent = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        made: list[Connection] = []
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._plan.limit_s):
                await self._connect(began_s, made)
                await self._over
        finally:
            self._tally.wall_s = time.perf_counter() - began_s
            for connection in made:
                connection.close()

    async def _connect(self, began_s: float, made: list[Connection]) -> None:
        # Each connects when it is to send, as a client would: a server may close what stays silent.
        loop = asyncio.get_running_loop()
        step_s = self._plan.ramp_s / self._plan.connections
        for number in range(self._plan.connections):
            due_s = began_s + step_s * number
            if due_s > time.perf_counter():
                await asyncio.sleep(due_s - time.perf_counter())
            if self._over.done():
                return
            _, connection = await loop.create_connection(self._protocol, "127.0.0.1", self._plan.port)
            made.append(connection)
            self._send(connection)

    def _protocol(self) -> Connection:
        return Connection(self._tally, self._next)

    def _send(self, connection: Connection) -> None:
        if self._sent < self._plan.total and not self._over.done():
            self._sent += 1
            connection.send(self._plan.request)

    def _next(self, connection: Connection, wrong: str | None) -> None:
        errors = self._tally.errors.total()
        enough = self._tally.done + errors >= self._plan.total or errors > _MOST_ERRORS or not connection.open
        if enough and not self._over.done():
            self._over.set_result(None)
        self._send(connection)


async def closed_loop(plan: Closed, tally: Tally | None = None) -> Tally:
    """What the requests met. Raises LoadFailed where any answer was wrong, missing or too late."""
    tally = tally or Tally()
    with _steady():
        try:
            await _Loop(plan, tally).run()
        except TimeoutError:
            tally.errors[f"no answer within the run's {plan.limit_s:.0f} s"] += plan.total - tally.done
    tally.fail_on_errors()
    return tally


# --- open loop: at a rate, whatever the answers take ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """One of the targets that an open loop takes turns between."""

    request: Request
    port: int
    tally: Tally = field(default_factory=Tally)
    idle: list[Connection] = field(default_factory=list[Connection])


async def open_loop(lanes: Sequence[Lane], *, rate_per_s: float, samples: int, seed: int = 7) -> None:
    """Sends each lane `samples` requests at this rate, in turns, at Poisson times; the lanes' tallies fill.

    Raises LoadFailed where any answer was wrong or missing.
    """
    gaps = random.Random(seed)
    waiting: set[asyncio.Future[None]] = set()
    with _steady():
        due_s = time.perf_counter()
        for _ in range(samples):
            for lane in lanes:
                due_s += gaps.expovariate(rate_per_s * len(lanes))
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                answered = await _send_on(lane)
                waiting.add(answered)
                answered.add_done_callback(waiting.discard)
        if waiting:
            await asyncio.wait(waiting, timeout=30)
    for lane in lanes:
        if waiting:
            lane.tally.errors["no answer within 30 s"] += 1
        for connection in lane.idle:
            connection.close()
        lane.tally.fail_on_errors()


async def _send_on(lane: Lane) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()

    def ended(connection: Connection, _wrong: str | None) -> None:
        # Used again newest first, so that those which the server has let go of stay below.
        lane.idle.append(connection)
        answered.set_result(None)

    while lane.idle:
        connection = lane.idle.pop()
        if connection.open:
            connection.on_end(ended)
            break
    else:
        _, connection = await loop.create_connection(lambda: Connection(lane.tally, ended), "127.0.0.1", lane.port)
    connection.send(lane.request)
    return answered
