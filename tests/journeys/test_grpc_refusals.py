"""gRPC over the whole stack: who and what is refused, by which status, and what a refusal tells."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.conftest import MOST_WAITING
from tests.support.fleet import OTHER_KEY, Fleet
from tests.support.grpc_client import Caller, asked, caller, chat, refused
from tests.support.say import chat as chat_body
from tests.support.say import submit, when

pytestmark = pytest.mark.timeout(60)

Code = grpc.StatusCode

PLAIN = chat(words="hi")


@pytest.mark.parametrize("method", ["ChatCompletion", "GetJob", "WatchJob", "SubmitJob"])
@pytest.mark.parametrize("key", [None, "hr-no-key-of-anyone", ""])
def test_a_call_without_a_good_key_is_refused(fleet: Fleet, method: str, key: str | None) -> None:
    with caller(fleet, key=key) as stranger:
        found = refused(stranger, method, getattr(pb, f"{method}Request")())
    assert (found.code, found.reason) == (Code.UNAUTHENTICATED, "invalid_api_key")


def test_the_key_may_come_as_x_api_key(fleet: Fleet) -> None:
    with caller(fleet, key=None) as one:
        answer = one.ask("Infer", pb.InferRequest(prompt=pb.Prompt(text="hi")), ("x-api-key", OTHER_KEY))
    assert answer.text == "hi"


def with_extra(extra: bytes, **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(model="echo", messages=[pb.ChatMessage(role="user", content="x")], extra_json=extra, **fields)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asked(pb.ChatRequest(model="echo")), "messages"),
        (asked(with_extra(b'{"model":"other"}')), "model"),
        (asked(with_extra(b'{"stream":true}')), "stream"),
        (asked(with_extra(b'{"api_base":"http://x"}')), "api_base"),
        (asked(with_extra(b'{"n":9}')), "n"),
        (asked(with_extra(b"", temperature=float("nan"))), "temperature"),
        (asked(with_extra(b"", temperature=3.0)), "temperature"),
        (asked(PLAIN, delay_ms=5), "delay_ms"),
        (asked(PLAIN, deadline_ms=0), "deadline_ms"),
        (asked(PLAIN, priority=77), "priority"),
        (asked(PLAIN, idempotency_key="é"), "Idempotency-Key"),
    ],
)
def test_what_http_refuses_is_refused_by_the_fields_name(
    rpc: Caller, request_: pb.ChatCompletionRequest, param: str
) -> None:
    found = refused(rpc, "ChatCompletion", request_)
    assert (found.code, found.param) == (Code.INVALID_ARGUMENT, param)
    assert str(found.trailers["x-request-id"]).startswith("req_")


def test_a_json_piece_that_is_none_is_refused(rpc: Caller) -> None:
    for extra in (b"{", b"[]", b'{"a":1,"a":2}', b"\xff"):
        found = refused(rpc, "ChatCompletion", asked(with_extra(extra)))
        assert (found.code, found.reason) == (Code.INVALID_ARGUMENT, "invalid_json")


def test_a_view_of_a_later_version_is_refused(rpc: Caller, client: httpx.Client) -> None:
    later: Any = 77
    found = refused(rpc, "GetJob", pb.GetJobRequest(job_id=submit(client, chat_body(words="x")), view=later))
    assert (found.code, found.param) == (Code.INVALID_ARGUMENT, "view")


def test_an_unknown_model_and_an_unknown_job_are_not_found(rpc: Caller) -> None:
    model = refused(rpc, "ChatCompletion", asked(pb.ChatRequest(model="none", messages=PLAIN.messages)))
    assert (model.code, model.reason, model.param) == (Code.NOT_FOUND, "model_not_found", "model")
    for job_id in ("", "x", "job_default_" + "0" * 32, "job_nowhere_" + "0" * 32):
        for method in ("GetJob", "WatchJob", "CancelJob"):
            found = refused(rpc, method, getattr(pb, f"{method}Request")(job_id=job_id))
            assert (found.code, found.reason) == (Code.NOT_FOUND, "job_not_found")


def test_another_tenants_job_is_like_one_that_never_was(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(words="mine"))
    with caller(fleet, key=OTHER_KEY) as stranger:
        for method in ("GetJob", "WatchJob", "CancelJob"):
            theirs = refused(stranger, method, getattr(pb, f"{method}Request")(job_id=job_id))
            none = refused(stranger, method, getattr(pb, f"{method}Request")(job_id="job_default_" + "0" * 32))
            assert (theirs.code, theirs.message) == (none.code, none.message) == (Code.NOT_FOUND, none.message)
    assert when(client, job_id)["status"] == "succeeded"


def test_a_message_beyond_the_body_limit_is_refused(rpc: Caller) -> None:
    found = _plainly_refused(rpc, asked(chat(words="x" * (4 * 1024 * 1024))))
    assert found is Code.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused(rpc: Caller) -> None:
    with pytest.raises(grpc.RpcError) as error:
        rpc.stub.ChatCompletion(
            asked(chat(words="x" * 4_000)), metadata=rpc.metadata, timeout=10, compression=grpc.Compression.Gzip
        )
    assert error.value.code() is Code.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


def _plainly_refused(rpc: Caller, request: pb.ChatCompletionRequest) -> grpc.StatusCode:
    """The status of a call that gRPC itself refused."""
    with pytest.raises(grpc.RpcError) as error:
        rpc.ask("ChatCompletion", request)
    return error.value.code()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_full_queue_says_when_to_try_again(rpc: Caller, client: httpx.Client) -> None:
    body = chat_body("crowded", words="wait")
    waiting = [submit(client, body, priority="interactive") for _ in range(MOST_WAITING)]
    found = refused(rpc, "ChatCompletion", asked(chat("crowded", words="x")))
    for job_id in waiting:
        client.post(f"/v1/jobs/{job_id}/cancel")
    assert (found.code, found.reason) == (Code.RESOURCE_EXHAUSTED, "queue_full")
    retry_ms = found.detail(RetryInfo).retry_delay.ToMilliseconds()
    assert retry_ms >= 1_000
    assert int(found.trailers["grpc-retry-pushback-ms"]) == retry_ms


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ({"error": "upstream_refused"}, Code.INVALID_ARGUMENT, "upstream_refused"),
        ({"error": "upstream_credentials"}, Code.INTERNAL, "upstream_credentials"),
        ({"error": "context_length_exceeded"}, Code.INVALID_ARGUMENT, "context_length_exceeded"),
        ({"tokens": 5, "token_ms": 20, "fail_at": 3}, Code.ABORTED, "upstream_interrupted"),
    ],
)
def test_what_an_upstream_refuses_is_the_calls_status(
    rpc: Caller, script: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    request = chat(**script)
    found = refused(rpc, "ChatCompletionStream", pb.ChatCompletionStreamRequest(chat=request))
    assert (found.code, found.reason) == (code, reason)
    assert str(found.trailers["x-headrace-job-id"]).startswith("job_default_")
