"""The error table, and the bodies that carry it."""

from __future__ import annotations

import inspect

import orjson
import pytest

from common import errors as house
from common.contracts import Failure, Job
from common.errors import HeadraceError, QueueFull, Unauthenticated
from gateway import http, hub
from gateway.dialects.responses_output import failed_object
from gateway.errors import TABLE, answer, error_object, openai_error, problem

CLASSES = [
    found
    for module in (house, http, hub)
    for _, found in inspect.getmembers(module, inspect.isclass)
    if issubclass(found, HeadraceError)
]


@pytest.mark.parametrize("raised", CLASSES)
def test_every_error_of_ours_has_its_row(raised: type[HeadraceError]) -> None:
    assert raised.code in TABLE


@pytest.mark.parametrize("code", sorted(TABLE))
def test_an_openai_error_has_all_four_keys_and_a_text_or_nothing_as_its_code(code: str) -> None:
    status, body, _ = openai_error(Failure(code, "It went wrong.", "n"))
    error = orjson.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["message"], error["param"]) == ("It went wrong.", "n")
    assert error["code"] is None or isinstance(error["code"], str)
    assert 400 <= status <= 599


@pytest.mark.parametrize("code", sorted(TABLE))
def test_no_error_is_a_409_which_sdks_would_send_again(code: str) -> None:
    assert openai_error(Failure(code, "x"))[0] != 409


@pytest.mark.parametrize(
    ("code", "status", "kind", "sent"),
    [
        ("invalid_request", 400, "invalid_request_error", None),
        ("invalid_api_key", 401, "invalid_request_error", "invalid_api_key"),
        ("model_not_found", 404, "invalid_request_error", "model_not_found"),
        ("queue_full", 429, "requests", "queue_full"),
        ("context_length_exceeded", 400, "invalid_request_error", "context_length_exceeded"),
        ("upstream_unreachable", 502, "server_error", "upstream_unreachable"),
        ("upstream_timeout", 504, "server_error", "upstream_timeout"),
        ("deadline_exceeded", 504, "server_error", "timeout"),
        ("cancelled", 499, "invalid_request_error", "cancelled"),
        ("stream_expired", 410, "invalid_request_error", "stream_expired"),
        ("fenced", 500, "server_error", "internal_error"),
        ("a code that nobody knows", 500, "server_error", "internal_error"),
    ],
)
def test_codes_become_openais_statuses_and_types(code: str, status: int, kind: str, sent: str | None) -> None:
    found, body, _ = openai_error(Failure(code, "x"))
    error = orjson.loads(body)["error"]
    assert (found, error["type"]) == (status, kind)
    assert error["code"] == sent


def test_the_servers_own_code_is_told_where_there_is_one_and_only_to_openais_clients() -> None:
    failure = Failure("upstream_refused", "x", "messages", upstream_code="invalid_image_format")
    assert orjson.loads(openai_error(failure)[1])["error"]["code"] == "invalid_image_format"
    assert orjson.loads(error_object(failure))["error"]["type"] == "invalid_request_error"
    for path in ("/v1/messages", "/api/chat", "/prompt"):
        assert b"invalid_image_format" not in answer(failure, path).body


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("invalid_image_format", "invalid_image_format"),
        ("unsupported_parameter", "invalid_prompt"),
        (None, "invalid_prompt"),
    ],
)
def test_a_response_that_failed_tells_the_servers_code_where_its_list_has_it(own: str | None, told: str) -> None:
    job = Job("job_p_" + "0" * 32, "p", "t", "/v1/responses", "m", {"messages": []}, dialect="responses")
    failed = failed_object(job, 1, [], Failure("upstream_refused", "x", upstream_code=own))
    assert failed["error"]["code"] == told


def test_who_should_come_back_later_is_told_when() -> None:
    _, _, headers = openai_error(QueueFull(retry_after_s=2.5).failure)
    assert headers == {"retry-after": "3", "retry-after-ms": "2500", "x-should-retry": "true"}


def test_a_wait_is_never_told_as_nothing() -> None:
    _, _, headers = openai_error(QueueFull(retry_after_s=0).failure)
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "1")


@pytest.mark.parametrize("code", ["deadline_exceeded", "timeout", "upstream_credentials"])
def test_what_trying_again_cannot_mend_says_so(code: str) -> None:
    assert openai_error(Failure(code, "x"))[2]["x-should-retry"] == "false"


def test_a_missing_key_is_asked_for() -> None:
    status, body, headers = openai_error(Unauthenticated().failure)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert b"invalid_api_key" in body


def test_a_problem_follows_the_rfc() -> None:
    status, body, headers = problem(QueueFull(param="model", retry_after_s=1).failure, "/prompt")
    told = orjson.loads(body)
    assert (status, headers["retry-after"]) == (429, "1")
    assert told == {
        "type": "about:blank",
        "title": "Queue full",
        "status": 429,
        "detail": "The queue for this model is full; try again later.",
        "instance": "/prompt",
        "code": "queue_full",
        "param": "model",
    }


def test_an_instance_is_bounded() -> None:
    assert len(orjson.loads(problem(Failure("not_found", "x"), "/" + "a" * 10_000)[1])["instance"]) == 256


def test_the_path_decides_the_dialect() -> None:
    failure = Failure("not_found", "x")
    assert answer(failure, "/v1/jobs/x").media_type == "application/json"
    assert answer(failure, "/prompt").media_type == "application/problem+json"
    assert answer(failure, "/v10").media_type == "application/problem+json"


def test_an_error_is_one_line_of_json_whatever_its_text() -> None:
    raw = error_object(Failure("upstream_error", 'a\r\n\r\ndata: "x"\u2028'))
    assert b"\n" not in raw
    assert b"\r" not in raw
