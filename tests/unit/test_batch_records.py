"""Lines of a batch as pure functions: what they ask for, and how their jobs' ends are told, by OpenAI's schemas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.contracts import Failure, Job, Outcome, State, Usage, pool_of
from common.errors import BadRequest
from common.ledger.batch_lines import BAD, GOOD, UNDONE, LineEnd
from common.ledger.batches import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FAILED, FINALIZING, IN_PROGRESS, Batch
from common.ledger.files import File
from gateway.batches import records
from gateway.batches.lines import Fault
from gateway.batches.records import (
    REQUESTS,
    Ending,
    Stub,
    ended_line,
    line_digest,
    line_job_id,
    refused_line,
    request_of,
    undone_line,
    used_tokens,
)
from gateway.batches.validating import errors_of
from gateway.dialects.batches import batch_object, parse_batch
from gateway.dialects.files import file_object, page_object
from gateway.dialects.surfaces import surface_of
from tests.support.published import published

BATCH = "batch_" + "ab" * 16
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/embeddings": {"model": "m", "input": "hi", "encoding_format": "base64"},
    "/v1/responses": {"model": "m", "input": "hi", "metadata": {"own": "yes"}},
}
MESSAGE = {"role": "assistant", "content": "hello", "refusal": None}
TEXT = orjson.dumps(
    {
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
)
VECTOR = orjson.dumps({"embeddings": ["AACAPw=="], "usage": {"prompt_tokens": 1, "total_tokens": 1}})
ANSWERS = {
    "/v1/chat/completions": "CreateChatCompletionResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/embeddings": "CreateEmbeddingResponse",
    "/v1/responses": "Response",
}
STUB = Stub(3, line_digest(BATCH, 3), b'"my \\u0000 id"')
WON = Outcome(State.SUCCEEDED, "stop", Usage(1, 2), timings_ms={"total": 5})
BUSY = Failure("upstream_busy", "Busy.")


def data(endpoint: str, **changes: Any) -> bytes:
    """A line for this endpoint, its body with these changes."""
    body = BODIES[endpoint] | changes
    return orjson.dumps({"custom_id": "c", "method": "POST", "url": endpoint, "body": body})


def a_job(endpoint: str) -> Job:
    """The job that the line becomes."""
    request = request_of(BATCH, endpoint, data(endpoint))
    return Job(
        id=line_job_id("default", BATCH, 3),
        pool="default",
        tenant="t",
        endpoint=request.asked.endpoint,
        model="m",
        body=request.asked.body,
        dialect=request.asked.dialect,
        asked=request.asked.asked,
        metadata=request.metadata,
        batch=BATCH,
    )


def told(end: LineEnd) -> dict[str, Any]:
    """The line of a file that this end is."""
    assert end.number == 3 and end.record.endswith(b"}\n") and end.record.count(b"\n") == 1
    return orjson.loads(end.record)


# --- what lines ask for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", REQUESTS)
def test_a_line_asks_for_what_its_body_would_ask_for_alone(endpoint: str) -> None:
    job = a_job(endpoint)
    assert surface_of(job).endpoint == endpoint
    own = {"own": "yes"} if endpoint == "/v1/responses" else {"batch_id": BATCH, "custom_id": "c"}
    assert job.metadata == own


@pytest.mark.parametrize(
    ("endpoint", "changes", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"api_base": "http://x"}, "api_base"),
        ("/v1/completions", {"suffix": "x"}, "suffix"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/responses", {"background": True}, "background"),
        ("/v1/responses", {"previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
def test_a_fault_of_a_request_is_named_as_in_its_body(endpoint: str, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        request_of(BATCH, endpoint, data(endpoint, **changes))
    assert refused.value.failure.param == param


def test_a_line_is_one_job_for_ever_and_another_than_any_other_line() -> None:
    ids = {line_job_id("default", batch, number) for batch in (BATCH, "batch_other") for number in (1, 11)}
    assert len(ids) == 4 and line_job_id("default", BATCH, 1) in ids
    assert {pool_of(one) for one in ids} == {"default"}


# --- how they end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", REQUESTS)
def test_an_answer_is_told_as_its_endpoint_would_tell_it(endpoint: str) -> None:
    job = a_job(endpoint)
    result = VECTOR if endpoint == "/v1/embeddings" else TEXT
    end = ended_line(STUB, Ending(job, 7_000, WON, result), None)
    line = told(end)
    assert end.state == GOOD and line["error"] is None
    assert (line["id"], line["custom_id"]) == (f"batch_req_{STUB.digest}", "my \0 id")
    assert (line["response"]["status_code"], line["response"]["request_id"]) == (200, job.id)
    body = line["response"]["body"]
    schema = published(ANSWERS[endpoint])
    if endpoint == "/v1/embeddings":
        # The schema knows numbers only; base64 is asked for all the same, by OpenAI's own clients.
        assert body["data"][0].pop("embedding") == "AACAPw=="
        body["data"][0]["embedding"] = [1.0]
    schema.validate({name: value for name, value in body.items() if value is not None or name not in ("user", "usage")})
    if endpoint == "/v1/responses":
        assert body["metadata"] == {"own": "yes"} and body["completed_at"] is not None


@pytest.mark.parametrize(
    ("outcome", "why", "state", "shown"),
    [
        (Outcome(State.FAILED, failure=BUSY), None, BAD, (503, "upstream_busy")),
        (Outcome(State.FAILED, failure=BUSY), records.CANCELLED, BAD, (503, "upstream_busy")),
        (Outcome(State.CANCELLED, failure=Failure("cancelled", "x")), None, BAD, (499, "cancelled")),
        (Outcome(State.CANCELLED), records.CANCELLED, UNDONE, "batch_cancelled"),
        (Outcome(State.CANCELLED), records.EXPIRED, UNDONE, "batch_expired"),
        (Outcome(State.EXPIRED, failure=Failure("deadline_exceeded", "x")), None, UNDONE, "batch_expired"),
        (Outcome(State.FAILED, failure=Failure("redis_lost", "x")), None, UNDONE, "batch_expired"),
        (Outcome(State.SUCCEEDED), None, BAD, (500, "internal_error")),
    ],
)
def test_a_job_without_an_answer_is_told_with_its_reason(
    outcome: Outcome, why: Failure | None, state: str, shown: Any
) -> None:
    end = ended_line(STUB, Ending(a_job("/v1/chat/completions"), 7_000, outcome, b""), why)
    line = told(end)
    assert end.state == state
    if state == UNDONE:
        assert line["response"] is None and line["error"]["code"] == shown and line["error"]["message"]
    else:
        assert line["error"] is None
        response = line["response"]
        assert (response["status_code"], response["body"]["error"]["code"]) == shown
        published("ErrorResponse").validate(response["body"])


def test_a_line_that_was_refused_has_the_answer_that_it_would_have_got_alone() -> None:
    line = told(refused_line(STUB, Failure("model_not_found", "No.", "model")))
    assert line["response"]["status_code"] == 404
    assert line["response"]["body"]["error"] == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_line_is_one_however_its_reader_splits_lines() -> None:
    text = "a\u2028b\x85c\u2029d\n\x1ee é"
    stub = Stub(3, STUB.digest, orjson.dumps(text))
    result = orjson.loads(TEXT)
    result["choices"][0]["message"]["content"] = text
    end = ended_line(stub, Ending(a_job("/v1/chat/completions"), 7_000, WON, orjson.dumps(result)), None)
    assert len(end.record.decode().splitlines()) == 1
    line = told(end)
    assert line["custom_id"] == line["response"]["body"]["choices"][0]["message"]["content"] == text


def test_a_line_that_never_ran_has_no_response() -> None:
    assert told(undone_line(STUB, records.EXPIRED))["response"] is None


def test_tokens_are_counted_with_what_was_cached_and_what_was_thought() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 4}}
    outcome = replace(WON, usage=Usage(10, 20, details))
    assert used_tokens(outcome) == {
        "input_tokens": 10,
        "cached_tokens": 3,
        "output_tokens": 20,
        "reasoning_tokens": 4,
    }
    assert used_tokens(Outcome(State.FAILED)) == {}
    junk = {"prompt_tokens_details": {"cached_tokens": "x"}, "completion_tokens_details": {"reasoning_tokens": [2**70]}}
    counts = used_tokens(replace(WON, usage=Usage(10, 20, junk)))
    assert (counts["cached_tokens"], counts["reasoning_tokens"]) == (0, 0)
    assert used_tokens(WON)["cached_tokens"] == 0


# --- the objects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [IN_PROGRESS, FINALIZING, CANCELLING, COMPLETED, FAILED, EXPIRED, CANCELLED])
def test_a_batch_is_what_openai_says_a_batch_is(status: str) -> None:
    ended = status in (COMPLETED, FAILED, EXPIRED, CANCELLED)
    batch = Batch(
        BATCH,
        "t",
        "/v1/responses",
        "file-x",
        1_000,
        2_000,
        status=status,
        model="m",
        metadata=b'{"a":"b"}',
        errors=errors_of([Fault("empty_file", "Empty."), Fault("x", "y", "z", 4)]),
        in_progress_ms=3_000,
        ended_ms=9_999 if ended else None,
        input_tokens=1,
        output_tokens=2,
    )
    shown = batch_object(batch)
    published("Batch").validate(shown)
    published("ListBatchesResponse").validate(page_object([batch], [shown], has_more=False))
    assert shown["errors"]["data"][1] == {"code": "x", "message": "y", "param": "z", "line": 4}
    times = {
        name: at for name, at in shown.items() if name.removesuffix("_at") in (COMPLETED, FAILED, EXPIRED, CANCELLED)
    }
    assert times == ({f"{status}_at": 9} if ended else {})
    assert shown["usage"]["total_tokens"] == 3 and shown["expires_at"] == 2


def test_a_file_is_what_openai_says_a_file_is() -> None:
    for expires_ms in (None, 5_000):
        file = File("file-x", "t", "a.jsonl", "batch_output", 3, 1_000, expires_ms)
        shown = file_object(file)
        published("OpenAIFile").validate(shown)
        published("ListFilesResponse").validate(page_object([file], [shown], has_more=True))
        assert shown.get("expires_at") == (expires_ms and 5)
    published("ListFilesResponse").validate(page_object([], [], has_more=False))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": None}, "input_file_id"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, None),
        ({"metadata": {"headers": "x"}}, "headers"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3_600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3_599}}, "output_expires_after.seconds"),
        ({"window": "24h"}, "window"),
    ],
)
def test_a_request_for_a_batch_that_cannot_be_served_names_its_field(changes: Any, param: str | None) -> None:
    good = {"input_file_id": "file-x", "endpoint": "/v1/responses", "completion_window": "24h"}
    assert parse_batch(orjson.dumps(good | {"metadata": {"proxy": "x"}}))["endpoint"] == "/v1/responses"
    with pytest.raises(BadRequest) as refused:
        parse_batch(orjson.dumps(good | changes))
    if param is not None:
        assert refused.value.failure.param == param
