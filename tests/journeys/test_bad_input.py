"""Bad input of every kind gets its answer: the status, the field, the limit; never a 5xx, never a traceback."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.say import CHAT, chat

pytestmark = pytest.mark.timeout(60)

MIB = 1024 * 1024
HI: dict[str, Any] = chat(words="hi")


def raw_chat(inside: str) -> bytes:
    """A chat request as text, with this in it."""
    return b'{"model":"echo","messages":[{"role":"user","content":"hi"}],' + inside.encode() + b"}"


def nested(depth: int) -> dict[str, Any]:
    """So many objects, each in the one before."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


# --- fields: what is asked for, the field that the answer names -------------------------------------------------------

FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"n": 9}, "n"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 2.5}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"model": "capped", "max_tokens": 17}, "max_tokens"),
    ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": "x" * 1_001}, "stop"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "shell"}]}, "tools[0].type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["x" * 17_000]}}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(33)}}},
        "response_format.json_schema.schema",
    ),
    ({"guided_regex": "(a+)+" * 4_000}, "guided_regex"),
    ({"metadata": {"a": "x" * 17_000}}, "metadata"),
    ({"metadata": "x"}, "metadata"),
    ({"user": "u" * 1_025}, "user"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        "messages[0].content[0].image_url.url",
    ),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": "x" * 300}, "model"),
]


@pytest.mark.parametrize(("more", "param"), FIELDS, ids=lambda value: str(value)[:40])
def test_a_field_beyond_its_bounds_is_named(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    answer = client.post(CHAT, json={**HI, **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert answer.json()["error"]["message"].startswith(param)
    within = client.post("/v1/jobs", json={"endpoint": CHAT, "body": {**HI, **more}})
    assert (within.status_code, within.json()["error"]["param"]) == (400, f"body.{param}"), within.text


DESTINATIONS = [
    *("api_base", "base_url", "baseUrl", "model_list", "fallbacks", "headers", "extra_headers", "api_key", "apiKey"),
    *("openai_api_base", "custom_llm_provider", "aws_access_key_id", "vertex_project", "context_window_fallbacks"),
    *("litellm_params.api_base", "metadata[api_base]", "API-BASE", "credential_name", "kv_transfer_params"),
]


@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_field_that_could_choose_a_destination_is_refused_wherever_it_stands(client: httpx.Client, name: str) -> None:
    field: dict[str, Any] = {name: "http://127.0.0.1:9/"}
    places: list[dict[str, Any]] = [
        {**HI, **field},
        {**HI, "extra": {"deep": [{"deeper": field}]}},
        {**HI, "messages": [{"role": "user", "content": "hi", **field}]},
        {**HI, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **field}]}]},
        {**HI, "chat_template_kwargs": field},
    ]
    for body in places:
        for path, sent in ((CHAT, body), ("/v1/jobs", {"endpoint": CHAT, "body": body})):
            answer = client.post(path, json=sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), body
    for path, sent in (
        ("/v1/jobs", {"endpoint": CHAT, "body": HI, **field}),
        ("/prompt", {"prompt": "hi", **field}),
    ):
        assert client.post(path, json=sent).status_code == 400


@pytest.mark.parametrize("name", ["api_base", "base_url", "baseUrl", "model_list", "fallbacks", "headers", "API-BASE"])
def test_metadata_may_not_name_a_destination_either(client: httpx.Client, name: str) -> None:
    metadata = {name: "http://127.0.0.1:9/"}
    for path, sent in (
        (CHAT, {**HI, "metadata": metadata}),
        ("/v1/responses", {"model": "echo", "input": "hi", "metadata": metadata}),
        ("/v1/jobs", {"endpoint": CHAT, "body": {**HI, "metadata": metadata}}),
        ("/v1/jobs", {"endpoint": CHAT, "body": HI, "metadata": metadata}),
    ):
        answer = client.post(path, json=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), path


def test_other_names_in_metadata_are_the_callers_own(client: httpx.Client) -> None:
    metadata = dict.fromkeys(
        ("organization_id", "deployment_id", "aws_region", "fallback", "proxy", "api_version"), "x"
    )
    for path, sent in (
        (CHAT, {**HI, "metadata": metadata}),
        ("/v1/responses", {"model": "echo", "input": "hi", "metadata": metadata}),
        ("/v1/jobs", {"endpoint": CHAT, "body": {**HI, "metadata": metadata}, "metadata": metadata}),
    ):
        answer = client.post(path, json=sent)
        assert answer.status_code in (200, 202), (path, answer.text)
    job = client.get(f"/v1/jobs/{answer.json()['id']}").json()
    assert job["metadata"] == metadata


def test_a_schema_may_describe_a_property_by_any_name(client: httpx.Client) -> None:
    properties = {name: {"type": "string"} for name in DESTINATIONS}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    assert client.post(CHAT, json={**HI, "tools": [tool]}).status_code == 200


def test_fields_that_only_some_backends_know_are_let_through(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={**HI, "min_p": 0.1, "top_k": 5, "chat_id": "c", "chat_template_kwargs": {"a": 1}})
    assert answer.status_code == 200


# --- jobs and options -------------------------------------------------------------------------------------------------

JOBS: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "/v1/embeddings"}, "body.input"),
    ({"endpoint": "/v1/audio/speech"}, "endpoint"),
    ({"endpoint": None}, "endpoint"),
    ({"body": "x"}, "body"),
    ({"body": {}}, "body.model"),
    ({"priority": "urgent"}, "priority"),
    ({"priority": 0}, "priority"),
    ({"deadline_ms": 0}, "deadline_ms"),
    ({"deadline_ms": -5}, "deadline_ms"),
    ({"deadline_ms": 10**15}, "deadline_ms"),
    ({"deadline_ms": 1.5}, "deadline_ms"),
    ({"delay_ms": 500, "deadline_ms": 400}, "delay_ms"),
    ({"delay_ms": "soon"}, "delay_ms"),
    ({"batch_key": "x" * 129}, "batch_key"),
    ({"batch_key": "a\nb"}, "batch_key"),
    ({"batch_key": ""}, "batch_key"),
    ({"on_disconnect": "stay"}, "on_disconnect"),
    ({"on_interrupt": 1}, "on_interrupt"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": "x" * 20_000}}, "metadata"),
    ({"webhook": "https://example.com"}, "webhook"),
    ({"prioritty": "batch"}, "prioritty"),
]


@pytest.mark.parametrize(("more", "param"), JOBS, ids=lambda value: str(value)[:40])
def test_a_job_with_a_fault_is_refused_by_name(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/jobs", json={"endpoint": CHAT, "body": HI, **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("priority", "urgent"),
            ("priority", ""),
            ("deadline-ms", "0"),
            ("deadline-ms", "-1"),
            ("deadline-ms", "1e3"),
        ),
        *(("deadline-ms", "9" * 20), ("deadline-ms", "٣"), ("batch-key", "x" * 200), ("on-disconnect", "maybe")),
        *(("on-interrupt", "no"), ("priorty", "batch"), ("delay-ms", "5")),
    ],
)
def test_an_option_header_with_a_fault_is_refused_by_name(client: httpx.Client, name: str, value: str) -> None:
    headers = [(f"x-headrace-{name}".encode(), value.encode())]
    answer = client.post(CHAT, json=HI, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"x-headrace-{name}")


# --- JSON -------------------------------------------------------------------------------------------------------------

JSONS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "half": b'{"model":"echo"',
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "two": b"{}{}",
    "deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "very deep": b"[" * 200_000,
    "deep lists": raw_chat('"x":' + "[" * 100 + "]" * 100),
    "many values": raw_chat('"x":[' + "0," * 60_000 + "0]"),
    "a name twice": raw_chat('"model":"echo"'),
    "a name twice inside": raw_chat('"x":{"a":1,"a":2}'),
    "a name twice by escape": raw_chat('"x":{"a":1,"\\u0061":2}'),
    "NaN": raw_chat('"temperature":NaN'),
    "Infinity": raw_chat('"temperature":-Infinity'),
    "a number without end": raw_chat('"seed":' + "9" * 10_000),
    "a huge exponent": raw_chat('"temperature":1e999'),
    "a lone surrogate": raw_chat('"user":"\\ud800"'),
    "a surrogate the wrong way round": raw_chat('"user":"\\udc00\\ud800"'),
    "not UTF-8": raw_chat('"user":"x"').replace(b'"x"', b'"\xff\xfe"'),
    "overlong UTF-8": raw_chat('"user":"x"').replace(b'"x"', b'"\xc0\xaf"'),
    "UTF-8 of a surrogate": raw_chat('"user":"x"').replace(b'"x"', b'"\xed\xa0\x80"'),
    "UTF-16": '{"model":"echo"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + raw_chat('"user":"x"'),
    "a NUL": raw_chat('"user":"x"').replace(b'"x"', b'"\x00"'),
    "a comment": b"/* */" + raw_chat('"user":"x"'),
    "single quotes": b"{'model':'echo'}",
    "a trailing comma": raw_chat('"user":"x",'),
    "a form": b"model=echo&messages=hi",
}


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("path", [CHAT, "/v1/jobs", "/prompt"])
def test_a_body_that_is_no_plain_json_object_is_refused(client: httpx.Client, name: str, path: str) -> None:
    answer = client.post(path, content=JSONS[name], headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json() if path == "/prompt" else answer.json()["error"]
    assert error["code"] == "invalid_json", error


def test_text_that_only_looks_dangerous_is_text(client: httpx.Client) -> None:
    for words in ("\x00\x01\x02", "\\ud800", '"}]}', "${jndi:ldap://x}", "{{7*7}}", "'; DROP TABLE jobs; --", "\u202e"):
        answer = client.post(CHAT, json=chat(words=words))
        assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, words)


# --- anything ---------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([*HI, "n", "stream", "stop", "tools", "role", "content", "metadata", "stream_options", "type"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=30), st.just("echo")
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.text(max_size=12)), inner, max_size=4)
    ),
    max_leaves=12,
)
CHANGED = st.dictionaries(st.one_of(KEYS, st.text(max_size=12)), ANYTHING, max_size=3).map(lambda more: {**HI, **more})


@settings(
    max_examples=300,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=st.one_of(ANYTHING, CHANGED, st.binary(max_size=60)), path=st.sampled_from([CHAT, "/v1/jobs", "/prompt"]))
def test_whatever_is_sent_is_answered_and_never_with_a_server_error(client: httpx.Client, body: Any, path: str) -> None:
    if isinstance(body, bytes):
        content = body
    else:
        sent = {"endpoint": CHAT, "body": body} if path == "/v1/jobs" else body
        try:
            content = orjson.dumps(sent, option=orjson.OPT_NON_STR_KEYS)
        except (TypeError, ValueError):  # beyond 64 bits, or a lone surrogate
            return
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["x-request-id"].startswith("req_")
    if answer.status_code >= 400:
        told = answer.json()
        assert {"title", "status", "detail"} <= told.keys() if path == "/prompt" else told["error"]["message"]
