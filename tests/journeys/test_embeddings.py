"""Embeddings as clients ask for them; and that jobs which run at once are one call to the model's server."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from struct import unpack
from typing import Any

import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from common.tokens.counting import count_tokens
from tests.support.embedder import BAD, BROKEN, SILENT, Embedder, vector_of
from tests.support.fleet import Fleet, until
from tests.support.say import follow, frames, record, when

pytestmark = pytest.mark.timeout(60)

EMBEDDINGS = "/v1/embeddings"
CONFIG = """
backends:
  - {name: echo, kind: echo}
  - {name: remote, kind: vllm, base_url: "${HEADRACE_TEST_REMOTE}"}
  - {name: narrow, kind: vllm, base_url: "${HEADRACE_TEST_REMOTE}", concurrency: 1}
models:
  echo: {targets: [{backend: echo, model: echo}]}
  vectors: {targets: [{backend: remote, model: bge}], price: {input: 1, output: 0}}
  narrow: {targets: [{backend: narrow, model: bge}]}
"""


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    """The server behind the models `vectors` and `narrow`."""
    with Embedder().in_a_thread() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def _own_fleet(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    # The lease is long enough for a worker to be paused while jobs are submitted.
    fleet = Fleet(
        tmp_path_factory.mktemp("embeddings"),
        config=CONFIG,
        lease_s=10,
        max_output_bytes=400_000,
        max_attempts=2,
        test_remote=embedder.url,
    )
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def fleet(_own_fleet: Fleet) -> Iterator[Fleet]:
    """A fleet of this file's own; no process may log an error."""
    yield _own_fleet
    for name, said in _own_fleet.news().items():
        assert '"level":"error"' not in said and "Traceback" not in said, f"{name}:\n{said}"
        assert _own_fleet.members[name].runs, name


def embed(client: httpx.Client, given: Any, model: str = "vectors", **more: Any) -> httpx.Response:
    return client.post(EMBEDDINGS, json={"model": model, "input": given, **more})


def submit(client: httpx.Client, given: Any, model: str = "vectors", **more: Any) -> str:
    job = {"endpoint": EMBEDDINGS, "body": {"model": model, "input": given}, **more}
    answer = client.post("/v1/jobs", json=job)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def vectors(document: dict[str, Any]) -> list[list[float]]:
    """The vectors, by their index."""
    assert [item["index"] for item in document["data"]] == list(range(len(document["data"])))
    return [item["embedding"] for item in document["data"]]


def claimed_together(fleet: Fleet, client: httpx.Client, *inputs: Any, model: str = "vectors") -> list[str]:
    """The ids of jobs that wait all before the worker sees the first."""
    fleet.freeze("worker-0")
    try:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda given: submit(client, given, model), inputs))
    finally:
        fleet.thaw("worker-0")


# --- as OpenAI's client asks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["echo", "vectors"])
def test_the_sdk_gets_a_vector_for_each_input(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.embeddings.create(model=model, input=["one two", "three"])
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    again = sdk.embeddings.create(model=model, input="three")
    assert again.data[0].embedding == answer.data[1].embedding
    assert again.usage.prompt_tokens == again.usage.total_tokens > 0
    assert (again.object, again.model, again.data[0].object) == ("list", model, "embedding")


def test_the_sdk_gets_the_same_numbers_whichever_way_it_asks(sdk: openai.OpenAI) -> None:
    unasked = sdk.embeddings.create(model="vectors", input="herons")
    numbers = sdk.embeddings.create(model="vectors", input="herons", encoding_format="float")
    assert unasked.data[0].embedding == numbers.data[0].embedding == vector_of("herons")


def test_an_answer_has_every_key_that_openai_promises(client: httpx.Client) -> None:
    raw = embed(client, "herons")
    assert raw.status_code == 200
    assert raw.headers["x-headrace-job-id"].startswith("job_")
    CreateEmbeddingResponse.model_validate_json(raw.content)
    assert set(raw.json()) == {"object", "data", "model", "usage"}
    assert raw.json()["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_base64_is_little_endian_float32(client: httpx.Client) -> None:
    answer = embed(client, "herons", encoding_format="base64").json()
    raw = b64decode(answer["data"][0]["embedding"])
    assert list(unpack(f"<{len(raw) // 4}f", raw)) == vector_of("herons")


@pytest.mark.parametrize("model", ["echo", "vectors"])
@pytest.mark.parametrize("given", [[3, 1, 4], [[3, 1, 4], [1, 5]]])
def test_tokens_are_taken_too(client: httpx.Client, model: str, given: Any) -> None:
    answer = embed(client, given, model).json()
    wanted = 2 if isinstance(given[0], list) else 1
    assert len(vectors(answer)) == wanted
    assert answer["usage"]["prompt_tokens"] == (5 if wanted == 2 else 3)


def test_where_the_upstream_tells_no_usage_the_inputs_are_counted(client: httpx.Client) -> None:
    quiet = 'echo: {"usage": false}'
    tokens = count_tokens([quiet]) + 6
    usage = embed(client, [quiet, "antidisestablishmentarianism"], "echo").json()["usage"]
    assert usage == {"prompt_tokens": tokens, "total_tokens": tokens, "estimated": True}


@pytest.mark.parametrize("model", ["echo", "vectors"])
def test_dimensions_are_heeded(client: httpx.Client, model: str) -> None:
    (vector,) = vectors(embed(client, "herons", model, dimensions=5).json())
    assert len(vector) == 5


def test_many_inputs_come_back_in_their_order(client: httpx.Client) -> None:
    given = [f"text {number}" for number in range(2_048)]
    assert vectors(embed(client, given).json()) == [vector_of(one) for one in given]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a"] * 2_049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "api_base": "http://127.0.0.1"}, "api_base"),
        ({"input": "a", "model": "unknown"}, "model"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_field(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    answer = client.post(EMBEDDINGS, json={"model": "vectors", **body})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_the_servers_refusal_is_the_callers_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="vectors", input=f"an {BAD} text")
    assert caught.value.param == "input"


def test_vectors_that_are_too_long_together_are_refused(client: httpx.Client) -> None:
    answer = embed(client, [f"text {number}" for number in range(200)], "echo", dimensions=2_000)
    assert answer.status_code == 400
    assert "400000 bytes" in answer.json()["error"]["message"]


# --- as jobs ----------------------------------------------------------------------------------------------------------


def test_a_jobs_result_is_what_the_request_would_have_been_answered(client: httpx.Client) -> None:
    job_id = submit(client, ["one", "two"])
    found = when(client, job_id, "succeeded")
    assert found["endpoint"] == EMBEDDINGS
    assert vectors(found["result"]) == [vector_of("one"), vector_of("two")]
    assert found["result"]["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert (found["usage"]["prompt_tokens"], found["cost_usd"]) == (6, 0.000006)
    assert found["result"] == record(client, embed(client, ["one", "two"]).headers["x-headrace-job-id"])["result"]


def test_a_list_of_jobs_leaves_the_vectors_out(client: httpx.Client) -> None:
    job_id = embed(client, "one").headers["x-headrace-job-id"]
    (job,) = [job for job in client.get("/v1/jobs").json()["data"] if job["id"] == job_id]
    assert (job["status"], job["result"], job["usage"]["prompt_tokens"]) == ("succeeded", None, 3)


def test_a_result_too_large_for_a_message_comes_all_the_same(client: httpx.Client) -> None:
    given = [f"text {number}" for number in range(1_000)]
    found = vectors(embed(client, given, dimensions=60).json())
    assert found[0] == vector_of(given[0], 60) and found[-1] == vector_of(given[-1], 60)


def test_an_idempotency_key_gives_the_stored_answer(client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    headers = {"idempotency-key": "embed once"}
    body = {"model": "vectors", "input": "one"}
    first, second = (client.post(EMBEDDINGS, json=body, headers=headers) for _ in range(2))
    assert first.content == second.content
    assert len(embedder.calls) == before + 1
    other = client.post(EMBEDDINGS, json={**body, "input": "two"}, headers=headers)
    assert other.status_code == 422


def test_a_jobs_events_are_its_end(client: httpx.Client) -> None:
    job_id = submit(client, "one")
    status, raw = follow(client, job_id)
    assert status == 200
    # While it waits for the worker its reader may be told so.
    assert [frame.data for frame in frames(raw) if frame.name != "queue"] == ["[DONE]"]


def test_a_failed_server_is_asked_again_and_then_told_of(client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    found = when(client, submit(client, f"an {BROKEN} engine"), "failed")
    assert found["error"]["code"] == "upstream_error"
    assert found["attempt"] == 2
    assert len(embedder.calls) == before + 2


def test_a_cancelled_job_hangs_up_on_the_server(client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    job_id = submit(client, f"a {SILENT}")
    until(lambda: len(embedder.calls) > before)
    open_before = embedder.open
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert when(client, job_id)["status"] == "cancelled"
    until(lambda: embedder.open < open_before, 5, "the call upstream went on")


# --- together ---------------------------------------------------------------------------------------------------------


def test_jobs_claimed_together_are_one_call_and_each_gets_its_own(
    fleet: Fleet, client: httpx.Client, embedder: Embedder
) -> None:
    before = len(embedder.calls)
    given = [[f"text {number}", f"{number}"] if number % 3 else f"text {number}" for number in range(30)]
    ids = claimed_together(fleet, client, *given)
    found = [when(client, job_id, "succeeded") for job_id in ids]
    for one, job in zip(given, found, strict=True):
        assert vectors(job["result"]) == [vector_of(text) for text in (one if isinstance(one, list) else [one])]
    (call,) = embedder.calls[before:]
    assert sum(job["usage"]["prompt_tokens"] for job in found) == sum(map(len, call))
    assert all(job["usage"]["apportioned"] for job in found)


def test_one_bad_input_fails_its_own_job_and_no_other(fleet: Fleet, client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    good = [f"fine {number}" for number in range(5)]
    *ids, bad = claimed_together(fleet, client, *good, f"an {BAD} one")
    for one, job_id in zip(good, ids, strict=True):
        job = when(client, job_id, "succeeded")
        assert vectors(job["result"]) == [vector_of(one)]
        assert job["usage"]["prompt_tokens"] == len(one)
    error = when(client, bad, "failed")["error"]
    assert (error["code"], error["param"]) == ("upstream_refused", "input")
    assert [len(call) for call in embedder.calls[before:]] == [6, 1, 1, 1, 1, 1, 1]


def test_a_cancelled_job_leaves_its_call_to_the_others(fleet: Fleet, client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    ids = claimed_together(fleet, client, "first", f"a {SILENT}", "last")
    until(lambda: len(embedder.calls) > before)
    (call,) = embedder.calls[before:]
    assert len(call) == 3
    open_before = embedder.open
    for job_id in ids[:2]:
        client.post(f"/v1/jobs/{job_id}/cancel")
        assert when(client, job_id)["status"] == "cancelled"
    assert record(client, ids[2])["status"] == "running"
    assert embedder.open == open_before
    client.post(f"/v1/jobs/{ids[2]}/cancel")
    assert when(client, ids[2])["status"] == "cancelled"
    until(lambda: embedder.open < open_before, 5, "the call went on with nobody left")
    assert len(embedder.calls) == before + 1


def test_a_backend_of_one_slot_takes_all_that_wait_in_one_call(
    fleet: Fleet, client: httpx.Client, embedder: Embedder
) -> None:
    before = len(embedder.calls)
    blocking = submit(client, f"a {SILENT}", "narrow")
    until(lambda: len(embedder.calls) > before)
    ids = [submit(client, f"waiting {number}", "narrow") for number in range(10)]
    assert {record(client, job_id)["status"] for job_id in ids} == {"queued"}
    client.post(f"/v1/jobs/{blocking}/cancel")
    for number, job_id in enumerate(ids):
        assert vectors(when(client, job_id, "succeeded")["result"]) == [vector_of(f"waiting {number}")]
    assert [len(call) for call in embedder.calls[before + 1 :]] == [10]


def test_a_server_that_takes_fewer_at_once_gets_fewer(fleet: Fleet, client: httpx.Client, embedder: Embedder) -> None:
    embedder.most = 4
    try:
        before = len(embedder.calls)
        for job_id in claimed_together(fleet, client, *[f"few {n}" for n in range(6)], model="narrow"):
            when(client, job_id, "succeeded")
        assert [len(call) for call in embedder.calls[before:]] == [6, 1, 1, 1, 1, 1, 1]
        before = len(embedder.calls)
        for job_id in claimed_together(fleet, client, *[f"less {n}" for n in range(6)], model="narrow"):
            when(client, job_id, "succeeded")
        assert [len(call) for call in embedder.calls[before:]] == [3, 3]
    finally:
        embedder.most = 2_048


def test_requests_of_two_tenants_share_a_call_but_no_vectors(
    fleet: Fleet, client: httpx.Client, stranger: httpx.Client, embedder: Embedder
) -> None:
    before = len(embedder.calls)
    fleet.freeze("worker-0")
    mine = submit(client, "mine")
    theirs = submit(stranger, "theirs")
    fleet.thaw("worker-0")
    assert vectors(when(client, mine, "succeeded")["result"]) == [vector_of("mine")]
    assert vectors(when(stranger, theirs, "succeeded")["result"]) == [vector_of("theirs")]
    assert stranger.get(f"/v1/jobs/{mine}").status_code == 404
    assert len(embedder.calls) == before + 1


def test_requests_that_want_different_things_stay_apart(fleet: Fleet, client: httpx.Client, embedder: Embedder) -> None:
    before = len(embedder.calls)
    fleet.freeze("worker-0")
    bodies = [
        {"input": "a"},
        {"input": "b", "dimensions": 4},
        {"input": [1, 2]},
        {"input": "c", "encoding_format": "base64"},
    ]
    with ThreadPoolExecutor(4) as threads:
        jobs = [{"endpoint": EMBEDDINGS, "body": {"model": "vectors", **body}} for body in bodies]
        ids = [answer.json()["id"] for answer in threads.map(lambda job: client.post("/v1/jobs", json=job), jobs)]
    fleet.thaw("worker-0")
    results = [when(client, job_id, "succeeded")["result"] for job_id in ids]
    assert [len(vectors(result)[0]) for result in results[:3]] == [8, 4, 8]
    assert isinstance(results[3]["data"][0]["embedding"], str)
    calls = sorted(embedder.calls[before:], key=str)
    assert sorted(map(len, calls)) == [1, 1, 2]
