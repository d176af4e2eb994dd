"""OpenAI's wire shapes, and our own beside them: what is taken, what is refused and how, what goes out."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model

from common.contracts import (
    FailedTarget,
    Failure,
    Job,
    JsonObject,
    OnDisconnect,
    OnInterrupt,
    Outcome,
    Position,
    Priority,
    State,
    Usage,
)
from common.errors import BadRequest
from common.queue import Record
from gateway.dialects.native import JobOptions, job_record, parse_job_submission, parse_options, parse_prompt
from gateway.dialects.openai import ChunkShape, completion, completion_id, model_list, model_object, parse_chat
from gateway.dialects.surfaces import SURFACES
from tests.support.published import published

HELLO: JsonObject = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
JOB_ID = "job_default_" + "0123456789abcdef" * 2
CALL: JsonObject = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: JsonObject = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**more: Any) -> bytes:
    return orjson.dumps({**HELLO, **more})


def refused(raw: bytes) -> Failure:
    with pytest.raises(BadRequest) as caught:
        parse_chat(raw)
    return caught.value.failure


# --- requests that are taken ------------------------------------------------------------------------------------------


def test_a_request_is_forwarded_as_it_came_but_for_its_streaming_options() -> None:
    more = {"temperature": 0, "seed": 7, "top_k": 40, "chat_template_kwargs": {"thinking": False}, "user": None}
    request = parse_chat(chat(stream=True, stream_options={"include_usage": True}, **more))
    assert (request.model, request.stream, request.include_usage) == ("m", True, True)
    assert request.body == {**HELLO, **more}


def test_a_request_that_says_nothing_of_streaming_is_not_streamed() -> None:
    request = parse_chat(chat(stream=None, stream_options=None))
    assert (request.stream, request.include_usage) == (False, False)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "prefix": True},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "user", "content": ""},
    ],
)  # fmt: skip
def test_every_kind_of_message_is_taken(message: JsonObject) -> None:
    assert parse_chat(orjson.dumps({"model": "m", "messages": [message]})).body["messages"] == [message]


@pytest.mark.parametrize(
    "more",
    [
        {"stop": "a"},
        {"stop": ["a", "b", "c", "d"]},
        {"n": 8},
        {"logprobs": True, "top_logprobs": 20},
        {"logit_bias": {str(token): -100 for token in range(300)}},
        {"tools": [TOOL] * 128, "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
        {"functions": [{"name": "f"}], "function_call": "auto"},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"metadata": {"chat": {"id": [1, 2]}}},
        {"messages": [{"role": "user", "content": "x"}] * 10_000},
        {"temperature": 2, "top_p": 1, "presence_penalty": -2.0, "frequency_penalty": 2},
        {"best_of": 1},
        {"modalities": ["text"], "reasoning_effort": "low", "service_tier": "auto", "store": False},
        {"guided_regex": "(a+)+$"},
        {"some_new_field": {"of": ["a", {"backend": 1}]}},
    ],
)
def test_what_the_limits_allow_is_taken_and_forwarded(more: JsonObject) -> None:
    assert parse_chat(chat(**more)).body == {**HELLO, **more}


def test_the_cost_is_the_prompt_once_and_the_longest_answer_for_each_choice() -> None:
    base = parse_chat(chat()).cost_tokens()
    assert parse_chat(chat(n=3)).cost_tokens() == base + 2 * 256
    assert parse_chat(chat(max_tokens=10)).cost_tokens() == base - 246
    assert parse_chat(chat(max_tokens=10, max_completion_tokens=20)).cost_tokens() == base - 236
    longer = [{"role": "user", "content": "hello" + "x" * 4_000}]
    assert parse_chat(chat(messages=longer)).cost_tokens() == base + 1_000
    assert parse_chat(chat(tools=[TOOL])).cost_tokens() > base


@pytest.mark.parametrize(
    ("more", "usual_tokens", "answer_tokens", "telling"),
    [
        ({}, None, 256, 1),
        ({}, 20.2, 21, 1),
        ({}, 0.0, 1, 1),
        ({}, 4_000, 4_000, 1),
        ({"n": 3}, 20, 60, 3),
        ({"max_tokens": 100}, None, 100, 1),
        ({"max_tokens": 100}, 20, 20, 1),
        ({"max_tokens": 100, "n": 2}, 20, 40, 2),
        ({"max_tokens": 20}, 20, 20, 1),
        # Where the limit cuts most answers, their length says nothing of the model.
        ({"max_tokens": 10}, 20, 10, 0),
        ({"max_tokens": 10, "n": 2}, 10.5, 20, 0),
    ],
)
def test_an_answer_is_expected_to_be_as_long_as_is_usual_and_never_above_the_limit(
    more: JsonObject, usual_tokens: float | None, answer_tokens: int, telling: int
) -> None:
    request = parse_chat(chat(**more))
    assert request.cost_tokens(usual_tokens) - request.prompt_tokens == answer_tokens
    assert request.telling(usual_tokens) == telling


def test_a_whole_number_is_whole_however_it_is_written() -> None:
    body = parse_chat(chat(max_tokens=16.0, n=2.0, temperature=1.5)).body
    assert [(body[name], type(body[name])) for name in ("max_tokens", "n")] == [(16, int), (2, int)]
    assert body["temperature"] == 1.5
    assert refused(chat(max_tokens=16.5)).param == "max_tokens"
    assert refused(chat(n=9.0)).message == "n: must be at most 8."


def test_a_number_that_may_have_been_another_one_is_not_taken_for_whole() -> None:
    assert refused(chat(more=1).replace(b'"more":1', b'"seed":-9223372036854775809')).param == "seed"


def test_pictures_cost_the_same_however_large_their_data() -> None:
    def cost(size: int) -> int:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
        return parse_chat(chat(messages=[{"role": "user", "content": [part]}])).cost_tokens()

    assert cost(100_000) == cost(10)


# --- requests that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "param", "limit"),
    [
        ({"n": 9}, "n", "8"),
        ({"n": 0}, "n", "1"),
        ({"n": True}, "n", ""),
        ({"best_of": 2}, "best_of", "1"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 10_000_000}, "max_tokens", "1048576"),
        ({"max_completion_tokens": 10_000_000}, "max_completion_tokens", "1048576"),
        ({"logit_bias": {str(token): 0 for token in range(301)}}, "logit_bias", "300"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"top_logprobs": 1}, "top_logprobs", "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "20"),
        ({"stop": ["a"] * 5}, "stop", "4"),
        ({"stop": [1]}, "stop[0]", "string"),
        ({"stop": {"a": 1}}, "stop", "string"),
        ({"tools": [TOOL] * 129}, "tools", "128"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "custom"}]}, "tools[0].custom", "required"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name", "required"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "c", "format": {"g": "x" * 16_384}}}]},
            *("tools[0].custom.format", "16384 bytes"),
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "match"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "none"),
        ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.type", "required"),
        ({"messages": []}, "messages", "1"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages", "10000"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "1"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type", "'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
        ({"temperature": 2.1}, "temperature", "2"),
        ({"temperature": "0.5"}, "temperature", "number"),
        ({"top_p": 1.1}, "top_p", "1"),
        ({"presence_penalty": 2.5}, "presence_penalty", "2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "-2"),
        ({"seed": 2**63}, "seed", ""),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"response_format": {"type": "poem"}}, "response_format.type", "'text'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"model": ""}, "model", "1"),
        ({"model": None}, "model", "string"),
        ({"model": "m" * 257}, "model", "256"),
        ({"user": "u" * 1_025}, "user", "1024"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata", "16384"),
        ({"metadata": [1]}, "metadata", "object"),
        ({f"f{number}": 1 for number in range(99)}, None, "100"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_with_the_field_and_the_limit(
    more: JsonObject, param: str | None, limit: str
) -> None:
    failure = refused(chat(**more))
    assert failure.param == param
    assert limit in failure.message
    assert failure.message.startswith(f"{param}: " if param else "The request")


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    assert refused(orjson.dumps({key: HELLO[key] for key in HELLO if key != missing})).param == missing


def test_a_file_by_id_is_refused_since_at_the_upstream_it_would_be_the_operators() -> None:
    part = {"type": "file", "file": {"file_id": "file-1"}}
    failure = refused(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}))
    assert failure.param == "messages[0].content[0].file.file_id"
    assert "file_data" in failure.message


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "file:///etc/passwd", "ftp://a", "//a", "HTTPS://a", "https://" + "a" * 9_000],
)
def test_addresses_that_a_model_server_should_not_fetch_are_refused(url: str) -> None:
    for kind in ("image_url", "audio_url", "video_url"):
        failure = refused(chat(messages=[{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]))
        assert failure.param == f"messages[0].content[0].{kind}.url"
        assert "169.254" not in failure.message


def test_what_the_caller_wrote_is_not_repeated_in_the_refusal() -> None:
    secret = "my secret prompt"
    for more in (
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [{"role": "user", "content": [{"type": secret}]}]},
        {"temperature": secret},
        {"tools": [{"type": "function", "function": {"name": secret}}]},
        {"tool_choice": secret, "tools": [TOOL]},
    ):
        assert secret not in refused(chat(**more)).message
    assert secret not in refused(b'{"model": "my secret prompt" "x"}').message


# --- names that would choose a destination or a credential ------------------------------------------------------------

FORBIDDEN = [
    *("api_base", "base_url", "baseUrl", "api-base", "API_BASE", "apiBase", "model_list", "fallbacks", "api_key"),
    *("apiKey", "api_keys", "api_version", "api_type", "headers", "Headers", "extra_headers", "extra_body"),
    *("custom_llm_provider", "litellm_credential_name", "litellm_params", "credential_name", "credentials"),
    *("aws_access_key_id", "aws_secret_access_key", "vertex_credentials", "vertex_project", "azure_ad_token"),
    *("openai_api_base", "openaiApiKey", "endpoint_url", "proxy", "authorization", "context_window_fallbacks"),
    *("litellm_params[api_base]", "metadata[headers]", "model_info.base_url", "a[fallbacks][0]", "deployment_id"),
    *("kv_transfer_params", "remote_host", "logits_processors", "chat_template", "extra_query", "mock_response"),
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_name_that_could_choose_a_destination_is_refused_wherever_it_stands(name: str) -> None:
    for more in (
        {name: "x"},
        {name: None},
        {"unknown_field": [[{name: "x"}]]},
        {"messages": [{"role": "user", "content": "x", name: "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", name: "x"}]}]},
        {"tools": [{**TOOL, name: "x"}]},
        {"tools": [{"type": "function", "function": {"name": "f", name: "x"}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", name: "x"}}},
        {"stream": True, "stream_options": {name: "x"}},
    ):
        failure = refused(chat(**more))
        assert (failure.code, failure.param) == ("unknown_parameter", name)


IN_METADATA = (
    *("api_base", "base_url", "baseUrl", "api-base", "API_BASE", "apiBase", "model_list", "fallbacks", "headers"),
    *("Headers", "litellm_params[api_base]", "metadata[headers]", "model_info.base_url", "a[fallbacks][0]"),
)


@pytest.mark.parametrize("name", IN_METADATA)
def test_a_name_that_chooses_a_destination_is_refused_in_metadata_too(name: str) -> None:
    for metadata in ({name: "x"}, {"deep": [{"er": {name: "x"}}]}):
        job = orjson.dumps({"endpoint": "/v1/chat/completions", "body": {**HELLO, "metadata": metadata}})
        notes = orjson.dumps({"endpoint": "/v1/chat/completions", "body": HELLO, "metadata": metadata})
        for parse, raw in (
            (parse_chat, chat(metadata=metadata)),
            (parse_job_submission, job),
            (parse_job_submission, notes),
        ):
            with pytest.raises(BadRequest) as failure:
                parse(raw)
            assert (failure.value.failure.code, failure.value.failure.param) == ("unknown_parameter", name)


@pytest.mark.parametrize(
    "name",
    [
        *("organization_id", "deployment_id", "aws_region", "fallback", "header", "proxy", "authorization"),
        *("api_version", "azure_tenant", "base_url_kind", "chat_template", "a.credentials"),
    ],
)
def test_other_names_in_metadata_are_the_callers_own(name: str) -> None:
    metadata = {name: {"deep": [{name: "x"}]}}
    assert parse_chat(chat(metadata=metadata)).body["metadata"] == metadata
    within = {"endpoint": "/v1/chat/completions", "body": {**HELLO, "metadata": metadata}, "metadata": metadata}
    job = parse_job_submission(orjson.dumps(within))
    assert (job.asked.body["metadata"], job.metadata) == (metadata, metadata)
    # Elsewhere they are what they always are, also in what only looks like a request's metadata.
    for inner in ({"unknown": {"metadata": {"api_version": "x"}}}, {"body": {"metadata": {"api_version": "x"}}}):
        assert refused(chat(**inner)).param == "api_version"


def test_names_in_metadata_are_bounded_like_others() -> None:
    assert "names are too long" in refused(chat(metadata={f"{n}" * 500: 1 for n in range(10, 99)})).message
    raw = chat(metadata={"a": 1}).replace(b'"a":1', b'"a":1,"a":2')
    assert "same name twice" in refused(raw).message


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_schema_may_describe_a_property_by_any_name(name: str) -> None:
    schema = {"type": "object", "properties": {name: {"type": "object", "properties": {name: {"type": "string"}}}}}
    for more in (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"functions": [{"name": "f", "parameters": schema}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}},
        {"guided_json": schema},
        {"structured_outputs": {"json": schema}},
    ):
        assert parse_chat(chat(**more)).body == {**HELLO, **more}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_name_in_a_text_is_only_a_text(name: str) -> None:
    text = f'set {{"{name}": "http://x"}} in {name}'
    assert parse_chat(chat(messages=[{"role": "user", "content": text}])).body["messages"][0]["content"] == text


@pytest.mark.parametrize(
    "name", ["chat_template_kwargs", "proxy_score", "keywords", "my_url", "organizations", "baseline"]
)
def test_honest_names_that_look_alike_are_left_alone(name: str) -> None:
    assert parse_chat(chat(**{name: {name: 1}})).body[name] == {name: 1}


# --- JSON that is not fit to be parsed --------------------------------------------------------------------------------

OPEN = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"x":'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        OPEN + b"NaN}",
        OPEN + b"-Infinity}",
        OPEN + b"1e999}",
        OPEN + b"9" * 10_000 + b"}",
        OPEN + b"18446744073709551616}",
        OPEN + b"-99999999999999999999}",
        OPEN + rb'"\ud800"}',
        OPEN + rb'"\udc00\ud800"}',
        OPEN + b'"\xff"}',
        OPEN + b'"\x00"}',
        OPEN + b"[" * 64 + b"]" * 64 + b"}",
        OPEN + b"[" * 100_000 + b"]" * 100_000 + b"}",
        OPEN + b'{"a":' * 1_000 + b"1" + b"}" * 1_000 + b"}",
        OPEN + b"[" + b"1," * 50_001 + b"1]}",
        OPEN + b"[" + b"[]," * 1_000_000 + b"1]}",
        OPEN + b"[" + b'"",' * 1_000_000 + b"1]}",
        OPEN + b'1,"x":2}',
        OPEN + b'{"a":1,"b":[{"c":1,"c" : 2}]}}',
        OPEN + b'{"a":":",\n "a" \n : ":"}}',
        OPEN + rb'{"a\\":1,"a\\":2}}',
        OPEN + rb'{"a":1,"\u0061":2}}',
        b'{"model":"m","model":"n","messages":[{"role":"user","content":"hi"}]}',
    ],
    ids=lambda raw: repr(raw[60:76]),
)
def test_malformed_ambiguous_or_boundless_json_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


def test_too_many_different_field_names_are_refused() -> None:
    names = b",".join(b'"name_%d":1' % number for number in range(10_000))
    assert "field names" in refused(OPEN + b"{" + names + b"}}").message


def test_json_at_the_limits_is_taken() -> None:
    assert parse_chat(OPEN + b"[" * 63 + b"]" * 63 + b"}").model == "m"
    assert parse_chat(OPEN + b"[" + b"1," * 49_980 + b"1]}").model == "m"
    assert parse_chat(OPEN + b"-9223372036854775808}").body["x"] == -(2**63)


LONG_PARAM = "tools[1].function.parameters"
FORM_PARAM = "response_format.json_schema.schema"


def test_a_schema_is_bounded_in_size_and_depth() -> None:
    wide = {"type": "object", "description": "x" * 17_000}
    deep: JsonObject = {"type": "string"}
    for _ in range(32):
        deep = {"items": deep}
    for schema, word in ((wide, "16384"), (deep, "32")):
        for more, param in (
            ({"tools": [TOOL, {"type": "function", "function": {"name": "f", "parameters": schema}}]}, LONG_PARAM),
            ({"functions": [{"name": "f", "parameters": schema}]}, "functions[0].parameters"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}, FORM_PARAM),
            ({"guided_json": schema}, "guided_json"),
            ({"structured_outputs": {"json": schema}}, "structured_outputs.json"),
        ):  # fmt: skip
            failure = refused(chat(**more))
            assert failure.param == param
            assert word in failure.message
    for name in ("guided_regex", "guided_grammar", "grammar"):
        assert refused(chat(**{name: "é" * 8_200})).param == name


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc:\"\\'{}[], ", max_size=6), inner, max_size=4)
    ),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(value=VALUES, indent=st.sampled_from([None, 2]), separators=st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_any_ordinary_json_comes_through_whole_however_it_is_written(
    value: Any, indent: int | None, separators: tuple[str, str]
) -> None:
    for ascii_only in (True, False):
        body = {**HELLO, "x": value}
        raw = json.dumps(body, indent=indent, separators=separators, ensure_ascii=ascii_only).encode()
        assert parse_chat(raw).body == body


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60) | st.text('{}[]",:\\ abtrue0123.eE-\n', max_size=40).map(str.encode))
def test_any_other_bytes_are_refused_and_never_a_crash(raw: bytes) -> None:
    for text in (raw, OPEN + raw + b"}", b'{"messages":' + raw + b"}"):
        try:
            parse_chat(text)
        except BadRequest as error:
            assert error.failure.message


# --- our own options --------------------------------------------------------------------------------------------------


def options(**headers: str) -> JobOptions:
    raw = [(b"x-headrace-" + name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return parse_options([(b"host", b"a"), *raw])


def test_options_travel_in_headers() -> None:
    assert options() == JobOptions()
    given_all = options(
        priority="batch", deadline_ms="1500", batch_key="k 1", on_disconnect="continue", on_interrupt="restart"
    )
    assert given_all == JobOptions(Priority.BATCH, 1_500, 0, "k 1", OnDisconnect.CONTINUE, OnInterrupt.RESTART)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("priority", value) for value in ("urgent", "", "BATCH", "0")),
        *(("deadline_ms", value) for value in ("0", "-1", "1.5", "1e3", "abc", "", "٣", "9" * 13, "604800001")),
        *(("batch_key", value) for value in ("", "k" * 129, "a\tb", "é")),
        ("on_disconnect", "maybe"),
        ("on_interrupt", "maybe"),
        ("prioirty", "batch"),
        ("delay_ms", "5"),
    ],
)
def test_an_option_that_means_nothing_is_refused_with_its_header(name: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        options(**{name: value})
    assert caught.value.failure.param == "x-headrace-" + name.replace("_", "-")


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse_options([(b"x-headrace-priority", b"batch"), (b"x-headrace-priority", b"interactive")])


# --- jobs and prompts -------------------------------------------------------------------------------------------------


def job_body(**more: Any) -> bytes:
    return orjson.dumps({"endpoint": "/v1/chat/completions", "body": HELLO, **more})


def test_a_submitted_job_holds_the_endpoints_own_request() -> None:
    job = parse_job_submission(
        job_body(
            body={**HELLO, "stream": True},
            priority="interactive",
            deadline_ms=5_000,
            delay_ms=100,
            batch_key="k",
            on_disconnect="cancel",
            on_interrupt="fail",
            metadata={"ticket": 7},
            webhook=None,
        )
    )
    assert job.asked.body == HELLO
    assert job.metadata == {"ticket": 7}
    wanted = JobOptions(Priority.INTERACTIVE, 5_000, 100, "k", OnDisconnect.CANCEL, OnInterrupt.FAIL)
    assert (job.asked.endpoint, job.options) == ("/v1/chat/completions", wanted)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"endpoint": "/v1/embeddings"}, "body.input"),
        ({"body": 1}, "body"),
        ({"body": {"model": "m"}}, "body.messages"),
        ({"body": {**HELLO, "n": 9}}, "body.n"),
        ({"body": {**HELLO, "api_base": "x"}}, "api_base"),
        ({"metadata": {"headers": {}}}, "headers"),
        ({"metadata": {"x": "y" * 17_000}}, "metadata"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 1}, "priority"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"deadline_ms": 1.5}, "deadline_ms"),
        ({"delay_ms": -1}, "delay_ms"),
        ({"delay_ms": 500, "deadline_ms": 500}, "delay_ms"),
        ({"batch_key": "k" * 129}, "batch_key"),
        ({"webhook": "https://example.org"}, "webhook"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_job_that_cannot_be_is_refused_with_its_field(more: JsonObject, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_job_submission(job_body(**more))
    assert caught.value.failure.param == param


def test_a_tools_schema_inside_a_job_may_use_any_name_too() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"headers": {}}}}}
    assert parse_job_submission(job_body(body={**HELLO, "tools": [tool]})).asked.body["tools"] == [tool]


def test_how_a_prompts_job_failed_is_told_as_its_refusals_are() -> None:
    surface = SURFACES[parse_prompt(b'{"prompt":"hi"}', default_model="m").dialect]
    status, body, _ = surface.refused(Failure("upstream_timeout", "It took too long."))
    assert (status, surface.refused_as) == (504, "application/problem+json")
    assert {"status": 504, "detail": "It took too long.", "instance": "/prompt"}.items() <= orjson.loads(body).items()


def test_a_plain_prompt_becomes_a_chat() -> None:
    raw = orjson.dumps({"prompt": "hi", "system": "be kind", "max_tokens": 9, "temperature": 0, "stream": True})
    request = parse_prompt(raw, default_model="small")
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert request.body == {"model": "small", "messages": messages, "max_tokens": 9, "temperature": 0}
    assert request.stream
    assert parse_prompt(b'{"prompt":"hi","model":"big"}', default_model="small").model == "big"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "top_p": 1}, "top_p"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "base_url": "x"}, "base_url"),
        ({"prompt": "a"}, "model"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_with_its_field(body: JsonObject, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_prompt(orjson.dumps(body), default_model=None)
    assert caught.value.failure.param == param


def _record(state: State, outcome: Outcome | None, result: bytes | None) -> Record:
    job = Job(JOB_ID, "default", "t", "/v1/chat/completions", "m", HELLO, Priority.BATCH, metadata={"a": 1})
    return Record(
        job=job,
        state=state,
        fence=5,
        attempt=2,
        failures=1,
        created_ms=1_700_000_000_999,
        deadline_ms=1_700_000_600_000,
        started_ms=1_700_000_001_500,
        finished_ms=None,
        outcome=outcome,
        result=result,
        position=None,
    )


def test_a_succeeded_jobs_record_holds_the_completion() -> None:
    outcome = Outcome(State.SUCCEEDED, "stop", Usage(3, 4), None, {"queued": 1, "first_token": 2, "total": 3})
    shown = job_record(_record(State.SUCCEEDED, outcome, orjson.dumps(RESULT)))
    ChatCompletion.model_validate_json(orjson.dumps(shown["result"]), strict=True)
    assert (shown["status"], shown["priority"], shown["attempt"]) == ("succeeded", "batch", 2)
    assert (shown["created_at"], shown["started_at"], shown["finished_at"]) == (1_700_000_000, 1_700_000_001, None)
    assert shown["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert (shown["error"], shown["partial_result"]) == (None, None)
    assert "body" not in shown


def test_a_failed_jobs_record_holds_the_error_and_sets_apart_what_came_of_the_answer() -> None:
    outcome = Outcome(State.FAILED, None, None, Failure("upstream_interrupted", "It broke off."))
    shown = job_record(_record(State.FAILED, outcome, orjson.dumps(RESULT)))
    error = {"message": "It broke off.", "type": "server_error", "param": None, "code": "upstream_interrupted"}
    assert (shown["result"], shown["error"]) == (None, error)
    assert shown["partial_result"]["choices"][0]["message"]["content"] == "hi"


def test_a_waiting_jobs_record_has_nothing_of_an_end() -> None:
    shown = job_record(_record(State.QUEUED, None, None))
    assert [shown[name] for name in ("result", "partial_result", "error", "usage", "timings_ms")] == [None] * 5


def test_a_record_names_who_answered_and_whose_failure_came_before() -> None:
    failed = [FailedTarget("a", "one", "upstream_unreachable")]
    outcome = Outcome(State.SUCCEEDED, "stop", backend="b", upstream_model="two", failed_targets=failed)
    shown = orjson.loads(orjson.dumps(job_record(_record(State.SUCCEEDED, outcome, orjson.dumps(RESULT)))))
    assert (shown["backend"], shown["upstream_model"]) == ("b", "two")
    assert shown["failed_targets"] == [{"backend": "a", "model": "one", "code": "upstream_unreachable"}]


@pytest.mark.parametrize("outcome", [None, Outcome(State.CANCELLED)])
def test_a_record_of_what_nobody_answered_names_nobody(outcome: Outcome | None) -> None:
    shown = job_record(_record(State.CANCELLED, outcome, None))
    assert (shown["backend"], shown["upstream_model"], shown["failed_targets"]) == (None, None, [])


# --- answers ----------------------------------------------------------------------------------------------------------

RESULT: JsonObject = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    "system_fingerprint": "fp_1",
}
TOOL_RESULT: JsonObject = {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        }
    ]
}
FIRST_CALL: JsonObject = {**CALL, "index": 0}


def event(delta: JsonObject, reason: str | None = None, **more: Any) -> JsonObject:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], **more}


EVENTS: list[JsonObject] = [
    event({"role": "assistant", "content": ""}),
    event({"content": 'a\r\n "b" \u2028 é 🙂'}, system_fingerprint="fp"),
    event({"tool_calls": [FIRST_CALL]}),
    event({}, "stop"),
]


@pytest.mark.parametrize("result", [RESULT, TOOL_RESULT])
def test_a_completion_is_what_openais_own_client_expects(result: JsonObject) -> None:
    raw = completion(JOB_ID, 1_700_000_000, 'm "x"', orjson.loads(orjson.dumps(result)))
    parsed = ChatCompletion.model_validate_json(raw, strict=True)
    assert (parsed.id, parsed.object, parsed.model) == (completion_id(JOB_ID), "chat.completion", 'm "x"')
    message = orjson.loads(raw)["choices"][0]["message"]
    assert {"role", "content", "refusal"} <= message.keys()


@pytest.mark.parametrize("result", [RESULT, TOOL_RESULT])
def test_a_completion_is_valid_by_openais_published_schema(result: JsonObject) -> None:
    raw = completion(JOB_ID, 1_700_000_000, "m", orjson.loads(orjson.dumps(result)))
    published("CreateChatCompletionResponse").validate(orjson.loads(raw))


def test_a_completions_id_is_openais_prefix_and_the_jobs_digits() -> None:
    assert completion_id(JOB_ID) == "chatcmpl-" + "0123456789abcdef" * 2


def shape(*, include_usage: bool) -> ChunkShape:
    return ChunkShape(JOB_ID, 1_700_000_000, 'm "x"', include_usage)


def fields(frame: bytes) -> dict[str, str]:
    assert frame.endswith(b"\n\n")
    assert b"\n\n" not in frame[:-2]
    return dict(line.split(": ", 1) for line in frame.decode().rstrip("\n").split("\n"))


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("told", EVENTS)
def test_a_frame_is_one_chunk_of_openais_with_the_position_as_its_id(told: JsonObject, include_usage: bool) -> None:
    found = fields(shape(include_usage=include_usage).frame(b"1700-12", orjson.dumps(told)))
    assert found["id"] == "1700-12"
    ChatCompletionChunk.model_validate_json(found["data"], strict=True)
    chunk = orjson.loads(found["data"])
    head = {"id": completion_id(JOB_ID), "object": "chat.completion.chunk", "created": 1_700_000_000, "model": 'm "x"'}
    assert chunk == {**head, **told, **({"usage": None} if include_usage else {})}


@pytest.mark.parametrize("told", EVENTS)
def test_a_frame_is_valid_by_openais_published_schema(told: JsonObject) -> None:
    data = fields(shape(include_usage=False).frame(b"1-1", orjson.dumps(told)))["data"]
    published("CreateChatCompletionStreamResponse").validate(orjson.loads(data))


def test_usage_comes_in_a_chunk_of_its_own_only_where_it_was_asked_for() -> None:
    usage = Usage(3, 4, {"prompt_tokens_details": {"cached_tokens": 1}})
    chunk = orjson.loads(fields(shape(include_usage=True).usage_frame(b"1-2", usage))["data"])
    ChatCompletionChunk.model_validate_json(orjson.dumps(chunk), strict=True)
    assert (chunk["choices"], chunk["usage"]) == ([], usage.to_openai())
    assert shape(include_usage=False).usage_frame(b"1-2", usage) == b""


def test_a_stream_ends_with_openais_word() -> None:
    assert shape(include_usage=False).done_frame(b"1-2") == b"id: 1-2\ndata: [DONE]\n\n"


def test_a_failure_in_a_stream_is_one_frame_with_all_four_keys() -> None:
    failure = Failure("upstream_interrupted", 'It "broke"\noff.')
    error = {"message": 'It "broke"\noff.', "type": "server_error", "param": None, "code": "upstream_interrupted"}
    named = fields(shape(include_usage=False).failed(Position(1, 2), failure))
    assert (named["id"], orjson.loads(named["data"])) == ("1-2", {"error": error})
    assert "id" not in fields(shape(include_usage=False).failed(None, failure))


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_reset_is_an_event_of_its_own_that_clients_can_read_as_an_empty_chunk(include_usage: bool) -> None:
    found = fields(shape(include_usage=include_usage).anew(Position(2, 0)))
    assert (found["id"], found["event"]) == ("2-0", "reset")
    chunk = ChatCompletionChunk.model_validate_json(found["data"], strict=True)
    assert (chunk.choices[0].delta.content, chunk.choices[0].finish_reason) == (None, None)


def test_models_are_listed_as_openai_lists_them() -> None:
    listed = orjson.loads(model_list(["a/b:c", "d"]))
    assert (listed["object"], [row["id"] for row in listed["data"]]) == ("list", ["a/b:c", "d"])
    for row in listed["data"]:
        Model.model_validate_json(orjson.dumps(row), strict=True)
    assert Model.model_validate_json(model_object("d"), strict=True).id == "d"


def test_models_are_valid_by_openais_published_schema() -> None:
    published("ListModelsResponse").validate(orjson.loads(model_list(["a"])))
    published("Model").validate(orjson.loads(model_object("a")))
