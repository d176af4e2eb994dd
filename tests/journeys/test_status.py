"""What probes, dashboards and people are told, and that every route that is not for them wants a key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fleet import Fleet, until
from tests.support.say import CHAT, chat, record, submit, when

pytestmark = pytest.mark.timeout(60)

PUBLIC = {"/livez", "/readyz", "/health", "/healthz", "/metrics"}


@pytest.fixture
def nobody(fleet: Fleet) -> httpx.Client:
    """A client without a key."""
    return httpx.Client(base_url=fleet.url(), trust_env=False)


def test_probes_are_answered_without_a_key(nobody: httpx.Client) -> None:
    with nobody:
        assert (nobody.get("/livez").status_code, nobody.get("/livez").text) == (200, "ok\n")
        assert (nobody.get("/readyz").status_code, nobody.get("/readyz").text) == (200, "ok\n")
        health = nobody.get("/health")
        assert health.status_code == 200
        assert (health.json()["status"], health.json()["store"], health.json()["workers"]) == ("ok", "ok", 2)
        assert nobody.get("/healthz").json()["status"] == "ok"


def test_workers_are_shown_with_their_leases_and_backends(client: httpx.Client) -> None:
    (one, narrow) = sorted(client.get("/workers").json(), key=lambda worker: worker["pool"])
    assert (one["pool"], one["concurrency"], narrow["pool"], narrow["concurrency"]) == ("default", 64, "narrow", 1)
    assert one["lease_expires_ms"] > 0
    assert {backend["name"] for backend in one["backends"]} == {"echo", "remote"}

    def checked() -> bool:
        (worker,) = [worker for worker in client.get("/workers").json() if worker["pool"] == "default"]
        return all(backend["healthy"] is True for backend in worker["backends"])

    until(checked, what="a backend was never found healthy")


def test_a_running_job_is_seen_at_its_worker(client: httpx.Client) -> None:
    job_id = submit(client, chat("narrow", numbered=True, tokens=1, hang_at=0))
    when(client, job_id, "running")

    def running() -> int:
        (worker,) = [worker for worker in client.get("/workers").json() if worker["pool"] == "narrow"]
        return worker["running"]

    until(lambda: running() == 1, what="the job was never shown at its worker")
    client.post(f"/v1/jobs/{job_id}/cancel")
    until(lambda: running() == 0, what="the job is still shown at its worker")


def test_queues_tell_their_depth_by_class(client: httpx.Client) -> None:
    ids = [submit(client, chat("unserved", words="x"), priority=name) for name in ("batch", "standard", "batch")]

    def pool() -> dict[str, Any]:
        (found,) = [one for one in client.get("/v1/queues").json()["data"] if one["pool"] == "idle"]
        return found

    assert pool()["depth"] == 3
    assert pool()["by_class"] == {"interactive": 0, "standard": 1, "batch": 2}
    lanes = {(lane["class"], lane["model"]): lane for lane in pool()["lanes"] if lane["depth"]}
    assert set(lanes) == {("standard", "unserved"), ("batch", "unserved")}
    assert all(lane["oldest_age_ms"] >= 0 for lane in lanes.values())
    for job_id in ids:
        assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert pool()["depth"] == 0


def test_metrics_count_requests_by_route_and_never_by_id(client: httpx.Client) -> None:
    job_id = client.post(CHAT, json=chat(words="x")).headers["x-headrace-job-id"]
    record(client, job_id)
    client.get("/nowhere/" + job_id)
    text = client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith(("headrace_", "process_", "python_")) for name in families)
    routes = {sample.labels.get("route") for family in families.values() for sample in family.samples}
    assert {CHAT, "/v1/jobs/{job_id}", "unmatched"} <= routes
    assert job_id not in text


def test_every_route_of_the_description_wants_a_key_but_the_public_ones(
    client: httpx.Client, nobody: httpx.Client
) -> None:
    described = client.get("/docs/api").json()
    assert described["openapi"].startswith("3.")
    asked = 0
    with nobody:
        for path, methods in described["paths"].items():
            for method in methods:
                answer = nobody.request(method.upper(), path.replace("{job_id}", "x").replace("{model}", "x"))
                expected = 200 if path in PUBLIC or path.startswith("/docs") else 401
                assert answer.status_code == expected, f"{method} {path}"
                asked += 1
    assert asked >= 14


def test_the_description_says_of_each_route_only_what_it_answers(client: httpx.Client) -> None:
    described = client.get("/docs/api").json()
    assert {"HTTPValidationError", "ValidationError"} & described["components"]["schemas"].keys() == set()
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            told = {status: answer["description"] for status, answer in route["responses"].items()}
            assert "Successful Response" not in told.values(), f"{method} {path}"
            asks_a_key = any(one["name"] == "Idempotency-Key" for one in route.get("parameters", ()))
            assert asks_a_key == ("422" in told), f"{method} {path}"
    assert "Idempotency-Key" in str(described["paths"]["/v1/jobs"]["post"]["parameters"])
    replay = described["paths"]["/v1/admin/dead-letters/{job_id}/replay"]["post"]
    assert "202" in replay["responses"] and "200" not in replay["responses"]


def test_head_tells_the_headers_alone_and_leaves_the_connection_sound(client: httpx.Client) -> None:
    job_id = client.post(CHAT, json=chat(words="x")).headers["x-headrace-job-id"]
    response = client.post("/v1/responses", json={"model": "echo", "input": "x"}).json()["id"]
    file = client.post("/v1/files", files={"file": ("a", b"x" * 9)}, data={"purpose": "user_data"}).json()["id"]
    streams = (f"/v1/jobs/{job_id}/events", f"/v1/responses/{response}?stream=true")
    for path in ("/livez", "/v1/models", f"/v1/responses/{response}", f"/v1/files/{file}/content", *streams):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        got = client.get(path)
        assert (got.status_code, got.headers["content-type"]) == (200, head.headers["content-type"]), path
        assert (int(head.headers.get("content-length", -1)) == len(got.content)) == (path not in streams), path
    assert client.head("/v1/jobs/none").status_code == 404
    assert client.delete(f"/v1/files/{file}").status_code == 200


def test_swagger_and_all_that_it_loads_come_from_here(client: httpx.Client, nobody: httpx.Client) -> None:
    with nobody:
        page = nobody.get("/docs/swagger")
        assert page.status_code == 200 and "swagger-ui" in page.text
        links = [part.split('"')[0] for part in page.text.replace('href="', 'src="').split('src="')[1:]]
        assert links and all(link.startswith("/") for link in links)
        for link in links:
            assert nobody.get(link).status_code == 200, link
    assert "http://" not in page.text and "https://" not in page.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/chat/completions/", 404, "unknown_url"),
        ("GET", "/v1//jobs", 404, "unknown_url"),
    ],
)
def test_a_wrong_address_is_answered_in_openais_form(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


def test_a_wrong_address_elsewhere_is_a_problem_document(client: httpx.Client) -> None:
    answer = client.get("/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["status"] == 404
