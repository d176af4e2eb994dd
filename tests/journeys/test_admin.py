"""What operators and tenants find under /v1/admin: workers sent away, dead letters looked at and run anew."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.fleet import OTHER_KEY, Fleet, until
from tests.support.say import chat, submit, when

pytestmark = pytest.mark.timeout(60)

MEMBER_KEY = "hr-test-key-of-a-team-member"
CONFIG = f"""
backends:
  - {{name: echo, kind: echo}}
  - {{name: echo-other, kind: echo, pool: other}}
models:
  echo: {{targets: [{{backend: echo, model: echo}}]}}
  elsewhere: {{targets: [{{backend: echo-other, model: echo}}]}}
tenants: {{team: {{api_keys: [{MEMBER_KEY}]}}}}
"""
LETTERS = "/v1/admin/dead-letters"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    one = Fleet(
        tmp_path_factory.mktemp("admin"),
        gateways=2,
        config=CONFIG,
        pools="default,other",
        max_attempts=2,
        breaker_failures=1000,
    )
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with fleet.client() as one:
        yield one


def a_dead_letter(client: httpx.Client, model: str = "echo", **more: Any) -> str:
    """The id of a job whose attempts have all failed."""
    job_id = submit(client, chat(model, numbered=True, tokens=2, error="upstream_error"), **more)
    assert when(client, job_id, limit_s=30)["status"] == "failed"
    return job_id


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_a_dead_letter_tells_its_reason_each_attempts_error_and_the_request(client: httpx.Client) -> None:
    job_id = a_dead_letter(client, metadata={"order": "7"})
    (listed,) = [one for one in client.get(LETTERS).json()["data"] if one["id"] == job_id]
    assert (listed["object"], listed["pool"], listed["model"]) == ("dead_letter", "default", "echo")
    assert (listed["reason"]["code"], listed["attempt"], listed["replayed_as"]) == ("upstream_error", 2, None)
    assert "request" not in listed
    found = client.get(listed["links"]["self"]).json()
    assert found["request"]["messages"][0]["role"] == "user"
    assert found["metadata"] == {"order": "7"}
    assert [(one["attempt"], one["code"], one["backend"]) for one in found["attempts"]] == [
        (1, "upstream_error", "echo"),
        (2, "upstream_error", "echo"),
    ]
    assert found["created_at"] * 1000 <= found["attempts"][0]["at_ms"] < found["attempts"][1]["at_ms"]
    assert client.get(f"/v1/jobs/{job_id}").json()["attempts"] == found["attempts"]


def test_a_replay_is_a_new_job_and_asked_again_the_same_one(client: httpx.Client) -> None:
    job_id = a_dead_letter(client)
    answer = client.post(f"{LETTERS}/{job_id}/replay")
    assert answer.status_code == 202, answer.text
    new_id = answer.json()["id"]
    assert new_id != job_id and answer.headers["location"] == f"/v1/jobs/{new_id}"
    assert client.post(f"{LETTERS}/{job_id}/replay").json()["id"] == new_id
    assert client.get(f"{LETTERS}/{job_id}").json()["replayed_as"] == new_id
    # The old one stays as it ended; the new one has a life of its own, and here an end of its own.
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"
    assert when(client, new_id, limit_s=30)["status"] == "failed"
    assert client.get(f"{LETTERS}/{new_id}").json()["replay_of"] == job_id
    assert client.post(f"{LETTERS}/{job_id}/replay").json()["id"] == new_id
    assert client.post(f"{LETTERS}/{new_id}/replay").json()["id"] not in (job_id, new_id)


def test_many_who_replay_at_once_get_one_job(fleet: Fleet, client: httpx.Client) -> None:
    job_id = a_dead_letter(client)
    with fleet.client(0) as one, fleet.client(1) as two, ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda n: (one, two)[n % 2].post(f"{LETTERS}/{job_id}/replay"), range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_nobody_sees_or_replays_anothers_dead_letters(fleet: Fleet, client: httpx.Client) -> None:
    job_id = a_dead_letter(client)
    unknown = "job_default_" + 32 * "0"
    with fleet.client(key=OTHER_KEY) as stranger:
        own = a_dead_letter(stranger)
        assert [one["id"] for one in stranger.get(LETTERS).json()["data"]] == [own]
        for method, path in (("GET", "{}"), ("POST", "{}/replay")):
            foreign, none = (stranger.request(method, f"{LETTERS}/{path.format(name)}") for name in (job_id, unknown))
            assert foreign.status_code == none.status_code == 404
            assert foreign.content == none.content
        assert stranger.get(LETTERS, params={"after": job_id}).status_code == 400


def test_a_job_that_did_not_die_is_no_dead_letter(client: httpx.Client) -> None:
    job_id = submit(client, chat(words="x"))
    assert when(client, job_id)["status"] == "succeeded"
    assert client.get(f"{LETTERS}/{job_id}").status_code == 404
    answer = client.post(f"{LETTERS}/{job_id}/replay")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dead_letter_not_found")


def test_pages_go_over_all_pools_the_newest_first(fleet: Fleet) -> None:
    with fleet.client(key=MEMBER_KEY) as client:
        ids = [a_dead_letter(client, model) for model in ("echo", "elsewhere", "echo")]
        first = client.get(LETTERS, params={"limit": 2}).json()
        assert [one["id"] for one in first["data"]] == [ids[2], ids[1]] and first["has_more"]
        rest = client.get(LETTERS, params={"limit": 2, "after": ids[1]}).json()
        assert [one["id"] for one in rest["data"]] == [ids[0]] and not rest["has_more"]
        assert [one["id"] for one in client.get(LETTERS, params={"pool": "other"}).json()["data"]] == [ids[1]]
        for wrong in ({"pool": "none"}, {"limit": 0}, {"limit": "0000001999"}, {"after": "x"}):
            assert client.get(LETTERS, params=wrong).status_code == 400


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_show_what_they_run_where_and_since_when(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=1, hang_at=0))
    when(client, job_id, "running")
    rows = {row["pool"]: row for row in client.get("/workers").json()}
    assert set(rows) == {"default", "other"}
    assert rows["default"]["id"] == rows["other"]["id"]
    row = rows["default"]
    assert (row["status"], row["jobs"], rows["other"]["jobs"]) == ("active", [job_id], [])
    assert row["version"] and row["started_at"] > 1_700_000_000 and row["lease_expires_ms"] > row["started_at"] * 1000
    (backend,) = row["backends"]
    assert (backend["name"], backend["breaker"]) == ("echo", "closed")
    assert set(backend["slots"]) >= {"granted", "in_use"}
    with fleet.client(key=MEMBER_KEY) as member:
        assert all("jobs" not in row for row in member.get("/workers").json())
    client.post(f"/v1/jobs/{job_id}/cancel")
    when(client, job_id)


def test_only_operators_drain_and_only_workers_that_are_there(fleet: Fleet, client: httpx.Client) -> None:
    (name,) = {row["id"] for row in client.get("/workers").json()}
    with fleet.client(key=MEMBER_KEY) as member:
        answer = member.post(f"/v1/admin/workers/{name}/drain")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    answer = client.post("/v1/admin/workers/nobody/drain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "worker_not_found")
    assert all(row["status"] == "active" for row in client.get("/workers").json())


def test_a_worker_that_is_drained_ends_its_work_and_exits_with_0(fleet: Fleet, client: httpx.Client) -> None:
    before = {row["id"] for row in client.get("/workers").json()}
    member = fleet.add("worker-extra", "workers", pools="default")
    fleet.start_again("worker-extra")
    (name,) = {row["id"] for row in client.get("/workers").json()} - before
    jobs = [submit(client, chat(numbered=True, tokens=40, token_ms=40)) for _ in range(8)]
    until(lambda: _row(client, name)["jobs"], what="the worker took no job")
    for _ in range(2):
        answer = client.post(f"/v1/admin/workers/{name}/drain")
        assert (answer.status_code, answer.json()) == (202, {"id": name, "status": "draining"})
        assert _row(client, name)["status"] == "draining"
    taken = set(_row(client, name)["jobs"])
    later = submit(client, chat(words="x"))
    assert when(client, later)["status"] == "succeeded"
    assert member.wait(20) == 0
    assert name not in {row["id"] for row in client.get("/workers").json()}
    ended = [when(client, job_id) for job_id in jobs]
    assert [job["status"] for job in ended] == ["succeeded"] * len(jobs)
    assert [job["attempt"] for job in ended if job["id"] in taken] == [1] * len(taken)
    assert client.post(f"/v1/admin/workers/{name}/drain").status_code == 404
    del fleet.members["worker-extra"]


def _row(client: httpx.Client, name: str) -> dict[str, Any]:
    (row,) = [row for row in client.get("/workers").json() if row["id"] == name]
    return row
