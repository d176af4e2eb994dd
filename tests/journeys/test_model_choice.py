"""Names, choices, limits and fallbacks over HTTP: which model answers, and how callers and records are told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import httpx
import openai
import pytest

from tests.support.fleet import KEY, Fleet, until
from tests.support.upstream import Reply, Request, Upstream

pytestmark = pytest.mark.timeout(60)

CONFIG: Final = """
backends:
  - {name: up, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: ""}
  - {name: busy, kind: openai, base_url: "${HEADRACE_TEST_UP}", health_path: "", api_keys: [b-1-key, b-2-key]}
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
  down: {targets: [{backend: flaky, model: down}], fallback: {unavailable: medium}}
"""


def answer(request: Request) -> Reply:
    """What the model's name says: an answer that tells the name, or a refusal."""
    if request.method == "GET":
        return Reply([b"{}"], content_type="application/json", chunked=False)
    body = request.json()
    match body["model"]:
        case "tight":
            return _refused(400, "context_length_exceeded", "This model's maximum context length is 10 tokens.")
        case "filtered":
            return _refused(400, "content_filter", "The prompt was filtered.")
        case "limited":
            return _refused(429, "rate_limit_exceeded", "Slow down.")
        case "down":
            return _refused(500, "server_error", "Broken.")
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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
def client(_shared: Fleet, upstream: Upstream) -> Iterator[httpx.Client]:
    upstream.requests.clear()
    for name in _shared.redis.command("KEYS", "hr:{b:*}:keys"):
        _shared.redis.command("DEL", name)
    with _shared.client(0) as one:
        yield one
    for name, member in _shared.members.items():
        assert member.runs and "Traceback" not in member.log(), f"{name}:\n{member.log()[-4000:]}"


@pytest.fixture
def fronts(client: httpx.Client, upstream: Upstream) -> Fronts:
    return Fronts(client, upstream)


def chat(
    client: httpx.Client, model: str, text: str = "hi", *, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def record(client: httpx.Client, answered: httpx.Response) -> dict[str, Any]:
    """The record of the job that this answer belongs to, once it has ended."""
    path = f"/v1/jobs/{answered.headers['x-headrace-job-id']}"
    found = until(lambda: (one := client.get(path).json())["finished_at"] and one, 10)
    assert isinstance(found, dict)
    return found


def said(answered: httpx.Response) -> str:
    assert answered.status_code == 200, answered.text
    return answered.json()["choices"][0]["message"]["content"]


def chunks(answered: httpx.Response) -> list[dict[str, Any]]:
    assert answered.status_code == 200, answered.text
    data = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def called(upstream: Upstream) -> list[str]:
    return [request.json()["model"] for request in upstream.requests if request.method == "POST"]


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_name_is_listed_and_found_aliases_and_virtual_models_too(client: httpx.Client) -> None:
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert {"small", "gpt-tiny", "org/tiny:1", "auto", "best"} <= set(listed)
    assert len(listed) == len(set(listed))
    for name in ("gpt-tiny", "org/tiny:1", "auto"):
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    assert client.get("/v1/models/nothing").status_code == 404


def test_an_alias_is_answered_by_its_model_under_that_models_name(client: httpx.Client, upstream: Upstream) -> None:
    answered = chat(client, "org/tiny:1")
    assert (said(answered), answered.json()["model"]) == ("fine-small", "small")
    assert answered.headers["x-headrace-model"] == "small"
    assert answered.headers["x-headrace-choice-reason"] == "an alias of small"
    shown = record(client, answered)
    assert shown["model"] == "small"
    assert shown["choice"] == {"asked": "org/tiny:1", "model": "small", "reason": "an alias of small"}
    assert shown["cost_usd"] == pytest.approx((1000 * 1 + 100 * 2) / 1e6)


def test_a_model_asked_for_by_its_own_name_is_no_choice(client: httpx.Client) -> None:
    answered = chat(client, "small")
    assert "x-headrace-model" not in answered.headers and "x-headrace-choice-reason" not in answered.headers
    assert record(client, answered)["choice"] is None


# --- virtual models ---------------------------------------------------------------------------------------------------

SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
PICTURE: Final = [
    {"type": "text", "text": "what?"},
    {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
]


@pytest.mark.parametrize(
    ("text", "more", "quality", "model", "why"),
    [
        ("hi", {}, None, "small", "score 0: the cheapest of small, medium, large, about $0.0005"),
        ("word " * 3000, {}, None, "medium", "score 20 (length 20): the cheapest of medium, large"),
        ("hi", {"response_format": SCHEMA}, None, "medium", "score 15 (schema 15)"),
        ("x = 1;\n" * 2000, {"response_format": SCHEMA}, None, "medium", "score 50 (length 20, schema 15, code 15)"),
        ("hi", {}, "high", "large", "quality high, score 0: the only one strong and able enough"),
        ("word " * 3000, {"reasoning_effort": "high"}, "low", "large", "quality low, score 50 (length 20, reasoning"),
    ],
)
def test_a_virtual_model_chooses_the_cheapest_that_a_request_allows_and_says_why(
    text: str, more: dict[str, Any], quality: str | None, model: str, why: str, client: httpx.Client
) -> None:
    answered = chat(client, "auto", text, headers={"x-headrace-quality": quality} if quality else None, **more)
    assert (said(answered), answered.json()["model"]) == (f"fine-{model}", model)
    assert answered.headers["x-headrace-model"] == model
    assert answered.headers["x-headrace-choice-reason"].startswith(why)
    shown = record(client, answered)
    reason = answered.headers["x-headrace-choice-reason"]
    assert (shown["model"], shown["choice"]) == (model, {"asked": "auto", "model": model, "reason": reason})


def test_a_streamed_choice_says_the_model_in_its_head_and_in_every_chunk(client: httpx.Client) -> None:
    answered = chat(client, "best", "hi", stream=True, headers={"x-headrace-quality": "high"})
    assert answered.headers["x-headrace-model"] == "large"
    assert {chunk["model"] for chunk in chunks(answered)} == {"large"}


def test_a_job_may_ask_for_a_quality_in_its_body(client: httpx.Client) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    document = {"endpoint": "/v1/chat/completions", "body": body, "quality": "high"}
    taken = client.post("/v1/jobs", json=document)
    assert (taken.status_code, taken.headers["x-headrace-model"]) == (202, "large")
    shown = record(client, taken)
    assert (shown["model"], shown["result"]["model"]) == ("large", "large")
    refused = client.post("/v1/jobs", json={**document, "quality": "best"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "quality")


def test_a_quality_that_there_is_not_is_refused(client: httpx.Client) -> None:
    refused = chat(client, "auto", headers={"x-headrace-quality": "superb"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-headrace-quality")


def test_one_key_is_one_job_and_another_quality_is_another_request(client: httpx.Client, upstream: Upstream) -> None:
    first = chat(client, "auto", headers={"idempotency-key": "choice-1"})
    again = chat(client, "auto", headers={"idempotency-key": "choice-1"})
    assert again.headers["x-headrace-job-id"] == first.headers["x-headrace-job-id"]
    assert again.headers["x-headrace-choice-reason"] == first.headers["x-headrace-choice-reason"]
    other = chat(client, "auto", headers={"idempotency-key": "choice-1", "x-headrace-quality": "high"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert called(upstream) == ["fine-small"]


def test_a_virtual_model_makes_no_embeddings(client: httpx.Client) -> None:
    refused = client.post("/v1/embeddings", json={"model": "auto", "input": "hi"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


# --- refused before queueing ------------------------------------------------------------------------------------------


LONG: Final = "context_length_exceeded"
UNABLE: Final = "unsupported_parameter"


@pytest.mark.parametrize(
    ("model", "asked", "fault", "told"),
    [
        ("small", {"text": "word " * 9000}, ("messages", LONG), "maximum context length is 4000 tokens"),
        ("medium", {"max_tokens": 17000}, ("max_tokens", LONG), "17000 in the completion"),
        ("small", {"max_completion_tokens": 1001}, ("max_completion_tokens", None), "at most 1000"),
        ("gpt-tiny", {"response_format": SCHEMA}, ("response_format", UNABLE), "it has: tools"),
        ("medium", {"reasoning_effort": "low"}, ("reasoning_effort", UNABLE), "'reasoning'"),
        ("auto", {"text": "word " * 250_000}, ("messages", LONG), "128000 tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_no_target_can_serve_is_refused_before_it_is_queued(
    model: str, asked: dict[str, Any], fault: tuple[str, str | None], told: str, stream: bool, fronts: Fronts
) -> None:
    refused = chat(fronts.client, model, stream=stream, **asked)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, *fault)
    assert told in error["message"] and error["type"] == "invalid_request_error"
    assert "x-headrace-job-id" not in refused.headers
    assert called(fronts.upstream) == []


LOOK: Final[Any] = [{"role": "user", "content": PICTURE}]


def test_the_refusal_names_the_part_that_asks_for_too_much(client: httpx.Client, _shared: Fleet) -> None:
    sdk = openai.OpenAI(base_url=_shared.url() + "/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="medium", messages=LOOK)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "messages[0].content[1].image_url")
    seen = sdk.chat.completions.create(model="auto", messages=LOOK)
    assert seen.model == "large"


# --- fallback ---------------------------------------------------------------------------------------------------------


def test_what_surely_is_too_long_goes_to_the_longer_model_before_it_is_queued(
    client: httpx.Client, upstream: Upstream
) -> None:
    answered = chat(client, "short", "word " * 400)
    assert (said(answered), called(upstream)) == ("fine-medium", ["fine-medium"])
    assert answered.headers["x-headrace-choice-reason"] == "too long for short, whose context is 100 tokens"
    assert said(chat(client, "short")) == "fine-short"


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        ("tight", ["tight", "fine-medium"]),
        ("down", ["down", "fine-medium"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_fallback_for_what_went_wrong_answers_under_its_own_name(
    model: str, calls: list[str], stream: bool, client: httpx.Client, upstream: Upstream
) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    answered = chat(client, model, stream=stream, **options)
    if stream:
        assert {chunk["model"] for chunk in chunks(answered)} == {"medium"}
        assert answered.text.count('"model"') == len(chunks(answered))
        assert chunks(answered)[-1]["usage"]["total_tokens"] == 1100
    else:
        assert (said(answered), answered.json()["model"]) == ("fine-medium", "medium")
    assert called(upstream) == calls
    shown = record(client, answered)
    assert (shown["model"], shown["result"]["model"], shown["attempt"]) == ("medium", "medium", 1)
    assert shown["cost_usd"] == pytest.approx((1000 * 3 + 100 * 6) / 1e6)


def test_a_rate_limit_is_first_the_next_keys_matter_then_the_fallbacks(
    client: httpx.Client, upstream: Upstream
) -> None:
    answered = chat(client, "limited")
    assert (said(answered), answered.json()["model"]) == ("fine-medium", "medium")
    assert called(upstream) == ["limited", "limited", "fine-medium"]
    keys = [request.headers.get("authorization") for request in upstream.requests if request.method == "POST"]
    assert {*keys[:2]} == {"Bearer b-1-key", "Bearer b-2-key"}
    upstream.requests.clear()
    assert {chunk["model"] for chunk in chunks(chat(client, "limited", stream=True))} == {"medium"}
    assert called(upstream) == ["fine-medium"]  # both keys rest, so nobody asks there in vain


def test_a_resumed_stream_and_a_stored_one_name_the_model_that_answered(client: httpx.Client) -> None:
    answered = chat(client, "tight", stream=True, headers={"idempotency-key": "fallback-1"})
    again = chat(client, "tight", stream=True, headers={"idempotency-key": "fallback-1"})
    assert chunks(again) == chunks(answered)
    resumed = client.get(
        f"/v1/jobs/{answered.headers['x-headrace-job-id']}/events",
        headers={"last-event-id": answered.text.split("id: ")[1].split("\n")[0]},
    )
    assert [chunk["model"] for chunk in chunks(resumed)] == ["medium"]


@pytest.mark.parametrize(("asked", "model"), [("tight", "medium"), ("gpt-tiny", "small"), ("auto", "small")])
def test_other_dialects_name_the_model_that_answered_too(asked: str, model: str, client: httpx.Client) -> None:
    message = {"model": asked, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/messages", json=message).json()["model"] == model
    streamed = client.post("/v1/messages", json={**message, "stream": True}).text
    first = next(line for line in streamed.splitlines() if line.startswith("data: "))
    assert json.loads(first.removeprefix("data: "))["message"]["model"] == model
    made = client.post("/v1/responses", json={"model": asked, "input": "hi"}).json()
    assert made["model"] == model
    assert client.get(f"/v1/responses/{made['id']}").json()["model"] == model


def test_a_longer_target_of_the_same_model_comes_before_any_fallback(client: httpx.Client, upstream: Upstream) -> None:
    answered = chat(client, "stepped")
    assert (said(answered), answered.json()["model"]) == ("fine-long", "stepped")
    assert called(upstream) == ["tight", "fine-long"]


@pytest.mark.parametrize(
    ("model", "code", "calls"),
    [("filtered", "content_filter", ["filtered"]), ("hopeless", "context_length_exceeded", ["tight"])],
)
def test_what_has_no_fallback_of_its_kind_ends_with_its_failure(
    model: str, code: str, calls: list[str], client: httpx.Client, upstream: Upstream
) -> None:
    refused = chat(client, model)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
    assert called(upstream) == calls
