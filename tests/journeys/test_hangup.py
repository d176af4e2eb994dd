"""Callers that hang up: when the work stops, when it goes on, and that nothing of them is left."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.journeys.conftest import GRACE_S, SilentModel
from tests.support.fleet import Fleet, until
from tests.support.say import CHAT, chat, follow, frames, record, submit, text_of, when

pytestmark = pytest.mark.timeout(60)

# The promise is the grace and two seconds; the rest is for a busy machine.
CANCELLED_WITHIN_S = GRACE_S + 2 + 10
# Longer than a grace and the round that notices its end.
LONG: dict[str, Any] = {"numbered": True, "tokens": 44, "token_ms": 50}
WHOLE = "".join(f" {number}" for number in range(44))


def leave_after_the_first_token(client: httpx.Client, body: dict[str, Any], **headers: str) -> tuple[str, str]:
    """(job id, last event's id) of a stream whose only reader hung up."""
    raw = b""
    with client.stream("POST", CHAT, json=body, headers=headers) as answer:
        for piece in answer.iter_raw():
            raw += piece
            if frames(raw):
                return answer.headers["x-headrace-job-id"], frames(raw)[-1].id
    raise AssertionError(f"the stream ended early: {raw!r}")


def test_when_the_last_reader_has_gone_the_upstream_call_is_cut(client: httpx.Client, remote: SilentModel) -> None:
    body = chat("remote", stream=True, words="x")
    job_id, _ = leave_after_the_first_token(client, body)
    assert remote.hanging == 1
    until(lambda: remote.hanging == 0, CANCELLED_WITHIN_S, "the upstream was not cut")
    found = when(client, job_id)
    assert (found["status"], found["error"]["code"]) == ("cancelled", "cancelled")
    assert found["partial_result"]["choices"][0]["message"]["content"] == "a"


def test_a_caller_who_waited_for_a_whole_answer_and_left_cancels_it_too(
    client: httpx.Client, remote: SilentModel
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=chat("remote", words="x"), timeout=1.5)
    until(lambda: remote.hanging == 0, CANCELLED_WITHIN_S, "the upstream was not cut")
    newest = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]["id"]
    assert when(client, newest)["status"] == "cancelled"


def test_a_cancel_by_request_reaches_a_silent_upstream(client: httpx.Client, remote: SilentModel) -> None:
    job_id = submit(client, chat("remote", words="x"))
    until(lambda: remote.hanging == 1)
    client.post(f"/v1/jobs/{job_id}/cancel")
    until(lambda: remote.hanging == 0, 10, "the upstream was not cut")
    assert when(client, job_id)["status"] == "cancelled"


def test_who_comes_back_within_the_grace_finds_the_stream_going_on(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    job_id, seen = leave_after_the_first_token(client, chat(stream=True, **LONG))
    status, raw = follow(elsewhere, job_id, seen)
    assert status == 200
    assert frames(raw)[-1].data == "[DONE]"
    assert WHOLE.endswith(text_of(frames(raw)))
    assert record(client, job_id)["status"] == "succeeded"


def test_as_long_as_one_reader_is_left_the_work_goes_on(client: httpx.Client, elsewhere: httpx.Client) -> None:
    raw = b""
    with client.stream("POST", CHAT, json=chat(stream=True, **LONG)) as first:
        job_id = first.headers["x-headrace-job-id"]
        with elsewhere.stream("GET", f"/v1/jobs/{job_id}/events") as second:
            pieces = second.iter_raw()
            raw += next(pieces)
            first.close()
            raw += b"".join(pieces)
    assert text_of(frames(raw)) == WHOLE
    assert record(client, job_id)["status"] == "succeeded"


def test_a_caller_can_ask_that_the_work_goes_on_without_readers(client: httpx.Client) -> None:
    job_id, _ = leave_after_the_first_token(
        client, chat(stream=True, **LONG), **{"x-headrace-on-disconnect": "continue"}
    )
    found = when(client, job_id)
    assert (found["status"], found["result"]["choices"][0]["message"]["content"]) == ("succeeded", WHOLE)


def test_a_job_goes_on_without_readers_unless_it_was_submitted_to_stop(client: httpx.Client) -> None:
    endless = chat(numbered=True, tokens=2_000, token_ms=50)
    ids = [submit(client, chat(**LONG)), submit(client, endless, on_disconnect="cancel")]
    for job_id in ids:
        follow(client, job_id, most_bytes=300)
    assert [when(client, job_id)["status"] for job_id in ids] == ["succeeded", "cancelled"]


def test_a_chat_that_still_waits_in_the_queue_is_taken_out(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=chat("unserved", stream=True, words="x")) as answer:
        job_id = answer.headers["x-headrace-job-id"]
    found = when(client, job_id, limit_s=CANCELLED_WITHIN_S)
    assert (found["status"], found["attempt"]) == ("cancelled", 0)


def test_nothing_is_left_of_readers_that_came_and_went(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=1, hang_at=1))
    when(client, job_id, "running")
    for _ in range(60):
        follow(client, job_id, most_bytes=20)
    client.post(f"/v1/jobs/{job_id}/cancel")
    for number in (0, 1):
        with fleet.client(number) as one:
            until(lambda one=one: one.get("/health").json()["streams"] == 0, what="readers are left")
