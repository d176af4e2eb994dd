"""One key, one job: the same request again gets the answer that is running or stored, another one is refused."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import Any

import httpx
import openai
import pytest

from common import keys
from tests.journeys.conftest import STATUS_WAIT_S
from tests.support.fleet import KEY, OTHER_KEY, Fleet
from tests.support.say import CHAT, chat, frames, messages, record, when

pytestmark = pytest.mark.timeout(120)

TRIALS = int(os.environ.get("HEADRACE_TEST_TRIALS") or 2)
RACERS = 100


def key() -> dict[str, str]:
    """The header with a fresh key, quoted as the draft has it."""
    return {"Idempotency-Key": f'"{secrets.token_hex(8)}"'}


def stream_of(client: httpx.Client, body: dict[str, Any], headers: dict[str, str]) -> tuple[httpx.Headers, bytes]:
    """A whole stream with its headers."""
    with client.stream("POST", CHAT, json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        return answer.headers, answer.read()


def data(raw: bytes) -> list[tuple[str, str]]:
    """The ids and data of a stream's events."""
    return [(frame.id, frame.data) for frame in frames(raw)]


def test_the_same_request_again_gets_the_stored_answer_of_one_job(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    once = key()
    first = client.post(CHAT, json=chat(words="only once"), headers=once)
    again = elsewhere.post(CHAT, json=chat(words="only once"), headers=once)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["x-headrace-job-id"] == first.headers["x-headrace-job-id"]
    assert "x-headrace-replayed" not in first.headers
    assert again.headers["x-headrace-replayed"] == "true"


def test_a_key_in_quotes_and_the_same_one_bare_are_one(client: httpx.Client) -> None:
    bare = secrets.token_hex(8)
    answers = [
        client.post(CHAT, json=chat(words="x"), headers={"Idempotency-Key": text}) for text in (bare, f'"{bare}"')
    ]
    assert len({answer.headers["x-headrace-job-id"] for answer in answers}) == 1


def test_a_second_request_joins_the_live_stream_from_its_beginning(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    once = key()
    body = chat(stream=True, numbered=True, tokens=40, token_ms=30)
    with client.stream("POST", CHAT, json=body, headers=once) as first:
        parts = first.iter_raw()
        begun = next(parts)
        headers, second = stream_of(elsewhere, body, once)
        rest = b"".join(parts)
    assert headers["x-headrace-replayed"] == "true"
    assert headers["x-headrace-job-id"] == first.headers["x-headrace-job-id"]
    assert data(second) == data(begun + rest)
    assert data(second)[-1][1] == "[DONE]"


def test_after_the_stream_is_gone_the_stored_answer_comes_as_a_stream(fleet: Fleet, client: httpx.Client) -> None:
    once = key()
    body = {**chat(stream=True, words="kept as a whole"), "stream_options": {"include_usage": True}}
    headers, _ = stream_of(client, body, once)
    job_id = headers["x-headrace-job-id"]
    fleet.redis.command("DEL", keys.stream("default", job_id))
    with openai.OpenAI(api_key=KEY, base_url=fleet.url() + "/v1", max_retries=0) as sdk:
        chunks = list(
            sdk.chat.completions.create(
                model="echo",
                messages=messages("kept as a whole"),
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=once,
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "kept as a whole"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, "stop"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4


def test_a_second_request_waits_for_the_same_whole_answer(client: httpx.Client, fleet: Fleet) -> None:
    once = key()
    body = chat(words="slowly", first_token_ms=400)

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as caller:
            calls = (caller.post(fleet.url(n) + CHAT, json=body, headers=once) for n in (0, 1, 0))
            return await asyncio.gather(*calls)

    answers = asyncio.run(both())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-headrace-job-id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "other", [chat(words="two"), chat(words="one", model="org/echo:8b"), chat(words="one", stream=True)]
)
def test_another_body_with_the_key_is_refused(client: httpx.Client, other: dict[str, object]) -> None:
    once = key()
    assert client.post(CHAT, json=chat(words="one"), headers=once).status_code == 200
    refused = client.post(CHAT, json=other, headers=once)
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.json()["error"]["param"] == "Idempotency-Key"


def test_a_model_of_another_pool_is_another_body_too(client: httpx.Client) -> None:
    once = key()
    assert client.post(CHAT, json=chat(words="one"), headers=once).status_code == 200
    refused = client.post(CHAT, json=chat(words="one", model="narrow"), headers=once)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "Idempotency-Key")


def test_the_same_key_of_another_tenant_is_another_key(client: httpx.Client, stranger: httpx.Client) -> None:
    once = key()
    mine = client.post(CHAT, json=chat(words="mine"), headers=once)
    theirs = stranger.post(CHAT, json=chat(words="theirs"), headers=once)
    assert theirs.status_code == 200
    assert theirs.json()["choices"][0]["message"]["content"] == "theirs"
    assert mine.headers["x-headrace-job-id"] != theirs.headers["x-headrace-job-id"]


def test_a_submitted_job_is_submitted_once(client: httpx.Client, elsewhere: httpx.Client) -> None:
    once = key()
    given = {"endpoint": CHAT, "body": chat(words="in the background"), "metadata": {"n": 1}}
    first = client.post("/v1/jobs", json=given, headers=once)
    ended = when(client, first.json()["id"])
    again = elsewhere.post("/v1/jobs", json=given, headers=once)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, ended["id"], "succeeded")
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["x-headrace-replayed"] == "true"
    other = client.post("/v1/jobs", json={**given, "priority": "batch"}, headers=once)
    assert other.status_code == 422


def test_a_failed_jobs_failure_is_what_its_key_gives(client: httpx.Client) -> None:
    once = {**key(), "x-headrace-deadline-ms": "150"}
    body = chat("unserved", words="never")
    first = client.post(CHAT, json=body, headers=once)
    again = client.post(CHAT, json=body, headers={**once, "x-headrace-deadline-ms": "60000"})
    assert (first.status_code, again.status_code) == (504, 504)
    assert {answer.headers["x-should-retry"] for answer in (first, again)} == {"false"}
    assert first.headers["x-headrace-job-id"] == again.headers["x-headrace-job-id"]
    assert [answer.headers.get("x-headrace-replayed") for answer in (first, again)] == [None, "true"]


@pytest.mark.parametrize("bad", ["", '""', "x" * 256, "tab\tin it", '"' + "y" * 256 + '"'])
def test_a_key_that_is_none_is_refused_and_named(client: httpx.Client, bad: str) -> None:
    refused = client.post(CHAT, json=chat(words="x"), headers={"Idempotency-Key": bad})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Idempotency-Key"


def test_a_hundred_racers_at_all_gateways_make_one_job(fleet: Fleet, client: httpx.Client) -> None:
    async def race(once: dict[str, str]) -> set[str]:
        limits = httpx.Limits(max_connections=RACERS)
        headers = {"Authorization": f"Bearer {OTHER_KEY}", **once}
        async with httpx.AsyncClient(headers=headers, timeout=30, limits=limits) as caller:
            given = {"endpoint": CHAT, "body": chat(words="one winner")}

            async def ask(url: str) -> str:
                # On a crowded machine the answer may be "later" (503), and who asks again is one more racer.
                while (answer := await caller.post(url, json=given)).status_code == 503:
                    assert answer.json()["error"]["code"] in {"ledger_unavailable", "store_unavailable"}
                assert answer.status_code == 202
                return answer.json()["id"]

            return set(await asyncio.gather(*(ask(fleet.url(n % 2) + "/v1/jobs") for n in range(RACERS))))

    for _ in range(TRIALS):
        assert len(asyncio.run(race(key()))) == 1


def test_a_waiting_stream_is_joined_and_both_hear_where_they_stand(client: httpx.Client) -> None:
    once = {**key(), "x-headrace-deadline-ms": "4000"}
    body = chat("unserved", stream=True, words="never")
    with client.stream("POST", CHAT, json=body, headers=once) as first:
        assert first.status_code == 200
        with client.stream("POST", CHAT, json=body, headers=once) as second:
            assert second.headers["x-headrace-replayed"] == "true"
            heard = (first.read(), second.read())
    assert STATUS_WAIT_S < 4
    for raw in heard:
        assert b": queue position=" in raw
        assert frames(raw)[-1].json["error"]["code"] == "timeout"
    assert record(client, first.headers["x-headrace-job-id"])["status"] == "expired"
