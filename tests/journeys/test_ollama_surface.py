"""Ollama's API over HTTP: what its clients look at, line by line."""

from __future__ import annotations

import re
from typing import Any

import httpx
import orjson
import pytest

from tests.support.fleet import Fleet
from tests.support.say import messages, record, when

pytestmark = pytest.mark.timeout(60)

CALLS = [{"name": "get_weather", "arguments": {"city": "東京", "days": 2}}, {"name": "get_time", "arguments": {}}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def chat(words: str | None = None, *, model: str = "echo", more: dict[str, Any] | None = None, **script: Any) -> Any:
    """A body of `/api/chat`; its answer is these words, or goes by a script."""
    return {"model": model, "messages": messages(words, **script), **(more or {})}


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    """A stream's lines, checked to be JSON lines and nothing else."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.content.endswith(b"\n")
    return [orjson.loads(line) for line in answer.content[:-1].split(b"\n")]


def refused(answer: httpx.Response, status: int, words: str) -> None:
    """Checks Ollama's error object."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"] and words in body["error"], body


# --- chats and prompts ------------------------------------------------------------------------------------------------


def test_a_chat_streams_by_default_and_ends_with_counts_and_durations(client: httpx.Client) -> None:
    said = lines(client.post("/api/chat", json=chat("one two three")))
    assert "".join(line["message"]["content"] for line in said) == "one two three"
    assert {line["message"]["role"] for line in said} == {"assistant"}
    assert [line["done"] for line in said] == [False] * (len(said) - 1) + [True]
    assert {line["model"] for line in said} == {"echo"}
    moments = [line["created_at"] for line in said]
    assert moments == sorted(moments) and all(re.fullmatch(r"[0-9T:-]{19}\.[0-9]{3}Z", one) for one in moments)
    last = said[-1]
    assert last["done_reason"] == "stop"
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 3)
    spent = [last[name] for name in ("load_duration", "prompt_eval_duration", "eval_duration") if name in last]
    assert last["eval_duration"] > 0 and sum(spent) <= last["total_duration"] + 1_000_000


def test_a_chat_that_wants_no_stream_is_one_object(client: httpx.Client) -> None:
    answer = client.post("/api/chat", json=chat("one two", more={"stream": False}))
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["message"] == {"role": "assistant", "content": "one two"}
    assert (body["done"], body["done_reason"], body["prompt_eval_count"], body["eval_count"]) == (True, "stop", 2, 2)
    assert body["total_duration"] >= body["load_duration"] >= 0 and body["eval_duration"] > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_is_answered_with_a_response(client: httpx.Client, stream: bool) -> None:
    body = {"model": "echo", "prompt": "a b c", "system": "Be short.", "stream": stream, "keep_alive": "5m"}
    answer = client.post("/api/generate", json=body)
    said = lines(answer) if stream else [answer.json()]
    assert "".join(line["response"] for line in said) == "a b c"
    assert said[-1]["done"] and said[-1]["done_reason"] == "stop"
    assert said[-1]["prompt_eval_count"] == 5


def test_an_answer_that_is_cut_at_num_predict_says_length(client: httpx.Client) -> None:
    said = lines(client.post("/api/chat", json=chat(numbered=True, more={"options": {"num_predict": 4}})))
    assert "".join(line["message"]["content"] for line in said) == " 0 1 2 3"
    assert said[-1]["done_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_tool_calls_come_whole_with_arguments_that_are_objects(client: httpx.Client, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    answer = client.post("/api/chat", json=chat(tool_calls=CALLS, more={"tools": [tool], "stream": stream}))
    said = lines(answer) if stream else [answer.json()]
    called = [call for line in said for call in line["message"].get("tool_calls", ())]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in called] == [
        ("get_weather", {"city": "東京", "days": 2}),
        ("get_time", {}),
    ]
    assert said[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_thinking_comes_apart_from_the_answer_or_not_at_all(client: httpx.Client, stream: bool) -> None:
    for think, expected in ((True, "Hm, well."), (None, "Hm, well."), (False, "")):
        more = {"stream": stream, "think": think}
        answer = client.post("/api/chat", json=chat(text="yes", reasoning="Hm, well.", more=more))
        said = lines(answer) if stream else [answer.json()]
        assert "".join(line["message"].get("thinking", "") for line in said) == expected
        assert "".join(line["message"]["content"] for line in said) == "yes"


def test_log_probabilities_come_with_each_token(client: httpx.Client) -> None:
    said = lines(client.post("/api/chat", json=chat("a b", more={"logprobs": True, "top_logprobs": 2})))
    told = [entry for line in said for entry in line.get("logprobs", ())]
    assert [entry["token"] for entry in told] == ["a", " b"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in told)


def test_a_conversation_with_tools_and_pictures_is_taken(client: httpx.Client) -> None:
    history = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "weather?", "images": [PIXEL]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"url": "x"}}}]},
        {"role": "tool", "tool_name": "f", "content": "rain"},
        {"role": "user", "content": "so?"},
    ]
    body = {"model": "echo", "messages": history, "stream": False, "format": {"type": "object"}}
    answer = client.post("/api/chat", json=body)
    assert answer.json()["message"]["content"] == "so?", answer.text


@pytest.mark.parametrize("model", ["echo:latest", "echo", "org/echo:8b"])
def test_a_model_may_be_named_with_or_without_latest(client: httpx.Client, model: str) -> None:
    answer = client.post("/api/chat", json=chat("hi", model=model, more={"stream": False}))
    assert answer.json()["model"] == model


@pytest.mark.parametrize(("path", "said"), [("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})])
def test_a_request_that_asks_for_nothing_is_done_at_once(client: httpx.Client, path: str, said: Any) -> None:
    for keep_alive, reason in (("5m", "load"), (0, "unload")):
        answer = client.post(path, json={"model": "echo", "keep_alive": keep_alive, **said})
        assert (answer.json()["done"], answer.json()["done_reason"]) == (True, reason)
        assert "x-headrace-job-id" not in answer.headers


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream"])
def test_what_clients_send_without_a_content_type_is_taken_but_not_from_a_page(client: httpx.Client, kind: str) -> None:
    raw = orjson.dumps(chat("hi", more={"stream": False}))
    form = {"content-type": kind}
    assert client.post("/api/chat", content=raw, headers=form).json()["message"]["content"] == "hi"
    refused(client.post("/api/chat", content=raw, headers={**form, "origin": "http://a.example"}), 415, "JSON")
    assert client.post("/v1/chat/completions", content=raw, headers=form).status_code == 415


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_job_that_tells_where_it_came_in(client: httpx.Client) -> None:
    answer = client.post("/api/chat", json=chat("hello"))
    found = record(client, answer.headers["x-headrace-job-id"])
    assert (found["endpoint"], found["status"], found["model"]) == ("/api/chat", "succeeded", "echo")
    assert found["result"]["choices"][0]["message"]["content"] == "hello"


def test_the_same_idempotency_key_gets_the_same_answer(client: httpx.Client) -> None:
    for stream in (True, False):
        body, key = chat("a b", more={"stream": stream}), {"idempotency-key": f"ollama-{stream}"}
        first, second = (client.post("/api/chat", json=body, headers=key) for _ in range(2))
        assert second.headers["x-headrace-replayed"] == "true"
        if stream:  # each line bears the time that it went out
            told = [[{**line, "created_at": ""} for line in lines(one)] for one in (first, second)]
            assert told[0] == told[1]
        else:
            assert second.content == first.content
        other = client.post("/api/generate", json={"model": "echo", "prompt": "a b", "stream": stream}, headers=key)
        refused(other, 422, "Idempotency-Key")


def test_a_client_that_leaves_cancels_its_job(client: httpx.Client) -> None:
    with client.stream("POST", "/api/chat", json=chat(numbered=True, tokens=5, hang_at=2)) as answer:
        next(answer.iter_lines())
        job_id = answer.headers["x-headrace-job-id"]
    assert when(client, job_id)["status"] == "cancelled"


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_come_in_the_order_of_their_texts(client: httpx.Client) -> None:
    both = client.post("/api/embed", json={"model": "echo:latest", "input": ["one two", "three"]}).json()
    assert both["model"] == "echo:latest" and both["prompt_eval_count"] == 3
    assert both["total_duration"] >= both["load_duration"] >= 0
    for text, vector in zip(("one two", "three"), both["embeddings"], strict=True):
        one = client.post("/api/embed", json={"model": "echo", "input": text}).json()
        old = client.post("/api/embeddings", json={"model": "echo", "prompt": text}).json()
        assert one["embeddings"] == [vector] == [old["embedding"]]
        assert list(old) == ["embedding"]
    short = client.post("/api/embed", json={"model": "echo", "input": "a", "dimensions": 4}).json()
    assert len(short["embeddings"][0]) == 4


def test_nothing_to_embed_is_no_embedding(client: httpx.Client) -> None:
    assert client.post("/api/embed", json={"model": "echo", "input": ""}).json() == {"model": "echo", "embeddings": []}
    assert client.post("/api/embed", json={"model": "echo", "input": []}).json()["embeddings"] == []
    assert client.post("/api/embeddings", json={"model": "echo", "prompt": ""}).json() == {"embedding": []}


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_with_tags_that_are_understood(client: httpx.Client) -> None:
    for path in ("/api/tags", "/api/ps"):
        found = client.get(path).json()["models"]
        names = [one["name"] for one in found]
        assert "echo:latest" in names and "org/echo:8b" in names
        assert len({one["digest"] for one in found}) == len(found)
    for name in names:
        shown = client.post("/api/show", json={"model": name}).json()
        assert "completion" in shown["capabilities"] and isinstance(shown["model_info"], dict)


def test_whoever_asks_whether_somebody_is_there_is_told_so_without_a_key(fleet: Fleet) -> None:
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, fleet.url() + "/", trust_env=False)
        assert (answer.status_code, answer.text) == (200, "Ollama is running" if method == "GET" else "")


@pytest.mark.parametrize("path", ["/api/tags", "/api/version"])
def test_clients_that_only_look_get_no_body(fleet: Fleet, client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    with fleet.client(0, key="wrong") as stranger:
        assert stranger.head(path).status_code == 401


def test_the_version_is_one_that_clients_can_compare(client: httpx.Client) -> None:
    version = client.get("/api/version").json()["version"]
    assert [part.isdigit() for part in version.split(".")] == [True] * 3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
def test_an_unknown_model_is_not_found_and_no_json_is_refused(client: httpx.Client, path: str) -> None:
    given = {"messages": messages("a"), "prompt": "a", "input": "a"}
    refused(client.post(path, json={"model": "none", **given}), 404, "model 'none' not found")
    refused(client.post(path, content=b"{", headers={"content-type": "application/json"}), 400, "JSON")
    refused(client.post(path, json=given), 400, "model")


def test_keys_and_addresses_are_refused_in_ollamas_form(fleet: Fleet, client: httpx.Client) -> None:
    with fleet.client(0, key="wrong") as stranger:
        for method, path in (("POST", "/api/chat"), ("GET", "/api/tags"), ("GET", "/api/version")):
            refused(stranger.request(method, path, json={}), 401, "Incorrect API key")
    refused(client.post("/api/pull", json={"model": "x"}), 404, "/api/pull")
    refused(client.get("/api/chat"), 405, "GET")


def test_an_option_with_a_fault_is_refused_also_where_there_is_nothing_to_do(client: httpx.Client) -> None:
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"):
        answer = client.post(path, json={"model": "echo"}, headers={"x-headrace-priority": "urgent"})
        refused(answer, 400, "x-headrace-priority")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"template": "{{ .Prompt }}"}, "template: not supported"),
        ({"raw": True}, "raw: not supported"),
        ({"suffix": "}"}, "suffix: not supported"),
        ({"context": [1, 2]}, "context: not supported"),
        ({"options": {"temperature": 9}}, "options.temperature: must be at most 2"),
        ({"options": {"num_predict": "all"}}, "options.num_predict"),
        ({"format": "yaml"}, "format: must be 'json' or a JSON schema"),
        ({"images": ["no base64!"]}, "images[0]: must be base64"),
        ({"images": ["AAAA"]}, "images[0]: must be a PNG"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_what_can_not_be_done_is_refused_by_its_name(client: httpx.Client, more: Any, words: str) -> None:
    refused(client.post("/api/generate", json={"model": "echo", "prompt": "a", **more}), 400, words)


def test_a_failure_before_the_first_token_is_a_status_and_after_it_a_line(client: httpx.Client) -> None:
    for stream in (True, False):
        answer = client.post("/api/chat", json=chat(error="upstream_refused", more={"stream": stream}))
        refused(answer, 400, "refused")
    said = lines(client.post("/api/chat", json=chat(numbered=True, tokens=5, token_ms=20, fail_at=2)))
    assert "".join(line["message"]["content"] for line in said[:-1]) == " 0 1"
    assert list(said[-1]) == ["error"]
