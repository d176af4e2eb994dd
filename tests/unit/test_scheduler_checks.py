"""How each kind of backend is asked, and what its answer's status means."""

from __future__ import annotations

from typing import get_args

import pytest

from common.servers import Backend, Kind
from scheduler.prober import CHECKS, check_of, judge, key_headers


def _backend(kind: Kind, health_path: str | None = None) -> Backend:
    return Backend(name="b", kind=kind, base_url="http://127.0.0.1:1", health_path=health_path)


def test_every_kind_but_the_fake_is_asked() -> None:
    assert set(get_args(Kind)) - set(CHECKS) == {"echo"}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("vllm", "/health"),
        ("llamacpp", "/health"),
        ("ollama", "/api/version"),
        ("openai", "/v1/models"),
        ("anthropic", "/v1/models"),
        ("gemini", "/v1beta/models"),
        ("cohere", "/v1/models"),
    ],
)
def test_each_kind_is_asked_where_it_says_how_it_is(kind: Kind, path: str) -> None:
    check = check_of(_backend(kind))
    assert check is not None and check.path == path


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("vllm", {"authorization": "Bearer k"}),
        ("anthropic", {"anthropic-version": "2023-06-01", "x-api-key": "k"}),
        ("gemini", {"x-goog-api-key": "k"}),
        ("cohere", {"authorization": "Bearer k"}),
        ("echo", {"authorization": "Bearer k"}),
    ],
)
def test_each_kinds_key_goes_where_that_kind_looks_for_it(kind: Kind, headers: dict[str, str]) -> None:
    assert key_headers(kind, "k") == headers
    assert "k" not in key_headers(kind, None).values()


def test_a_backends_own_path_wins_and_must_then_succeed() -> None:
    check = check_of(_backend("openai", "status/live"))
    assert check is not None and (check.path, check.any_answer) == ("/status/live", False)


def test_a_service_with_a_path_of_its_own_is_asked_under_it() -> None:
    backend = Backend(name="b", kind="openai", base_url="http://127.0.0.1:1/v1beta/openai", options={"path": ""})
    check = check_of(backend)
    assert check is not None and backend.url + check.path == "http://127.0.0.1:1/v1beta/openai/models"


def test_an_empty_path_means_that_nothing_is_asked() -> None:
    assert check_of(_backend("openai", "")) is None
    assert check_of(_backend("echo")) is None


@pytest.mark.parametrize("status", [200, 204])
def test_success_is_healthy_anywhere(status: int) -> None:
    assert judge(status, any_answer=True) == judge(status, any_answer=False) == ""


@pytest.mark.parametrize("status", [301, 400, 401, 404, 429, 500, 503])
def test_a_health_check_that_does_not_succeed_is_a_failure(status: int) -> None:
    assert str(status) in judge(status, any_answer=False)


@pytest.mark.parametrize("status", [301, 403, 404, 405, 429])
def test_an_ordinary_route_may_refuse_and_the_server_still_lives(status: int) -> None:
    assert judge(status, any_answer=True) == ""


@pytest.mark.parametrize(("status", "words"), [(401, "API key"), (500, "500"), (503, "503")])
def test_an_ordinary_routes_own_fault_or_a_refused_key_is_a_failure(status: int, words: str) -> None:
    assert words in judge(status, any_answer=True)
