"""What a model's server can't do another model does: under its own name, which every dialect and record tells."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.choice.asking import called, chat, chunks, record, said
from tests.support.grpc_client import Caller, asked
from tests.support.grpc_client import chat as grpc_chat
from tests.support.upstream import Upstream

pytestmark = pytest.mark.timeout(60)


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
    assert (shown["backend"], shown["upstream_model"]) == ("up", "fine-medium")
    assert [one["model"] for one in shown["failed_targets"]] == [model]


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


def test_a_response_that_runs_names_the_model_that_answers_whoever_looks(client: httpx.Client) -> None:
    begun = client.stream("POST", "/v1/responses", json={"model": "sticky", "input": "hi", "stream": True})
    with begun as answer:
        made = first_event(answer)["response"]
        home = f"/v1/responses/{made['id']}"
        shown = client.get(home)
        with client.stream("GET", home, params={"stream": "true"}) as followed:
            again = first_event(followed)["response"]
        client.post(f"{home}/cancel")
    assert (shown.json()["status"], shown.json()["model"]) == ("in_progress", "held")
    assert made["model"] == again["model"] == "held"
    for told in (answer, shown, followed):
        assert told.headers["x-headrace-model"] == "stuck"
        assert told.headers["x-headrace-choice-reason"] == "an alias of stuck"


def first_event(answer: httpx.Response) -> dict[str, Any]:
    """What the first event of a stream tells."""
    line = next(line for line in answer.iter_lines() if line.startswith("data: "))
    return json.loads(line.removeprefix("data: "))


def test_grpc_names_the_model_that_answered_too(rpc: Caller) -> None:
    answer, told = rpc.told("ChatCompletion", asked(grpc_chat("tight")))
    job = rpc.ask("GetJob", pb.GetJobRequest(job_id=told["x-headrace-job-id"])).job
    assert answer.completion.model == job.model == job.completion.model == "medium"


def test_while_no_key_has_money_left_every_request_is_answered_by_the_fallback(
    client: httpx.Client, upstream: Upstream
) -> None:
    assert {said(chat(client, "broke")) for _ in range(4)} == {"fine-medium"}
    assert called(upstream).count("fine-medium") == 4


def test_what_one_kind_of_server_cannot_do_is_asked_of_another_kind(client: httpx.Client, upstream: Upstream) -> None:
    assert said(chat(client, "unable", n=2)) == "fine-small"
    assert called(upstream) == ["fine-small"]


def test_a_longer_target_of_the_same_model_comes_before_any_fallback(client: httpx.Client, upstream: Upstream) -> None:
    answered = chat(client, "stepped")
    assert (said(answered), answered.json()["model"]) == ("fine-long", "stepped")
    assert called(upstream) == ["tight", "fine-long"]


@pytest.mark.parametrize(
    ("model", "code", "calls"),
    [
        ("filtered", "content_filter", ["filtered"]),
        ("flagged", "content_filter", ["flagged"]),
        ("hopeless", "context_length_exceeded", ["tight"]),
    ],
)
def test_what_has_no_fallback_of_its_kind_ends_with_its_failure(
    model: str, code: str, calls: list[str], client: httpx.Client, upstream: Upstream
) -> None:
    refused = chat(client, model)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
    assert called(upstream) == calls
