"""Which transport belongs below httpx: connections leaked by cancelling, and CPU for each token and for each call.

`python -m tests.bench.transport` prints the table of `workers/providers/README.md`. Every client talks to the same
stand-in, which is a process of its own; CPU is this process's user and system time, on uvloop, so the stand-in's is
not in it. Slots are counted as a user meets them: a client that may hold 8 connections is asked for 8 streams at once
after 8,000 of its calls were cancelled, some while they wait for a connection, some before and some after a first byte.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx_aiohttp
import orjson
import uvloop

from common.servers import Backend
from workers.answer import Answer
from workers.providers.base import Call
from workers.providers.registry import make
from workers.providers.transport import new_client

CANCELS = 8_000  # a thousand show nothing in most runs
SLOTS = 8
LEAVERS = 20  # more than slots, so that some are cancelled while they wait for one
STREAMS = 128
TOKENS = 64
CALLERS = 32
CALLS_EACH = 60
LIMITS_S = {"connect": 5.0, "read": 10.0, "write": 5.0, "pool": 2.0}

MakeClient = Callable[[int], Any]


@dataclass(frozen=True)
class Row:
    """What was measured of one transport."""

    name: str
    stuck_slots: int
    open_after: int
    token_us: float
    call_us: float


def candidates() -> dict[str, MakeClient]:
    """Each transport, as a function from the most connections it may hold to a client."""
    found: dict[str, MakeClient] = {
        "httpx, its own": lambda most: httpx.AsyncClient(limits=_limits(most), trust_env=False),
        "httpx-aiohttp": lambda most: httpx.AsyncClient(
            transport=httpx_aiohttp.AiohttpTransport(limits=_limits(most)), trust_env=False
        ),
        "ours, over aiohttp": lambda most: new_client(max_connections=most),
    }
    if importlib.util.find_spec("httpx2"):
        httpx2: Any = importlib.import_module("httpx2")
        found["httpx2, its own"] = lambda most: httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most), trust_env=False
        )
    return found


def _limits(most: int) -> httpx.Limits:
    return httpx.Limits(max_connections=most, max_keepalive_connections=most)


def _body(*, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    return orjson.dumps({"model": "m", "messages": messages, "stream": stream, "max_tokens": TOKENS})


async def _read(client: Any, url: str, *, stream: bool = True, least: int = 0) -> None:
    """Reads an answer to its end, or only the first `least` pieces of it."""
    request = client.build_request(
        "POST", f"{url}/v1/chat/completions", content=_body(stream=stream), extensions={"timeout": LIMITS_S}
    )
    response = await client.send(request, stream=True)
    try:
        pieces = 0
        async for _ in response.aiter_raw():
            pieces += 1
            if pieces == least:
                return
    finally:
        await response.aclose()


# --- leaks -----------------------------------------------------------------------------------------------------------


async def _cancelled(client: Any, url: str, after_s: float) -> None:
    task = asyncio.ensure_future(_read(client, url))
    await asyncio.wait([task], timeout=after_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def leaks(new: MakeClient, url: str) -> tuple[int, int]:
    """Slots that can't be used any more after the cancels, and connections that the server still holds then."""
    dice = random.Random(7)  # the same moments for every transport
    client = new(SLOTS)

    async def caller() -> None:
        for _ in range(CANCELS // LEAVERS):
            # From at once to well into the stream: the first token comes after 50 ms.
            await _cancelled(client, url, dice.choice((0, 0.0002, 0.001, 0.02, dice.uniform(0, 0.08))))

    await asyncio.gather(*(caller() for _ in range(LEAVERS)))
    answers = await asyncio.gather(*(_read(client, url, least=1) for _ in range(SLOTS)), return_exceptions=True)
    stuck = sum(isinstance(answer, BaseException) for answer in answers)
    await client.aclose()
    await asyncio.sleep(0.2)  # the server hears of the last closed connections
    async with httpx.AsyncClient(trust_env=False) as other:
        return stuck, (await other.get(f"{url}/open")).json()["open"] - 1


# --- CPU -------------------------------------------------------------------------------------------------------------


async def _cpu_us(work: Callable[[], Awaitable[object]], count: int) -> float:
    await work()  # connections, caches
    before_s = time.process_time()
    await work()
    return (time.process_time() - before_s) / count * 1e6


async def cpu(one: Callable[[bool], Awaitable[None]]) -> tuple[float, float]:
    """CPU µs for each streamed token and for each call in one piece."""

    async def streams() -> None:
        await asyncio.gather(*(one(True) for _ in range(STREAMS)))

    async def calls() -> None:
        async def caller() -> None:
            for _ in range(CALLS_EACH):
                await one(False)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    return await _cpu_us(streams, STREAMS * TOKENS), await _cpu_us(calls, CALLERS * CALLS_EACH)


async def measure(name: str, new: MakeClient, url: str) -> Row:
    """One transport's row: reading bytes only."""
    stuck, still_open = await leaks(new, url)
    client = new(STREAMS)
    token_us, call_us = await cpu(lambda stream: _read(client, url, stream=stream))
    await client.aclose()
    return Row(name, stuck, still_open, token_us, call_us)


async def provider_cpu(url: str) -> tuple[float, float]:
    """The same for a whole provider on our transport: read, decode, parse, Chunk, Answer."""
    backend = Backend(name="stand-in", kind="openai", base_url=url)
    messages = [{"role": "user", "content": "Hello"}]
    async with new_client() as client:
        provider = make("openai", client)

        async def one(stream: bool) -> None:
            body = {"messages": messages, "max_tokens": TOKENS}
            call = Call(backend, "/v1/chat/completions", "m", body, stream=stream, timeout_s=60, request_id="bench")
            answer = Answer()
            async for chunk in provider.stream(call):
                answer.add(chunk)
            answer.result()

        return await cpu(one)


async def main(url: str) -> None:
    """Prints the table."""
    print(f"{'transport':<28}{'stuck slots':>12}{'left open':>12}{'µs a token':>12}{'µs a call':>12}")
    for name, new in candidates().items():
        row = await measure(name, new, url)
        print(
            f"{row.name:<28}{row.stuck_slots:>9}/{SLOTS}{row.open_after:>12}{row.token_us:>12.1f}{row.call_us:>12.0f}"
        )
    token_us, call_us = await provider_cpu(url)
    print(f"{'ours, and all of a provider':<28}{'':>24}{token_us:>12.1f}{call_us:>12.0f}")


if __name__ == "__main__":
    stand_in = subprocess.Popen(
        [sys.executable, "-m", "tests.support.upstream", "0", "50", "10"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert stand_in.stdout is not None
    try:
        port = int(stand_in.stdout.readline().split()[1])
        uvloop.run(main(f"http://127.0.0.1:{port}"))
    finally:
        stand_in.kill()
        stand_in.communicate()
