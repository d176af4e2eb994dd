"""Hosted kinds of backends behind the whole stack: services that play Anthropic, Gemini, Cohere; and our own APIs.

`claude`, `llama` and `gpt` are the fleet's own gateway again, asked in Anthropic's, Ollama's and OpenAI's dialect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.providers.faces import FACES
from tests.providers.faces_openai import CHAT, FUNCTION, TOOL
from tests.providers.faces_other import MESSAGES
from tests.providers.interleaved import HIDDEN, MORE, SEALED, SECOND, THOUGHT, WORDS, joined, upstream_events, use
from tests.providers.recordings import MADE_TOKENS, PROMPT_TOKENS, SCRIPTS, SIGNATURE, named, reply
from tests.providers.refusals import refusal
from tests.providers.said import Face, Reads, Said
from tests.support import grpc_client
from tests.support.fleet import KEY, Fleet, until
from tests.support.say import chat, follow, frames, record, text_of, when
from tests.support.upstream import BREAK, Reply, Request, Upstream, in_thread

pytestmark = [pytest.mark.timeout(60), pytest.mark.lengthy]

SECRETS: Final = ("anthropic-key-61c2", "gemini-key-8f0d", "cohere-key-b7e3")
CONFIG: Final = """
backends:
  - {name: echo, kind: echo}
  - {name: self-anthropic, kind: anthropic, base_url: "${HEADRACE_TEST_SELF}", api_keys: ["${HEADRACE_TEST_KEY}"]}
  - {name: self-ollama, kind: ollama, base_url: "${HEADRACE_TEST_SELF}", api_keys: ["${HEADRACE_TEST_KEY}"]}
  - {name: self-openai, kind: openai, base_url: "${HEADRACE_TEST_SELF}/v1", api_keys: ["${HEADRACE_TEST_KEY}"]}
  - name: self-vllm
    kind: vllm
    base_url: "${HEADRACE_TEST_SELF}"
    api_keys: ["${HEADRACE_TEST_KEY}"]
    health_path: ""
  - {name: anthropic, kind: anthropic, base_url: "${HEADRACE_TEST_HOSTED}", api_keys: [anthropic-key-61c2]}
  - {name: crowded, kind: anthropic, base_url: "${HEADRACE_TEST_HOSTED}", api_keys: [anthropic-key-61c2]}
  - {name: gemini, kind: gemini, base_url: "${HEADRACE_TEST_HOSTED}", api_keys: [gemini-key-8f0d]}
  - {name: cohere, kind: cohere, base_url: "${HEADRACE_TEST_HOSTED}", api_keys: [cohere-key-b7e3]}
models:
  echo: {targets: [{backend: echo, model: echo}]}
  claude: {targets: [{backend: self-anthropic, model: echo}]}
  llama: {targets: [{backend: self-ollama, model: echo}]}
  gpt: {targets: [{backend: self-openai, model: echo}]}
  qwen: {targets: [{backend: self-vllm, model: echo}]}
"""
BLOCKS: Final = [THOUGHT, WORDS, use(0), SECOND, SEALED, MORE, HIDDEN, use(1)]
OURSELVES: Final = ("claude", "llama", "gpt", "qwen")
HOSTED: Final = ("anthropic", "gemini", "cohere")
# The model's name says what the service answers.
MODELS: Final = "".join(
    f"  {kind}-{name}: {{targets: [{{backend: {kind}, model: {name}}}]}}\n"
    for kind in HOSTED
    for name in (*SCRIPTS, "cut", "interleaved")
)
BUSY: Final = """
  crowded: {targets: [{backend: crowded, model: busy}], fallback: {rate_limit: echo}}
  swamped: {targets: [{backend: crowded, model: busy}]}
"""


def _answer(request: Request) -> Reply:
    """What the service sends: the kind is known by the path, the answer by the model's name."""
    if request.method == "GET":
        return Reply([b"{}"], content_type="application/json", chunked=False)
    kind, name, streams = _asked(request)
    if name == "busy":
        return refusal(kind, "busy")
    if name == "cut":
        told = reply(kind, SCRIPTS["text"], stream=True, cut=True)
        return Reply([*told.steps, BREAK], content_type=told.content_type)
    if name == "interleaved":
        return _interleaved(streams=streams)
    return reply(kind, SCRIPTS[name], stream=streams)


def _interleaved(*, streams: bool) -> Reply:
    """Anthropic's answer of many blocks."""
    if streams:
        return Reply([named(event) for event in upstream_events(BLOCKS)])
    whole = {"type": "message", "content": BLOCKS, "stop_reason": "tool_use", "usage": {"output_tokens": 2}}
    return Reply([orjson.dumps(whole)], content_type="application/json", chunked=False)


def _asked(request: Request) -> tuple[str, str, bool]:
    if request.path.startswith("/v1beta/models/"):
        name, _, method = request.path.removeprefix("/v1beta/models/").partition(":")
        return "gemini", name, method.startswith("stream")
    body = request.json()
    return ("cohere" if request.path == "/v2/chat" else "anthropic"), body["model"], body["stream"]


@pytest.fixture(scope="module")
def hosted() -> Iterator[Upstream]:
    """The services of others."""
    with in_thread(Upstream(_answer)) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def _own_fleet(hosted: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(
        tmp_path_factory.mktemp("hosted"),
        config=CONFIG + MODELS + BUSY,
        lease_s=2,
        breaker_failures=10_000,  # tests have services fail for each other
        test_hosted=hosted.url,
        test_key=KEY,
    )
    for member in fleet.members.values():
        member.environ["HEADRACE_TEST_SELF"] = fleet.url()
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def fleet(_own_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet. No key of a backend may get into its logs, and nothing of what was said."""
    yield _own_fleet
    logs = "\n".join(_own_fleet.news().values())
    assert "Traceback" not in logs and '"level":"error"' not in logs
    assert not [word for word in (*SECRETS, KEY, "Once upon") if word in logs]


def _post(client: httpx.Client, face: Face, model: str, text: str, *, stream: bool, **more: Any) -> Said:
    """The answer in this dialect to a plain text."""
    body = {**face.base, **more, "model": model, "stream": stream}
    if not stream:
        body.pop("stream_options", None)
    raw = orjson.dumps(body).replace(b'"Hi you"', orjson.dumps(text))
    answer = client.post(face.name, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    reads = face.reads
    assert isinstance(reads, Reads)
    return reads.stream(answer.content) if stream else reads.whole(answer.json())


def _last(upstream: Upstream) -> Request:
    return next(request for request in reversed(upstream.requests) if request.method == "POST")


# --- our own APIs as backends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", OURSELVES)
@pytest.mark.parametrize("face", [face for face in FACES if face.reads], ids=lambda face: face.name)
def test_every_dialect_reaches_a_model_through_a_hosted_kind(client: httpx.Client, face: Face, model: str) -> None:
    words = 'seven and "eight" 汉字'
    whole = _post(client, face, model, words, stream=False)
    streamed = _post(client, face, model, words, stream=True)
    assert whole.text == streamed.text == words
    assert whole.ended and streamed.ended and whole.reason == face.reasons["stop"]
    assert whole.usage == (4, 4)
    assert streamed.usage in (whole.usage, None)


@pytest.mark.parametrize("model", OURSELVES)
def test_jobs_and_grpc_reach_it_too(fleet: Fleet, client: httpx.Client, model: str) -> None:
    job = client.post("/v1/jobs", json={"endpoint": CHAT.name, "body": chat(model, words="a b c")}).json()["id"]
    assert when(client, job)["result"]["choices"][0]["message"]["content"] == "a b c"
    with grpc_client.caller(fleet) as rpc:
        call = grpc_client.stream(rpc, grpc_client.chat(model, words="a b c"))
        assert grpc_client.text_of(grpc_client.events_of(call)) == "a b c"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", OURSELVES)
def test_tools_are_called_through_it(client: httpx.Client, model: str, stream: bool) -> None:
    script = 'echo: {"tool_calls": [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": [2, "}"]}}]}'
    for face, tools in ((CHAT, [TOOL]), (MESSAGES, [{"name": "f", "input_schema": FUNCTION["parameters"]}])):
        said = _post(client, face, model, script, stream=stream, tools=tools)
        assert said.calls == [("f", {"a": 1}), ("f", {"a": [2, "}"]})]
        assert said.reason == face.reasons["tool_calls"]


@pytest.mark.parametrize("model", OURSELVES)
def test_what_it_refuses_is_refused_and_a_limit_ends_it(client: httpx.Client, model: str) -> None:
    refused = client.post(CHAT.name, json=chat(model, error="context_length_exceeded"))
    assert refused.status_code == 400
    assert _post(client, CHAT, model, "one two three", stream=False, max_tokens=2).reason == "length"


@pytest.mark.parametrize("model", OURSELVES)
def test_a_stream_through_it_is_resumed(client: httpx.Client, model: str) -> None:
    body = chat(model, stream=True, numbered=True, tokens=20, token_ms=5)
    with client.stream("POST", CHAT.name, json=body) as answer:
        job = answer.headers["x-headrace-job-id"]
        raw = b""
        for piece in answer.iter_raw():
            raw += piece
            if raw.count(b"\n\n") >= 3:
                break
    seen = frames(raw)
    status, rest = follow(client, job, seen[-1].id)
    assert status == 200
    assert text_of(seen) + text_of(frames(rest)) == "".join(f" {number}" for number in range(20))


# --- the services of others ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["text", "tools", "thoughts", "length"])
@pytest.mark.parametrize("kind", HOSTED)
def test_a_recorded_answer_arrives(client: httpx.Client, hosted: Upstream, kind: str, name: str, stream: bool) -> None:
    script = SCRIPTS[name]
    said = _post(client, CHAT, f"{kind}-{name}", "Hello", stream=stream)
    assert (said.text, said.thoughts) == ("".join(script.words), "".join(script.thoughts))
    assert said.calls == ([("f", {"a": 1})] if script.arguments else [])
    assert (said.reason, said.usage) == (script.reason, (PROMPT_TOKENS, MADE_TOKENS))
    request = _last(hosted)
    asked_kind, asked_name, streams = _asked(request)
    assert (asked_kind, asked_name, streams) == (kind, name, stream)
    secret = SECRETS[HOSTED.index(kind)]
    assert secret not in request.path and secret not in request.body.decode()
    assert [header for header, value in request.headers.items() if secret in value] == [
        {"anthropic": "x-api-key", "gemini": "x-goog-api-key", "cohere": "authorization"}[kind]
    ]


@pytest.mark.parametrize("kind", HOSTED)
def test_a_stream_that_is_cut_ends_with_an_error_and_what_was_counted(client: httpx.Client, kind: str) -> None:
    answer = client.post(CHAT.name, json=chat(f"{kind}-cut", stream=True, words="Hello"))
    *said, last = frames(answer.content)
    assert text_of(said) == "".join(SCRIPTS["text"].words)
    assert last.json["error"]["code"] == "upstream_interrupted"
    found = record(client, answer.headers["x-headrace-job-id"])
    assert (found["status"], found["usage"]["estimated"]) == ("failed", True)
    # Cohere counts at the end alone.
    assert found["usage"]["prompt_tokens"] == (PROMPT_TOKENS if kind != "cohere" else found["usage"]["prompt_tokens"])
    assert found["usage"]["completion_tokens"] > 0


def test_where_a_service_is_overloaded_another_model_answers(client: httpx.Client, hosted: Upstream) -> None:
    before = len(hosted.requests)
    said = client.post(CHAT.name, json=chat("crowded", words="one two")).json()
    assert (said["model"], said["choices"][0]["message"]["content"]) == ("echo", "one two")
    assert [_asked(request)[1] for request in hosted.requests[before:] if request.method == "POST"] == ["busy"]


def test_where_there_is_no_other_the_caller_is_told_when_to_come_back(client: httpx.Client) -> None:
    body = {**MESSAGES.base, "model": "swamped", "stream": True}
    refused = client.post(MESSAGES.name, json=body, headers={"x-headrace-deadline-ms": "1500"})
    assert refused.status_code == 529, refused.text
    assert refused.json()["error"]["type"] == "overloaded_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 7


def test_what_is_anthropics_own_reaches_it_and_comes_back(client: httpx.Client, hosted: Upstream) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    asked: dict[str, Any] = {
        **{"model": "anthropic-thoughts", "max_tokens": 2_000, "thinking": {"type": "adaptive"}},
        "system": [{"type": "text", "text": "Be brief.", **mark}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, **mark}],
        "messages": [{"role": "user", "content": "Hello"}],
    }
    first = client.post(MESSAGES.name, json=asked).json()
    thought = {"type": "thinking", "thinking": "Let me see.", "signature": SIGNATURE}
    assert first["content"][0] == thought
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True}
    turns = [
        *asked["messages"],
        {"role": "assistant", "content": [thought, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{**result, **mark}]},
    ]
    streamed = client.post(MESSAGES.name, json={**asked, "messages": turns, "stream": True})
    assert MESSAGES.reads is not None and MESSAGES.reads.stream(streamed.content).thoughts == "Let me see."
    wire = _last(hosted).json()
    assert (wire["system"], wire["tools"][0]["cache_control"]) == (asked["system"], mark["cache_control"])
    assert wire["messages"][1] == turns[1]
    (said,) = wire["messages"][2]["content"]
    assert (said["is_error"], said["cache_control"]) == (True, mark["cache_control"])
    assert wire["thinking"] == {"type": "adaptive"}


@pytest.mark.parametrize("stream", [True, False])
def test_thoughts_among_text_and_calls_come_back_to_it_as_it_said_them(
    client: httpx.Client, hosted: Upstream, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "anthropic-interleaved", "max_tokens": 2_000, "thinking": {"type": "adaptive"}}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
    answer = client.post(MESSAGES.name, json={**asked, "messages": turns, "stream": stream})
    said = joined(answer.content) if stream else answer.json()["content"]
    assert said == BLOCKS
    results = [{"type": "tool_result", "tool_use_id": f"t{number}", "content": "1"} for number in (0, 1)]
    turns += [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
    assert client.post(MESSAGES.name, json={**asked, "messages": turns}).status_code == 200
    assert _last(hosted).json()["messages"][1] == turns[1]


def test_a_response_has_its_items_in_the_order_in_which_they_were_said_wherever_it_is_read(
    fleet: Fleet, client: httpx.Client
) -> None:
    asked = {
        "model": "anthropic-interleaved",
        "input": "Hello",
        "stream": True,
        "tools": [{**TOOL["function"], "type": "function"}],
    }
    final = frames(client.post("/v1/responses", json=asked).content)[-1].json["response"]
    home = f"/v1/responses/{final['id']}"
    kinds = ["reasoning", "message", "function_call", "reasoning", "message", "function_call"]
    assert [item["type"] for item in final["output"]] == kinds
    assert client.get(home).json() == final
    whole = client.post("/v1/responses", json={**asked, "stream": False}).json()
    assert [item["type"] for item in whole["output"]] == kinds
    assert client.get(f"/v1/responses/{whole['id']}").json() == whole
    results = [{"type": "function_call_output", "call_id": f"t{number}", "output": "1"} for number in (0, 1)]
    next_one = {"model": "echo", "input": results, "previous_response_id": final["id"]}
    gone_on = client.post("/v1/responses", json=next_one).json()["id"]
    listed = client.get(f"/v1/responses/{gone_on}/input_items", params={"order": "asc"}).json()["data"]
    assert listed[1:-2] == [item for item in final["output"] if item["type"] != "reasoning"]
    references = [listed[0], *({"id": item["id"]} for item in final["output"]), *results]
    named = client.post("/v1/responses", json={"model": "echo", "input": references}).json()["id"]
    again = client.get(f"/v1/responses/{named}/input_items", params={"order": "asc"}).json()["data"]
    assert again[1:-2] == listed[1:-2]
    fleet.redis.command("DEL", f"hr:{{default}}:stream:job_{final['id'].removeprefix('resp_')}")
    told = frames(client.get(home, params={"stream": "true"}).content)
    assert told[-1].json["response"] == final


def test_workers_find_the_services_alive(client: httpx.Client) -> None:
    def all_healthy() -> bool:
        rows = [row for worker in client.get("/workers").json() for row in worker["backends"]]
        return {row["name"] for row in rows if row["healthy"]} >= {*HOSTED, "self-anthropic", "self-ollama"}

    assert until(all_healthy, 15, "a service never was healthy")
