"""What answers say of a tenant's limit: to OpenAI's clients, to Anthropic's, over gRPC; and where none is left."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import httpx
import openai
import pytest

from gateway.limits import ANTHROPIC_LIMITS, OPENAI_LIMITS
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.conftest import FEW_KEY
from tests.support.fleet import Fleet
from tests.support.grpc_client import caller, refused
from tests.support.grpc_client import chat as rpc_chat
from tests.support.say import CHAT, chat, messages, when

pytestmark = pytest.mark.timeout(60)

LIMIT, REMAINING, RESET = OPENAI_LIMITS
ALL = {*OPENAI_LIMITS, *ANTHROPIC_LIMITS}
DURATION = r"0s|\d+ms|(\d+h)?(\d+m)?\d+s"
SAYS: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
IN_BACKGROUND: dict[str, Any] = {"model": "echo", "input": "hi", "background": True}


@pytest.fixture
def few(fleet: Fleet) -> Iterator[httpx.Client]:
    """A tenant two of whose jobs may wait."""
    with fleet.client(0, key=FEW_KEY) as one:
        yield one


@pytest.fixture
def sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the same tenant."""
    with openai.OpenAI(api_key=FEW_KEY, base_url=fleet.url() + "/v1", max_retries=0, timeout=20) as one:
        yield one


@pytest.fixture
def full(few: httpx.Client) -> Iterator[list[httpx.Response]]:
    """As many jobs as the tenant may have waiting, where nobody takes them."""
    taken = [few.post("/v1/jobs", json={"endpoint": CHAT, "body": chat("unserved", words="wait")}) for _ in range(2)]
    yield taken
    for answer in taken:
        few.post(answer.json()["links"]["cancel"])


def told(headers: Mapping[str, str]) -> dict[str, str]:
    """What an answer says of limits."""
    return {name: value for name, value in headers.items() if name in ALL}


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_reads_the_limit_on_whole_and_streamed_answers(sdk: openai.OpenAI, *, stream: bool) -> None:
    answer = sdk.chat.completions.with_raw_response.create(model="echo", messages=messages("hi"), stream=stream)
    assert (answer.headers[LIMIT], answer.headers[REMAINING]) == ("2", "1")
    assert re.fullmatch(DURATION, answer.headers[RESET])
    assert set(told(answer.headers)) == set(OPENAI_LIMITS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "echo", "prompt": "hi"}),
        ("/v1/completions", {"model": "echo", "prompt": "hi", "stream": True}),
        ("/v1/embeddings", {"model": "echo", "input": "hi"}),
        ("/v1/responses", {"model": "echo", "input": "hi"}),
        ("/v1/responses", {"model": "echo", "input": "hi", "stream": True}),
        ("/v1/responses", IN_BACKGROUND),
        ("/v1/responses", {**IN_BACKGROUND, "stream": True}),
        ("/v1/jobs", {"endpoint": CHAT, "body": SAYS}),
        ("/prompt", {"prompt": "hi"}),
        ("/api/chat", SAYS),
        ("/api/generate", {"model": "echo", "prompt": "hi"}),
        ("/api/embed", {"model": "echo", "input": "hi"}),
    ],
)
def test_every_surface_tells_the_limit(few: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = few.post(path, json=body)
    assert answer.is_success, answer.text
    assert (answer.headers[LIMIT], answer.headers[REMAINING]) == ("2", "1")
    assert set(told(answer.headers)) <= set(OPENAI_LIMITS)
    when(few, answer.headers["x-headrace-job-id"])


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_clients_are_told_under_names_of_their_own(few: httpx.Client, *, stream: bool) -> None:
    answer = few.post("/v1/messages", json={**SAYS, "max_tokens": 9, "stream": stream})
    limit, remaining, reset = ANTHROPIC_LIMITS
    assert (answer.headers[limit], answer.headers[remaining]) == ("2", "1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.headers[reset])
    assert set(told(answer.headers)) == set(ANTHROPIC_LIMITS)


def test_who_has_as_much_waiting_as_may_be_is_told_that_none_remains(
    fleet: Fleet, full: list[httpx.Response], few: httpx.Client, sdk: openai.OpenAI
) -> None:
    # Before the first there is nothing; nobody works there, so there is no pace to tell the second's turn by.
    assert [told(answer.headers) for answer in full] == [
        {LIMIT: "2", REMAINING: "1", RESET: "0s"},
        {LIMIT: "2", REMAINING: "0"},
    ]
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(model="unserved", messages=messages("hi"))
    assert caught.value.code == "tenant_queue_full"
    assert told(caught.value.response.headers) == {LIMIT: "2", REMAINING: "0"}
    refusal = few.post("/v1/messages", json={**SAYS, "model": "unserved", "max_tokens": 9})
    assert refusal.json()["error"]["type"] == "rate_limit_error"
    assert told(refusal.headers) == {ANTHROPIC_LIMITS[0]: "2", ANTHROPIC_LIMITS[1]: "0"}
    with caller(fleet, key=FEW_KEY) as rpc:
        found = refused(rpc, "ChatCompletion", pb.ChatCompletionRequest(chat=rpc_chat("unserved", words="hi")))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (found.trailers[LIMIT], found.trailers[REMAINING]) == ("2", "0")


def test_over_grpc_the_limit_is_initial_metadata(fleet: Fleet, few: httpx.Client) -> None:
    with caller(fleet, key=FEW_KEY) as rpc:
        _, whole = rpc.told("ChatCompletion", pb.ChatCompletionRequest(chat=rpc_chat(words="hi")))
        _, submitted = rpc.told("SubmitJob", pb.SubmitJobRequest(chat=rpc_chat(words="hi")))
    when(few, submitted["x-headrace-job-id"])
    assert [(one[LIMIT], one[REMAINING]) for one in (whole, submitted)] == [("2", "1")] * 2


@pytest.mark.parametrize("path", [CHAT, "/v1/jobs", "/v1/responses"])
def test_an_answer_that_is_only_replayed_tells_of_no_limit(few: httpx.Client, path: str) -> None:
    bodies = {CHAT: SAYS, "/v1/jobs": {"endpoint": CHAT, "body": SAYS}, "/v1/responses": IN_BACKGROUND}
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first, again = (few.post(path, json=bodies[path], headers=key) for _ in range(2))
    assert (first.headers[LIMIT], again.headers["x-headrace-replayed"]) == ("2", "true")
    assert told(again.headers) == {}
    when(few, first.headers["x-headrace-job-id"])


def test_of_several_prompts_together_the_last_job_tells_what_remains(few: httpx.Client) -> None:
    for stream in (False, True):
        answer = few.post("/v1/completions", json={"model": "echo", "prompt": ["a", "b"], "stream": stream})
        assert answer.headers[LIMIT] == "2"
        # The first may have begun before the second came.
        assert answer.headers[REMAINING] in ("0", "1")
