"""One fleet for all journeys about names, choices and fallbacks, over a model server that says who was asked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

import httpx
import pytest

from tests.support.fleet import Fleet
from tests.support.upstream import HANG, Reply, Request, Upstream

CONFIG: Final = """
backends:
  - {name: up, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: ""}
  - {name: busy, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: "", api_keys: [b-1-key, b-2-key]}
  - {name: poor, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: "", api_keys: [p-1-key, p-2-key]}
  - {name: strict, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: "", api_keys: [s-1-key, s-2-key]}
  - {name: other, kind: ollama, base_url: "${HEADRACE_TEST_UP}", health_path: ""}
  - {name: flaky, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: ""}
  - {name: away, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: "", pool: away}
models:
  small:
    targets: [{backend: up, model: fine-small}]
    aliases: [gpt-tiny, org/tiny:1]
    price: {input: 1, output: 2}
    context_tokens: 4000
    max_tokens: 1000
    capabilities: [tools]
  medium:
    targets: [{backend: up, model: fine-medium}]
    price: {input: 3, output: 6}
    context_tokens: 16000
    capabilities: [tools, json_schema]
  large:
    targets: [{backend: away, model: fine-large}]
    price: {input: 10, output: 30}
    context_tokens: 128000
    capabilities: [tools, json_schema, vision, reasoning]
  auto: {choose: {by: cost, among: [small, medium, large]}, aliases: [best]}
  tight: {targets: [{backend: up, model: tight}], fallback: {context_length_exceeded: medium}}
  hopeless: {targets: [{backend: up, model: tight}], fallback: {rate_limit: medium, unavailable: medium}}
  short: {targets: [{backend: up, model: fine-short}], context_tokens: 100, fallback: {context_length_exceeded: medium}}
  stepped:
    targets: [{backend: up, model: tight, context_tokens: 10}, {backend: up, model: fine-long, context_tokens: 20000}]
  filtered:
    targets: [{backend: up, model: filtered}, {backend: up, model: fine-other}]
    fallback: {context_length_exceeded: medium, rate_limit: medium, unavailable: medium}
  limited: {targets: [{backend: busy, model: limited}], fallback: {rate_limit: medium}}
  broke: {targets: [{backend: poor, model: broke}], fallback: {unavailable: medium}}
  flagged: {targets: [{backend: strict, model: flagged}], fallback: {unavailable: medium}}
  unable: {targets: [{backend: other, model: other}, {backend: up, model: fine-small}]}
  down: {targets: [{backend: flaky, model: down}], fallback: {unavailable: medium}}
  stuck: {targets: [{backend: flaky, model: down}], fallback: {unavailable: held}, aliases: [sticky]}
  held: {targets: [{backend: up, model: held}]}
"""


REFUSALS: Final = {
    "tight": (400, "context_length_exceeded", "This model's maximum context length is 10 tokens."),
    "filtered": (400, "content_filter", "The prompt was filtered."),
    "flagged": (403, "x", "Content violates usage guidelines."),
    "limited": (429, "rate_limit_exceeded", "Slow down."),
    "broke": (429, "insufficient_quota", "You exceeded your current quota."),
    "down": (500, "server_error", "Broken."),
}


def answer(request: Request) -> Reply:
    """What the model's name says: an answer that tells the name, or a refusal."""
    if request.method == "GET":
        return Reply([b"{}"], content_type="application/json", chunked=False)
    body = request.json()
    if body["model"] in REFUSALS:
        return _refused(*REFUSALS[body["model"]])
    match body["model"]:
        case "held":
            return Reply([_streamed("held").steps[0], HANG])
        case name:
            return _streamed(name) if body.get("stream") else _whole(name)


def _refused(status: int, code: str, message: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()
    return Reply([body], status=status, content_type="application/json", chunked=False)


def _whole(name: str) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": name}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return Reply([json.dumps({"choices": [choice], "usage": usage}).encode()], content_type="application/json")


def _streamed(name: str) -> Reply:
    first = {"index": 0, "delta": {"role": "assistant", "content": name}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}}
    events = [{"choices": [first]}, {"choices": [last]}, usage]
    return Reply([*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n"])


class Fronts(NamedTuple):
    """Both ends: who asks, and whom the workers ask."""

    client: httpx.Client
    upstream: Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The model server behind every backend, in a thread of its own."""
    server = Upstream(answer)
    listening, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server.running():
            listening.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    yield server
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def _shared(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(
        tmp_path_factory.mktemp("choice"),
        config=CONFIG,
        pools="default,away",
        breaker_failures=10_000,
        test_up=upstream.url,
    )
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def fleet(_shared: Fleet) -> Fleet:
    """The fleet."""
    return _shared


@pytest.fixture
def client(_shared: Fleet, upstream: Upstream) -> Iterator[httpx.Client]:
    """A client of the gateway; no key of the model server rests, and nobody has asked it anything."""
    upstream.requests.clear()
    for name in _shared.redis.command("KEYS", "hr:{b:*}:keys"):
        _shared.redis.command("DEL", name)
    with _shared.client(0) as one:
        yield one
    for name, said in _shared.news().items():
        assert _shared.members[name].runs and "Traceback" not in said, f"{name}:\n{said[-4000:]}"


@pytest.fixture
def fronts(client: httpx.Client, upstream: Upstream) -> Fronts:
    return Fronts(client, upstream)
