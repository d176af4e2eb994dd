"""Jobs over HTTP: submitted, listed, polled, followed, cancelled, delayed, late."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.fleet import until
from tests.support.say import CHAT, chat, follow, frames, record, submit, text_of, when

pytestmark = pytest.mark.timeout(60)


def order_of_starts(client: httpx.Client, ids: list[str]) -> list[str]:
    """Ended jobs by their first event's place in time."""
    starts = {job_id: int(frames(follow(client, job_id)[1])[0].id.partition("-")[0]) for job_id in ids}
    return sorted(ids, key=lambda job_id: starts[job_id])


def test_a_job_is_accepted_with_its_address_and_polled_there(client: httpx.Client, elsewhere: httpx.Client) -> None:
    given = {"endpoint": CHAT, "body": chat(words="one two"), "metadata": {"order": 7, "tags": ["a"]}}
    accepted = client.post("/v1/jobs", json=given)
    assert accepted.status_code == 202
    body = accepted.json()
    assert accepted.headers["location"] == f"/v1/jobs/{body['id']}" == body["links"]["self"]
    assert accepted.headers["x-headrace-job-id"] == body["id"]
    assert accepted.headers["x-headrace-durability"] == "journal"
    assert (body["status"], body["object"]) == ("queued", "job")
    found = when(elsewhere, body["id"])
    assert (found["status"], found["attempt"], found["endpoint"], found["model"]) == ("succeeded", 1, CHAT, "echo")
    assert found["result"]["choices"][0]["message"]["content"] == "one two"
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert found["cost_usd"] == pytest.approx((2 * 1 + 2 * 2) / 1e6)
    assert found["metadata"] == given["metadata"]
    assert found["priority"] == "standard"
    assert found["error"] is None and found["partial_result"] is None and found["queue"] is None
    assert found["created_at"] <= found["started_at"] <= found["finished_at"]
    assert set(found["timings_ms"]) == {"queued", "first_token", "total"}
    assert found["timings_ms"]["queued"] <= found["timings_ms"]["first_token"] <= found["timings_ms"]["total"]


def test_polling_is_told_when_to_come_back_until_the_end(client: httpx.Client) -> None:
    job_id = submit(client, chat("unserved", words="x"))
    waiting = client.get(f"/v1/jobs/{job_id}")
    assert int(waiting.headers["retry-after"]) >= 1
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert "retry-after" not in client.get(f"/v1/jobs/{job_id}").headers


def test_a_waiting_job_tells_its_place(client: httpx.Client) -> None:
    ids = [submit(client, chat("unserved", words="x")) for _ in range(3)]
    assert [record(client, job_id)["queue"]["position"] for job_id in ids] == [0, 1, 2]
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    assert record(client, ids[2])["queue"]["position"] == 1
    for job_id in ids:
        client.post(f"/v1/jobs/{job_id}/cancel")


def test_the_list_is_newest_first_in_pages_without_gap_or_double(client: httpx.Client) -> None:
    mine = [submit(client, chat(words=f"w{number}")) for number in range(9)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while len(seen) < len(mine):
        page = client.get("/v1/jobs", params={"limit": 3, **after}).json()
        assert page["object"] == "list" and len(page["data"]) == 3
        seen += [one["id"] for one in page["data"]]
        after = {"after": seen[-1]}
        assert page["has_more"] or len(seen) >= len(mine)
    assert seen == mine[::-1]
    assert all(when(client, job_id)["status"] == "succeeded" for job_id in mine)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=", "limit=-1", "limit=1e2", "after=nothing"]
)
def test_a_page_that_is_none_is_refused(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_the_events_replay_the_very_bytes_of_the_submitting_stream(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    body = {**chat(stream=True, numbered=True, tokens=30, token_ms=2), "stream_options": {"include_usage": True}}
    live = client.post(CHAT, json=body)
    # What is said while nothing comes is no part of the answer.
    said = b"".join(line for line in live.content.splitlines(keepends=True) if not line.startswith(b":"))
    for reader in (client, elsewhere):
        status, replayed = follow(reader, live.headers["x-headrace-job-id"])
        assert (status, replayed) == (200, said)


def test_a_whole_answers_job_can_be_read_too(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=chat(words="one two three"))
    events = frames(follow(client, answer.headers["x-headrace-job-id"])[1])
    assert text_of(events) == "one two three"
    assert events[-1].data == "[DONE]"


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once(client: httpx.Client) -> None:
    job_id = submit(client, chat("unserved", words="x"))
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"], answer.json()["attempt"]) == (200, "cancelled", 0)
    assert answer.json()["error"]["code"] == "cancelled"
    (end,) = frames(follow(client, job_id)[1])
    assert end.json["error"]["code"] == "cancelled"


def test_a_running_job_is_cancelled_also_while_its_model_says_nothing(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    job_id = submit(client, chat(numbered=True, tokens=9, token_ms=1, hang_at=4))
    until(lambda: record(client, job_id)["status"] == "running")
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        seen = b""
        for piece in answer.iter_raw():
            seen += piece
            if len(frames(seen)) == 4:
                assert elsewhere.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert text_of(frames(seen)[:-1]) == " 0 1 2 3"
    assert frames(seen)[-1].json["error"]["code"] == "cancelled"
    found = when(client, job_id)
    assert (found["status"], found["result"]) == ("cancelled", None)
    assert found["partial_result"]["choices"][0]["message"]["content"] == " 0 1 2 3"
    assert found["usage"]["completion_tokens"] > 0


def test_cancelling_what_has_ended_changes_nothing(client: httpx.Client) -> None:
    job_id = submit(client, chat(words="done"))
    before = when(client, job_id)
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()) == (200, before)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json() == before


def test_who_waits_for_a_cancelled_jobs_answer_is_told(client: httpx.Client, elsewhere: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=chat("unserved", stream=True, words="x")) as answer:
        job_id = answer.headers["x-headrace-job-id"]
        assert elsewhere.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        (end,) = frames(answer.read())
    assert end.json["error"]["code"] == "cancelled"


# --- time and order ---------------------------------------------------------------------------------------------------


def test_options_of_a_job_may_stand_in_headers_and_the_body_goes_first(client: httpx.Client) -> None:
    given = {"endpoint": CHAT, "body": chat(words="x"), "priority": "standard"}
    headers = {"x-headrace-priority": "batch", "x-headrace-deadline-ms": "1"}
    refused = client.post("/v1/jobs", json=given, headers={"x-headrace-prority": "batch"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-headrace-prority")
    both = client.post("/v1/jobs", json=given | {"deadline_ms": 20_000}, headers=headers).json()["id"]
    assert when(client, both)["priority"] == "standard"
    del given["priority"]
    one = client.post("/v1/jobs", json=given, headers={"x-headrace-priority": "batch"}).json()["id"]
    assert when(client, one)["priority"] == "batch"


def test_a_delayed_job_waits_and_then_runs(client: httpx.Client) -> None:
    job_id = submit(client, chat(words="later"), delay_ms=700)
    first = record(client, job_id)
    assert (first["status"], first["started_at"]) == ("delayed", None)
    found = when(client, job_id)
    assert (found["status"], found["result"]["choices"][0]["message"]["content"]) == ("succeeded", "later")
    assert found["timings_ms"]["queued"] >= 700


def test_a_delayed_job_can_be_cancelled(client: httpx.Client) -> None:
    job_id = submit(client, chat(words="never"), delay_ms=60_000)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_a_job_that_no_worker_takes_by_its_deadline_expires(client: httpx.Client) -> None:
    job_id = submit(client, chat("unserved", words="x"), deadline_ms=300)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        *places, end = frames(answer.read())
    assert end.json["error"]["code"] == "timeout"
    assert all(frame.name == "queue" for frame in places)
    found = when(client, job_id)
    assert (found["status"], found["attempt"], found["error"]["code"]) == ("expired", 0, "timeout")


def test_a_job_that_is_too_slow_expires_with_what_it_has(client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=1_000, token_ms=30), deadline_ms=500)
    found = when(client, job_id)
    assert (found["status"], found["error"]["code"]) == ("expired", "timeout")
    assert found["partial_result"]["choices"][0]["message"]["content"].startswith(" 0 1")
    assert frames(follow(client, job_id)[1])[-1].json["error"]["code"] == "timeout"


def test_a_chats_deadline_is_a_504_that_is_not_worth_a_retry(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=chat("unserved", words="x"), headers={"x-headrace-deadline-ms": "200"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert answer.headers["x-should-retry"] == "false"


def test_what_is_more_urgent_goes_first_and_equals_in_their_order(client: httpx.Client) -> None:
    blocker = submit(client, chat("narrow", numbered=True, tokens=1, hang_at=0))
    when(client, blocker, "running")
    # Attempts are told apart by the millisecond of their claim, so each takes longer than one.
    body = chat("narrow", text="x", tokens=2, token_ms=5)
    given = ["batch", "standard", "interactive", "standard", "interactive", "batch"]
    ids = [submit(client, body, priority=name) for name in given]
    assert [record(client, job_id)["priority"] for job_id in ids] == given
    client.post(f"/v1/jobs/{blocker}/cancel")
    for job_id in ids:
        assert when(client, job_id)["status"] == "succeeded"
    assert order_of_starts(client, ids) == [ids[number] for number in (2, 4, 1, 3, 0, 5)]


def test_options_travel_in_headers_of_a_chat(client: httpx.Client) -> None:
    options = {"priority": "batch", "deadline-ms": "9000", "batch-key": "k", "on-disconnect": "continue"}
    headers = {f"x-headrace-{name}": value for name, value in options.items()}
    answer = client.post(CHAT, json=chat(words="x"), headers=headers)
    assert answer.status_code == 200
    assert record(client, answer.headers["x-headrace-job-id"])["priority"] == "batch"


# --- the plain prompt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"model": "org/echo:8b"}, {"system": "Be short.", "max_tokens": 3}])
def test_a_plain_prompt_is_answered(client: httpx.Client, more: dict[str, Any]) -> None:
    answer = client.post("/prompt", json={"prompt": "one two three", **more})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "one two three"
    assert answer.json()["model"] == more.get("model", "echo")


def test_a_plain_prompt_streams(client: httpx.Client) -> None:
    answer = client.post("/prompt", json={"prompt": "one two three", "stream": True})
    assert text_of(frames(answer.content)) == "one two three"
    assert re.fullmatch(r"job_default_[0-9a-f]{32}", answer.headers["x-headrace-job-id"])


def test_a_plain_prompts_refusal_is_a_problem_document(client: httpx.Client) -> None:
    answer = client.post("/prompt", json={"prompt": ""})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json()["status"] == 400 and answer.json()["param"] == "prompt"


def test_jobs_submitted_at_once_with_one_key_are_one_that_is_there(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    given = {"endpoint": CHAT, "body": chat(words="x")}
    with ThreadPoolExecutor(8) as crowd:
        # Each racer may get a row of the journal, and only the queue says whose counts; one trial seldom shows it.
        for trial in range(30):
            headers = {"idempotency-key": f"many-at-once-{trial}"}
            racers = [(client, elsewhere)[number % 2] for number in range(12)]
            answers = list(crowd.map(lambda one, headers=headers: taken(one, given, headers), racers))
            (job_id,) = {answer.json()["id"] for answer in answers}
            assert record(client, job_id)["id"] == job_id


def taken(client: httpx.Client, given: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    """The answer that is not "later": on a crowded machine it may be once, and who asks again is one more racer."""
    answer = client.post("/v1/jobs", json=given, headers=headers)
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] in {"ledger_unavailable", "store_unavailable"}
        answer = client.post("/v1/jobs", json=given, headers=headers)
    return answer
