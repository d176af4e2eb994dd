"""Batches over HTTP, by OpenAI's own client: made, polled, read, cancelled, of every endpoint, by two tenants."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tests.journeys.conftest import MOST_WAITING
from tests.support.fleet import until
from tests.support.published import published

pytestmark = pytest.mark.timeout(60)

CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]},
    "/v1/completions": {"model": "echo", "prompt": "hello there"},
    "/v1/embeddings": {"model": "echo", "input": ["hello there", "you"]},
    "/v1/responses": {"model": "echo", "input": "hello there"},
}
ANSWERS = {
    CHAT: "CreateChatCompletionResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/embeddings": "CreateEmbeddingResponse",
    "/v1/responses": "Response",
}
ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, endpoint: str = CHAT, **changes: Any) -> str:
    """A line for this endpoint, its body with these changes."""
    body = BODIES[endpoint] | changes
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body})


def create(sdk: openai.OpenAI, lines: Iterable[str], endpoint: str = CHAT, **words: Any) -> Batch:
    """A batch of these lines."""
    file = sdk.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return sdk.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # pyright: ignore[reportArgumentType]
        completion_window="24h",
        **words,
    )


def ended(sdk: openai.OpenAI, batch: Batch) -> Batch:
    """The batch when it has ended."""

    def look() -> Batch | None:
        found = sdk.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    found = until(look)
    assert found is not None
    return found


def read(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file."""
    assert file_id is not None
    return [json.loads(one) for one in sdk.files.content(file_id).read().splitlines()]


@pytest.mark.parametrize("endpoint", BODIES)
def test_each_endpoint_answers_its_lines_as_it_answers_alone(
    sdk: openai.OpenAI, elsewhere: httpx.Client, endpoint: str
) -> None:
    batch = create(sdk, [line("a", endpoint), line("b", endpoint)], endpoint, metadata={"who": "me"})
    assert batch.status == "validating" and batch.expires_at == batch.created_at + 86_400
    batch = ended(sdk, batch)
    shown = elsewhere.get(f"/v1/batches/{batch.id}").json()
    published("Batch").validate(shown)
    assert (shown["status"], shown["metadata"], shown["model"]) == ("completed", {"who": "me"}, "echo")
    assert shown["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert shown["usage"]["total_tokens"] > 0
    rows = {row["custom_id"]: row for row in read(sdk, batch.output_file_id)}
    assert sorted(rows) == ["a", "b"]
    for row in rows.values():
        assert row["error"] is None and row["response"]["status_code"] == 200
        body = {k: v for k, v in row["response"]["body"].items() if v is not None or k not in ("user", "usage")}
        published(ANSWERS[endpoint]).validate(body)
        assert "hello there" in json.dumps(body) or endpoint == "/v1/embeddings"
    job = elsewhere.get(f"/v1/jobs/{rows['a']['response']['request_id']}").json()
    assert (job["status"], job["priority"]) == ("succeeded", "batch")


def test_lines_that_fail_are_told_beside_those_that_do_not(sdk: openai.OpenAI) -> None:
    lines = [line("good"), line("bad", temperature=9), line("none", model="no-such-model"), line("url", api_base="x")]
    batch = ended(sdk, create(sdk, lines))
    assert batch.status == "completed" and batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 3)
    told = {row["custom_id"]: row["response"] for row in read(sdk, batch.error_file_id)}
    assert {name: row["status_code"] for name, row in told.items()} == {"bad": 400, "none": 404, "url": 400}
    assert told["bad"]["body"]["error"]["param"] == "temperature"


def test_an_input_that_is_not_valid_fails_with_every_fault(sdk: openai.OpenAI) -> None:
    lines = [line("a"), line("a"), "", "{", line("b", "/v1/completions"), line("c", stream=True)]
    batch = ended(sdk, create(sdk, lines))
    assert batch.status == "failed" and batch.failed_at and batch.errors is not None and batch.errors.data is not None
    assert [(one.code, one.line) for one in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 4),
        ("mismatched_url", 5),
        ("unsupported_parameter", 6),
    ]


@pytest.mark.lengthy
def test_more_lines_than_the_queue_takes_at_once_only_take_longer(sdk: openai.OpenAI, client: httpx.Client) -> None:
    numbers = range(2 * MOST_WAITING)
    batch = ended(sdk, create(sdk, [line(f"c{number}") for number in numbers]))
    rows = read(sdk, batch.output_file_id)
    assert sorted(row["custom_id"] for row in rows) == sorted(f"c{number}" for number in numbers)
    assert batch.error_file_id is None
    listed = client.get("/v1/jobs?limit=100").json()["data"]
    assert not [job for job in listed if job["metadata"].get("batch_id") == batch.id]


def test_a_batch_that_is_cancelled_says_so_of_every_line_that_did_not_run(sdk: openai.OpenAI) -> None:
    # Nobody serves this model.
    batch = create(sdk, [line(f"c{number}", model="unserved") for number in range(5)])
    until(lambda: sdk.batches.retrieve(batch.id).status == "in_progress")
    asked = sdk.batches.cancel(batch.id)
    assert asked.status in ("cancelling", "cancelled") and asked.cancelling_at
    batch = ended(sdk, batch)
    assert batch.status == "cancelled" and batch.cancelled_at and batch.output_file_id is None
    rows = read(sdk, batch.error_file_id)
    assert sorted(row["custom_id"] for row in rows) == [f"c{number}" for number in range(5)]
    assert {(row["response"], row["error"]["code"]) for row in rows} == {(None, "batch_cancelled")}
    # Once more says the same; of one that has ended by itself it is refused, and not with a 409.
    assert sdk.batches.cancel(batch.id).status == "cancelled"
    done = ended(sdk, create(sdk, [line("a")]))
    with pytest.raises(openai.BadRequestError):
        sdk.batches.cancel(done.id)


def test_batches_are_listed_to_their_tenant_alone(
    sdk: openai.OpenAI, client: httpx.Client, stranger: httpx.Client
) -> None:
    made = [create(sdk, [line("a")]).id for _ in range(3)]
    page = client.get("/v1/batches?limit=2").json()
    published("ListBatchesResponse").validate(page)
    assert page["has_more"] and len(page["data"]) == 2
    seen = [batch.id for batch in sdk.batches.list(limit=2)]
    assert set(made) <= set(seen) and len(seen) == len(set(seen))
    theirs = stranger.get("/v1/batches").json()
    assert not {one["id"] for one in theirs["data"]} & set(seen)
    for answer in (
        stranger.get(f"/v1/batches/{made[0]}"),
        stranger.post(f"/v1/batches/{made[0]}/cancel"),
        stranger.get(f"/v1/batches?after={made[0]}"),
    ):
        assert answer.status_code == 404
        published("ErrorResponse").validate(answer.json())


def test_a_batch_of_a_file_that_is_not_there_or_not_for_it_is_refused(
    sdk: openai.OpenAI, client: httpx.Client, stranger: httpx.Client
) -> None:
    other = sdk.files.create(file=("a", b"x"), purpose="user_data")
    mine = sdk.files.create(file=("a", line("a").encode()), purpose="batch")
    for caller, file_id, status in ((client, "file-none", 404), (client, other.id, 400), (stranger, mine.id, 404)):
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        answer = caller.post("/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, "input_file_id")


def test_the_same_idempotency_key_makes_one_batch(sdk: openai.OpenAI, client: httpx.Client) -> None:
    file = sdk.files.create(file=("a", line("a").encode()), purpose="batch")
    body: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    head = {"idempotency-key": f"key of {file.id}"}
    first, again = (client.post("/v1/batches", json=body, headers=head).json()["id"] for _ in range(2))
    assert first == again
    other = client.post("/v1/batches", json=body | {"metadata": {"a": "b"}}, headers=head)
    assert other.status_code == 422
    assert client.post("/v1/batches", json=body).json()["id"] != first
