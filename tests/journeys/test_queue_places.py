"""Where a job stands in the queue, told to whoever waits for it, in words that their clients take."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import orjson
import pytest

from common import keys
from tests.support.fleet import Fleet, until
from tests.support.say import CHAT, chat, frames, messages, record, submit

pytestmark = pytest.mark.timeout(60)

IDLE = "idle"


@pytest.fixture
def paced(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with a pace noted for the model that nobody serves, as if it were worked off."""
    rates = ("drain_tokens_per_s:unserved", 100)
    fleet.redis.command("HSET", keys.stats(IDLE), *rates)
    yield fleet
    fleet.redis.command("HDEL", keys.stats(IDLE), *rates[::2])


def test_a_jobs_record_tells_its_place_and_wait(paced: Fleet, client: httpx.Client) -> None:
    first, second = (submit(client, chat("unserved", words="x"), deadline_ms=30_000) for _ in range(2))
    places = [record(client, job_id)["queue"] for job_id in (first, second)]
    assert places[0]["position"] + 1 == places[1]["position"]
    assert 0 <= places[0]["estimated_wait_ms"] < places[1]["estimated_wait_ms"]
    for job_id in (first, second):
        assert client.post(f"/v1/jobs/{job_id}/cancel").json()["queue"] is None


def test_a_followed_job_tells_its_place_at_once_and_when_it_changes(paced: Fleet, client: httpx.Client) -> None:
    ahead = submit(client, chat("unserved", words="x"), deadline_ms=30_000)
    job_id = submit(client, chat("unserved", words="x"), deadline_ms=5_000)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        parts = answer.iter_raw()
        raw = next(parts)
        client.post(f"/v1/jobs/{ahead}/cancel")
        raw += b"".join(parts)
    told = frames(raw)
    places = [frame.json["position"] for frame in told if frame.name == "queue"]
    assert len(places) >= 2 and places == sorted(places, reverse=True)
    # Nothing to resume from: an event without an id leaves the reader's last one as it is.
    assert all(not frame.id for frame in told if frame.name == "queue")
    assert told[-1].json["error"]["code"] == "timeout"


def test_openais_client_gets_the_place_in_headers_and_is_not_disturbed(
    paced: Fleet, client: httpx.Client, sdk: openai.OpenAI
) -> None:
    ahead = submit(client, chat("narrow", numbered=True, tokens=30, token_ms=100), deadline_ms=30_000)
    narrow = {"x-headrace-priority": "batch"}
    raw = sdk.chat.completions.with_raw_response.create(
        model="narrow", messages=messages("my turn"), stream=True, extra_headers=narrow
    )
    stream = raw.parse()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "my turn"
    assert record(client, ahead)["status"] == "succeeded"


def test_a_chat_that_waits_hears_comments_and_no_events_but_chunks(paced: Fleet, client: httpx.Client) -> None:
    headers = {"x-headrace-deadline-ms": "3000"}
    with client.stream("POST", CHAT, json=chat("unserved", stream=True, words="x"), headers=headers) as answer:
        raw = answer.read()
    assert b"\n: queue position=" in raw
    assert all(not frame.name for frame in frames(raw))


def test_what_answers_were_like_is_expected_of_the_next(fleet: Fleet, client: httpx.Client) -> None:
    model, pool = "org/echo:8b", "default"
    assert client.post(CHAT, json=chat(model, words="x")).status_code == 200

    def expects_little() -> bool:
        job_id = submit(client, chat(model, words="x"), delay_ms=60_000)
        client.post(f"/v1/jobs/{job_id}/cancel")
        return int(fleet.redis.command("HGET", keys.job(pool, job_id), "cost")) < 100

    until(expects_little, 30, "the gateway never learnt how short the answers are")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_request_that_would_be_late_is_refused_at_once_with_an_honest_time(
    paced: Fleet, client: httpx.Client
) -> None:
    # Half a minute of work for others is ahead, at the pace noted.
    lane = "0:unserved"
    ahead = submit(
        client,
        chat(
            "unserved",
            words="x",
        ),
        deadline_ms=60_000,
        priority="interactive",
    )
    paced.redis.command("HSET", keys.waiting(IDLE), f"t:{lane}", 3_000)
    refused = client.post(CHAT, json=chat("unserved", words="x"), headers={"x-headrace-deadline-ms": "10000"})
    client.post(f"/v1/jobs/{ahead}/cancel")
    assert refused.status_code == 503
    error = refused.json()["error"]
    assert error["code"] == "wait_exceeds_deadline"
    # A look at the pace meanwhile, at which nothing is worked off, makes it a fifth slower.
    assert 20 <= int(refused.headers["retry-after"]) <= 45
    assert refused.headers["x-should-retry"] == "true"


def test_estimates_are_shown_per_queue(paced: Fleet, client: httpx.Client) -> None:
    shown = orjson.loads(client.get("/v1/queues").content)
    assert {row["pool"] for row in shown["data"]} >= {"default", IDLE, "narrow"}
    assert all(":" not in name for row in shown["data"] for name in row["counts"])
