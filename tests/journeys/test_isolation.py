"""Tenants: what belongs to one does not exist for another, by any route, to the byte."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import httpx
import pytest

from tests.support.fleet import KEY, Fleet
from tests.support.say import CHAT, chat, exchange, follow, frames, record, submit, when

pytestmark = pytest.mark.timeout(60)

ROUTES = [
    ("GET", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs/{id}/events"),
    ("GET", "/v1/jobs/{id}/events?last_event_id=1-1"),
    ("GET", "/v1/jobs/{id}/events?last_event_id=nonsense"),
    ("POST", "/v1/jobs/{id}/cancel"),
    ("GET", "/v1/jobs?after={id}"),
]
OWN_TO_EACH_ANSWER = ("x-request-id", "date", "openai-processing-ms")


def shown(answer: httpx.Response, job_id: str) -> tuple[int, dict[str, str], str]:
    """All that tells one answer from another, with the id that was asked for taken out."""
    headers = {name: value for name, value in answer.headers.items() if name not in OWN_TO_EACH_ANSWER}
    return answer.status_code, headers, answer.text.replace(job_id, "ID")


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("state", ["running", "queued", "ended", "delayed"])
def test_a_job_of_another_tenant_answers_like_one_that_never_was(
    client: httpx.Client, stranger: httpx.Client, method: str, path: str, state: str
) -> None:
    body, more = {
        "running": (chat(numbered=True, tokens=3, hang_at=2), {}),
        "queued": (chat("unserved", words="secret"), {}),
        "ended": (chat(words="secret"), {}),
        "delayed": (chat(words="secret"), {"delay_ms": 60_000}),
    }[state]
    job_id = submit(client, body, **more)
    found = when(client, job_id, *(("succeeded",) if state == "ended" else (state,)))
    unknown = f"{job_id[:-32]}{secrets.token_hex(16)}"
    theirs = stranger.request(method, path.format(id=job_id))
    nobodys = stranger.request(method, path.format(id=unknown))
    assert shown(theirs, job_id) == shown(nobodys, unknown)
    assert theirs.status_code in (400, 404)
    assert record(client, job_id)["status"] == found["status"], "a stranger changed it"
    client.post(f"/v1/jobs/{job_id}/cancel")


OTHER_ROUTES = [
    *(("GET", "/v1/files/{file}"), ("GET", "/v1/files/{file}/content"), ("DELETE", "/v1/files/{file}")),
    ("GET", "/v1/files?after={file}"),
    *(("GET", "/v1/batches/{batch}"), ("POST", "/v1/batches/{batch}/cancel"), ("GET", "/v1/batches?after={batch}")),
    *(("GET", "/v1/responses/{response}"), ("GET", "/v1/responses/{response}?stream=true")),
    ("GET", "/v1/responses/{response}/input_items"),
    *(("POST", "/v1/responses/{response}/cancel"), ("DELETE", "/v1/responses/{response}")),
]


@pytest.mark.parametrize(("method", "path"), OTHER_ROUTES)
def test_files_batches_and_responses_of_another_tenant_answer_like_ones_that_never_were(
    client: httpx.Client, stranger: httpx.Client, method: str, path: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat(hang_at=0)}
    form: dict[str, Any] = {"files": {"file": ("a", json.dumps(line))}, "data": {"purpose": "batch"}}
    file = client.post("/v1/files", **form).json()["id"]
    work = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = client.post("/v1/batches", json=work).json()["id"]
    asked = {"model": "echo", "input": 'echo: {"hang_at": 0}', "background": True}
    response = client.post("/v1/responses", json=asked).json()["id"]
    made = {"file": file, "batch": batch, "response": response}
    name = next(name for name in made if f"{{{name}}}" in path)
    unknown = f"{made[name][:-32]}{secrets.token_hex(16)}"
    theirs = stranger.request(method, path.format(**made))
    nobodys = stranger.request(method, path.format(**{name: unknown}))
    assert shown(theirs, made[name]) == shown(nobodys, unknown)
    assert theirs.status_code == 404
    assert client.get(f"/v1/files/{file}").status_code == 200
    assert client.post(f"/v1/batches/{batch}/cancel").json()["status"] == "cancelling"
    assert client.post(f"/v1/responses/{response}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/v1/files/{id}", "/v1/files/{id}/content", "/v1/batches/{id}", "/v1/responses/{id}"])
@pytest.mark.parametrize("name", ["%00", "file-%00", "%ff", "..%5c", "x" * 3_000, "file-" + "0" * 33])
def test_what_is_no_id_is_nothing_that_there_is(client: httpx.Client, path: str, name: str) -> None:
    answer = client.get(path.format(id=name))
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize(
    "job_id",
    [
        *("x", "job_default_", "job_default_" + "0" * 31, "job_default_" + "G" * 32, "job_nopool_" + "0" * 32),
        *("job__" + "0" * 32, "%00", "job_default_" + "0" * 32 + "%0a", "..%2f..%2fetc", "job_{default}_" + "0" * 32),
        *("x" * 3_000, "%ff%fe", "job_default:lane_" + "0" * 32),
    ],
)
def test_what_is_no_job_id_answers_like_an_unknown_one(client: httpx.Client, job_id: str) -> None:
    unknown = client.get("/v1/jobs/job_default_" + "0" * 32)
    answer = client.get(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    if "%2f" not in job_id:
        assert answer.json() == unknown.json()
        assert client.get(f"/v1/jobs/{job_id}/events").json() == unknown.json()
        assert client.post(f"/v1/jobs/{job_id}/cancel").json() == unknown.json()


def test_each_tenant_lists_only_its_own(client: httpx.Client, stranger: httpx.Client) -> None:
    mine, theirs = submit(client, chat(words="mine")), submit(stranger, chat(words="theirs"))
    own: list[dict[str, Any]] = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
    others: list[dict[str, Any]] = stranger.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert mine in {job["id"] for job in own} and theirs in {job["id"] for job in others}
    assert not {job["id"] for job in own} & {job["id"] for job in others}


def test_no_prompt_answer_or_key_is_in_any_log_or_metric(fleet: Fleet, client: httpx.Client) -> None:
    canary = "canary" + secrets.token_hex(12)
    body = {**chat(words=f"{canary} answer"), "metadata": {"note": canary}, "user": canary}
    job_id = submit(client, body, metadata={"note": canary})
    when(client, job_id)
    assert canary in follow(client, job_id)[1].decode()
    refused = client.post(CHAT, json={**chat(words=canary), "temperature": canary})
    failed = client.post(CHAT, json={**chat(words=f'echo: {{"{canary}": 1}}')})
    assert (refused.status_code, failed.status_code) == (400, 400)
    assert canary not in refused.text
    wrong = client.get("/v1/models", headers={"authorization": f"Bearer {canary}"})
    assert wrong.status_code == 401 and canary not in wrong.text
    logs, metrics = fleet.logs(), client.get("/metrics").text
    for secret in (canary, str(client.headers["authorization"]).removeprefix("Bearer ")):
        assert secret not in logs and secret not in metrics
    assert job_id not in metrics


WRONG_KEYS = [
    *(b"authorization:", b"authorization: Bearer", b"authorization: Bearer ", b"authorization: Bearer x"),
    *(
        b"authorization: Basic aHItdGVzdA==",
        b"authorization: Bearer " + b"k" * 9_000,
        b"x-api-key: wrong",
        b"x-api-key:",
    ),
    *(b"authorization: Bearer cl\xc3\xa9", b"authorization: Bearer \xff\xfe", b"Authorization : Bearer x"),
    b"authorization: Bearer x\r\nx-api-key: " + KEY.encode(),
    b"authorization: " + KEY.encode(),
    b"authorization: Bearer " + KEY.encode()[:-1],
    b"authorization: Bearer " + KEY.encode() + b"x",
    b"authorization: Bearer " + KEY.upper().encode(),
    b"cookie: api_key=" + KEY.encode(),
]


@pytest.mark.parametrize("header", WRONG_KEYS, ids=lambda header: repr(header[:40]))
def test_every_wrong_key_gets_the_same_answer(fleet: Fleet, header: bytes) -> None:
    port = fleet.members["gateway-0"].port
    head = b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    plain = exchange(port, head + b"\r\n")
    answer = exchange(port, head + header + b"\r\n\r\n")
    if b" :" in header:
        assert answer.status == 400  # that is no header at all
        return
    assert (answer.status, answer.body) == (plain.status, plain.body) == (401, plain.body)
    assert answer.header("www-authenticate") == "Bearer"


def test_a_key_in_either_header_is_the_same_tenant(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(words="x"))
    key = str(client.headers["authorization"]).removeprefix("Bearer ")
    answer = httpx.get(f"{fleet.url(1)}/v1/jobs/{job_id}", headers={"x-api-key": key}, trust_env=False)
    assert answer.status_code == 200
    assert re.fullmatch(r"job_default_[0-9a-f]{32}", answer.json()["id"])
    assert frames(follow(client, job_id)[1])[-1].data == "[DONE]"
