"""Names, virtual models and limits: which model a request goes to, and how callers and records are told."""

from __future__ import annotations

from typing import Any, Final

import httpx
import openai
import pytest

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.choice.asking import called, chat, chunks, record, said
from tests.journeys.choice.conftest import Fronts
from tests.support.fleet import KEY, Fleet
from tests.support.grpc_client import Caller, asked, events_of, stream
from tests.support.grpc_client import chat as grpc_chat
from tests.support.upstream import Upstream

pytestmark = pytest.mark.timeout(60)


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


def test_grpc_tells_the_choice_in_its_metadata_and_in_the_job(rpc: Caller) -> None:
    request, why = (
        grpc_chat("org/tiny:1"),
        {"x-headrace-model": "small", "x-headrace-choice-reason": "an alias of small"},
    )
    answer, told = rpc.told("ChatCompletion", asked(request))
    streamed = stream(rpc, request)
    assert list(events_of(streamed))
    taken, told_taken = rpc.told("SubmitJob", pb.SubmitJobRequest(chat=request))
    watching = rpc.ask("WatchJob", pb.WatchJobRequest(job_id=taken.job_id))
    assert list(watching)
    for metadata in (told, dict(streamed.initial_metadata()), told_taken, dict(watching.initial_metadata())):
        assert why.items() <= metadata.items()
    job = rpc.ask("GetJob", pb.GetJobRequest(job_id=taken.job_id)).job
    assert (job.choice.asked, job.choice.model, job.choice.reason) == ("org/tiny:1", "small", "an alias of small")
    assert (job.model, answer.completion.model) == ("small", "small")
    assert job.cost_usd == pytest.approx((1000 * 1 + 100 * 2) / 1e6)
    _, plain = rpc.told("ChatCompletion", asked(grpc_chat("small")))
    assert not why.keys() & plain.keys()


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


def test_how_long_a_prompt_may_be_is_told_to_anthropics_clients(client: httpx.Client) -> None:
    told = client.get("/v1/models/small", headers={"anthropic-version": "2023-06-01"}).json()
    assert (told["max_input_tokens"], told["max_tokens"]) == (4000, 1000)


LOOK: Final[Any] = [{"role": "user", "content": PICTURE}]


def test_the_refusal_names_the_part_that_asks_for_too_much(fleet: Fleet) -> None:
    sdk = openai.OpenAI(base_url=fleet.url() + "/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="medium", messages=LOOK)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "messages[0].content[1].image_url")
    seen = sdk.chat.completions.create(model="auto", messages=LOOK)
    assert seen.model == "large"
