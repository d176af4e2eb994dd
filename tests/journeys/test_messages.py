"""Anthropic's Messages API over HTTP: whole, streamed, with tools, cut, refused; and who may ask for what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from tests.journeys.conftest import GRACE_S, SilentModel
from tests.support.fleet import KEY, Fleet, until
from tests.support.say import Frame, frames, record, when

pytestmark = pytest.mark.timeout(60)

PATH = "/v1/messages"
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HARD = 'quotes " back\\slash\ttab\r\nnew line \u2028 \u2029 \x85 é 汉字 👩‍👩‍👧 event: error'


def asked(words: str | None = None, *, model: str = "echo", stream: bool = False, **more: Any) -> dict[str, Any]:
    """A request whose answer is these words, or goes by a script."""
    script = more.pop("script", {})
    text = words if words is not None else "echo: " + orjson.dumps(script).decode()
    body = {"model": model, "max_tokens": 1_000, "messages": [{"role": "user", "content": text}], **more}
    return {**body, "stream": True} if stream else body


@pytest.fixture
def claude(fleet: Fleet) -> Iterator[httpx.Client]:
    """A client as Anthropic's are: its key in a header of its own, its version and a query that says nothing to us."""
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "some-beta"}
    with httpx.Client(base_url=fleet.url(), headers=headers, params={"beta": "true"}, timeout=20) as one:
        yield one


def streamed(client: httpx.Client, body: dict[str, Any], **headers: str) -> list[Frame]:
    answer = client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return frames(answer.content)


def deltas(events: list[Frame], kind: str, name: str) -> str:
    told = [event.json["delta"] for event in events if event.name == "content_block_delta"]
    return "".join(delta[name] for delta in told if delta["type"] == kind)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_message_comes_whole(claude: httpx.Client) -> None:
    answer = claude.post(PATH, json=asked("one two three"))
    body = answer.json()
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "echo")
    assert body["content"] == [{"type": "text", "text": "one two three"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (3, 3)
    assert body["id"] == "msg_" + answer.headers["x-headrace-job-id"][-32:]
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["request-id"].startswith("req_")


def test_a_message_comes_as_named_events(claude: httpx.Client) -> None:
    events = streamed(claude, asked("one two", stream=True))
    assert [event.name for event in events] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert all(event.json["type"] == event.name for event in events)
    assert events[-2].json["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (events[-2].json["usage"]["input_tokens"], events[-2].json["usage"]["output_tokens"]) == (2, 2)


def test_text_of_every_kind_comes_back_as_it_was(claude: httpx.Client) -> None:
    assert claude.post(PATH, json=asked(HARD)).json()["content"] == [{"type": "text", "text": HARD}]
    assert deltas(streamed(claude, asked(HARD, stream=True)), "text_delta", "text") == HARD


def test_thoughts_are_blocks_of_their_own_where_they_are_asked_for(claude: httpx.Client) -> None:
    script = {"text": "so", "reasoning": "let me see"}
    wanted = {"type": "adaptive", "display": "summarized"}
    whole = claude.post(PATH, json=asked(script=script, thinking=wanted)).json()
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    events = streamed(claude, asked(script=script, stream=True, thinking=wanted))
    assert deltas(events, "thinking_delta", "thinking") == whole["content"][0]["thinking"] == "let me see"
    hidden = claude.post(PATH, json=asked(script=script)).json()
    assert [block["type"] for block in hidden["content"]] == ["text"]


def test_a_limit_ends_an_answer_and_says_so(claude: httpx.Client) -> None:
    body = asked(script={"numbered": True})
    assert claude.post(PATH, json={**body, "max_tokens": 3}).json()["stop_reason"] == "max_tokens"
    events = streamed(claude, {**body, "max_tokens": 3, "stream": True})
    assert events[-2].json["delta"]["stop_reason"] == "max_tokens"
    refused = claude.post(PATH, json=asked(script={"text": "no", "finish_reason": "content_filter"})).json()
    assert refused["stop_reason"] == "refusal"


def test_calls_of_tools_come_whole_and_streamed_and_their_results_go_back(claude: httpx.Client) -> None:
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Saint-Étienne", "東京")]
    body = asked(script={"tool_calls": calls}, tools=[TOOL])
    whole = claude.post(PATH, json=body).json()
    assert whole["stop_reason"] == "tool_use"
    assert [block["input"] for block in whole["content"]] == [call["arguments"] for call in calls]
    events = streamed(claude, {**body, "stream": True})
    starts = [event.json["content_block"] for event in events if event.name == "content_block_start"]
    assert [(block["type"], block["name"], block["input"]) for block in starts] == [("tool_use", "get_weather", {})] * 2
    pieces = deltas(events, "input_json_delta", "partial_json").encode()
    assert pieces == b"".join(orjson.dumps(call["arguments"]) for call in calls)
    assert events[-2].json["delta"]["stop_reason"] == "tool_use"

    results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"} for block in whole["content"]]
    turns = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [*results, {"type": "text", "text": "and so?"}]},
    ]
    answer = claude.post(PATH, json={**asked("x", tools=[TOOL]), "messages": turns}).json()
    assert answer["content"] == [{"type": "text", "text": "and so?"}]


def test_a_tool_that_must_be_used_is_used(claude: httpx.Client) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = claude.post(PATH, json=asked("weather?", tools=[TOOL], tool_choice=choice)).json()
        assert [block["name"] for block in answer["content"]] == ["get_weather"]


def test_a_picture_goes_on_without_being_fetched(claude: httpx.Client) -> None:
    blocks: list[Any] = [
        {"type": "image", "source": {"type": "url", "url": "https://unreachable.invalid/a.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "text", "text": "what is it?"},
    ]
    answer = claude.post(PATH, json={**asked("x"), "messages": [{"role": "user", "content": blocks}]}).json()
    assert answer["content"][0]["text"] == "what is it?"


def test_a_silent_stream_is_kept_alive_by_pings(claude: httpx.Client, remote: SilentModel) -> None:
    raw = b""
    with claude.stream("POST", PATH, json=asked("x", model="remote", stream=True)) as answer:
        for piece in answer.iter_raw():
            raw += piece
            if b"event: ping" in raw:
                break
    assert [event.name for event in frames(raw)][:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert frames(raw)[-1].json == {"type": "ping"}
    until(lambda: remote.hanging == 0, GRACE_S + 12, "the upstream was not cut")


def test_who_hangs_up_cancels_the_work(claude: httpx.Client, client: httpx.Client, remote: SilentModel) -> None:
    with claude.stream("POST", PATH, json=asked("x", model="remote", stream=True)) as answer:
        next(answer.iter_raw())
        assert remote.hanging == 1
        job_id = answer.headers["x-headrace-job-id"]
    until(lambda: remote.hanging == 0, GRACE_S + 12, "the upstream was not cut")
    assert when(client, job_id)["status"] == "cancelled"
    assert record(client, job_id)["endpoint"] == PATH


def test_the_same_key_gets_the_same_message(claude: httpx.Client) -> None:
    headers = {"idempotency-key": "the-same-message"}
    first = claude.post(PATH, json=asked("once"), headers=headers)
    again = claude.post(PATH, json=asked("once"), headers=headers)
    assert again.json() == first.json()
    assert again.headers["x-headrace-replayed"] == "true"
    other = claude.post(PATH, json=asked("twice"), headers=headers)
    assert (other.status_code, other.json()["error"]["type"]) == (422, "invalid_request_error")


# --- refusals ---------------------------------------------------------------------------------------------------------


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """(status, type) of a refusal in Anthropic's form that names its request."""
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["type"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_refused_before_the_first_byte(claude: httpx.Client, *, stream: bool) -> None:
    answer = claude.post(PATH, json=asked("x", model="nobody", stream=stream))
    assert error_of(answer) == (404, "not_found_error")
    assert "nobody" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_is_a_status(claude: httpx.Client, *, stream: bool) -> None:
    def failed(code: str) -> tuple[int, str]:
        return error_of(claude.post(PATH, json=asked(script={"text": "a", "error": code}, stream=stream)))

    assert failed("context_length_exceeded") == (400, "invalid_request_error")
    assert failed("upstream_refused") == (400, "invalid_request_error")


def test_a_failure_in_the_middle_is_an_event_and_the_last(claude: httpx.Client) -> None:
    script = {"text": "one two three", "fail_at": 2, "token_ms": 100, "error": "upstream_error"}
    events = streamed(claude, asked(script=script, stream=True))
    assert deltas(events, "text_delta", "text") == "one two"
    assert (events[-1].name, events[-1].json["error"]["type"]) == ("error", "api_error")
    assert events[-1].json["request_id"].startswith("req_")
    assert "message_stop" not in [event.name for event in events]


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"{", {}, (400, "invalid_request_error")),
        (b"[]", {}, (400, "invalid_request_error")),
        (
            orjson.dumps({"model": "echo", "messages": [{"role": "user", "content": "x"}]}),
            {},
            (400, "invalid_request_error"),
        ),
        (b"{}", {"content-type": "text/plain"}, (415, "invalid_request_error")),
        (b"{}", {"x-api-key": "wrong"}, (401, "authentication_error")),
        (orjson.dumps(asked("x")), {"x-headrace-priority": "soon"}, (400, "invalid_request_error")),
    ],
)
def test_what_is_wrong_is_said_in_anthropics_form(
    claude: httpx.Client, content: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    answer = claude.post(PATH, content=content, headers={"content-type": "application/json", **headers})
    assert error_of(answer) == expected


def test_a_wrong_key_is_told_where_anthropics_clients_put_it(claude: httpx.Client) -> None:
    answer = claude.post(PATH, content=b"{}", headers={"x-api-key": "wrong"})
    assert "'x-api-key: <key>'" in answer.json()["error"]["message"]


def test_wrong_paths_and_methods_are_answered_in_its_form_too(claude: httpx.Client) -> None:
    assert error_of(claude.get(PATH)) == (405, "invalid_request_error")
    assert error_of(claude.post(PATH + "/batches", json={})) == (404, "not_found_error")


def test_a_bearer_key_serves_as_well(client: httpx.Client) -> None:
    assert client.post(PATH, json=asked("hello")).status_code == 200


# --- counting and models ----------------------------------------------------------------------------------------------


def test_tokens_are_estimated_without_a_job(claude: httpx.Client, client: httpx.Client) -> None:
    newest = client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    body = {"model": "echo", "messages": [{"role": "user", "content": "word " * 100}]}
    count = claude.post(PATH + "/count_tokens", json=body).json()
    assert count.keys() == {"input_tokens"} and 90 <= count["input_tokens"] <= 200
    more = claude.post(PATH + "/count_tokens", json={**body, "tools": [TOOL], "system": "Be brief."}).json()
    assert more["input_tokens"] > count["input_tokens"]
    assert client.get("/v1/jobs", params={"limit": 1}).json()["data"] == newest
    assert error_of(claude.post(PATH + "/count_tokens", json={**body, "model": "nobody"})) == (404, "not_found_error")
    assert error_of(claude.post(PATH + "/count_tokens", json={"model": "echo"})) == (400, "invalid_request_error")
    nobody = claude.post(PATH + "/count_tokens", json=body, headers={"x-api-key": "wrong"})
    assert error_of(nobody) == (401, "authentication_error")


def test_models_are_listed_in_the_form_of_who_asks(claude: httpx.Client, client: httpx.Client) -> None:
    names = [one["id"] for one in client.get("/v1/models").json()["data"]]
    page = claude.get("/v1/models", params={"limit": 2})
    assert page.json()["has_more"] is True
    assert [one["id"] for one in page.json()["data"]] == names[:2]
    assert page.headers["request-id"] == page.headers["x-request-id"]
    rest = claude.get("/v1/models", params={"limit": 100, "after_id": page.json()["last_id"]}).json()
    assert [one["id"] for one in rest["data"]] == names[2:]
    assert claude.get("/v1/models/org/echo:8b").json()["display_name"] == "org/echo:8b"
    missing = claude.get("/v1/models/nobody")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert missing.headers["request-id"] == missing.headers["x-request-id"] == missing.json()["request_id"]
    nobody = claude.get("/v1/models", headers={"x-api-key": "wrong"})
    assert error_of(nobody) == (401, "authentication_error")
    assert nobody.headers["request-id"] == nobody.json()["request_id"]
    assert "request-id" not in client.get("/v1/models").headers
    assert client.get("/v1/models/nobody").json()["error"]["code"] == "model_not_found"
