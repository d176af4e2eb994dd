"""What a backend's `options` change in a request: rows of data for servers that differ, and vLLM's own fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import yaml
from pydantic import ValidationError

from common.contracts import JsonObject, Priority
from common.servers import HOSTED_URLS, Backend, Kind
from tests.providers.stages import backend
from workers.providers import anthropic_request, openai, vllm
from workers.providers.base import Call
from workers.providers.openai_request import to_embedding_wire, to_open_embedding_wire

SECRET = "not-for-any-log"
USER: JsonObject = {"role": "user", "content": "Hi"}
DEVELOPER: JsonObject = {"role": "developer", "content": "Be brief."}


def _call(body: JsonObject, options: JsonObject, kind: str = "openai", **more: Any) -> Call:
    where = backend(kind, "http://127.0.0.1:1", options=options)
    return Call(where, "/v1/chat/completions", "m", {"messages": [USER], **body}, stream=False, timeout_s=1, **more)


@pytest.mark.parametrize(
    ("options", "body", "wire"),
    [
        ({"rename": {"max_completion_tokens": "max_tokens"}}, {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"rename": {"max_completion_tokens": "max_tokens"}}, {"max_tokens": 4}, {"max_tokens": 4}),
        ({"rename": {"seed": "random_seed"}, "drop": ["user", "store"]}, {"seed": 1, "user": "u"}, {"random_seed": 1}),
        ({"pass": ["top_k"]}, {"top_k": 4, "min_p": 0.1}, {"top_k": 4}),
        ({"pass": ["api_base", "x"]}, {"api_base": "http://169.254.169.254", "x": 1}, {"x": 1}),
        (
            {"set": {"temperature": 0.2, "provider": {"sort": "price"}}},
            {},
            {"temperature": 0.2, "provider": {"sort": "price"}},
        ),
        ({"set": {"temperature": 0.2}}, {"temperature": 1}, {"temperature": 1}),
        ({"roles": {"developer": "system"}}, {"messages": 5}, {"messages": 5}),
        (
            {"roles": {"developer": "system"}},
            {"messages": [DEVELOPER, USER]},
            {"messages": [{"role": "system", "content": "Be brief."}, USER]},
        ),
    ],
)
def test_a_row_of_options_says_what_a_server_wants_otherwise(
    options: JsonObject, body: JsonObject, wire: JsonObject
) -> None:
    assert openai.to_wire(_call(body, options)) == {"messages": [USER], "model": "m", "stream": False, **wire}


def test_a_server_that_knows_no_stream_options_is_not_sent_them() -> None:
    where = backend("openai", "http://127.0.0.1:1", options={"drop": ["stream_options"]})
    body = {"messages": [USER]}
    wire = openai.to_wire(Call(where, "/v1/chat/completions", "m", body, stream=True, timeout_s=1))
    assert wire == {"messages": [USER], "model": "m", "stream": True}


def test_the_public_request_stays_as_it_was() -> None:
    body = {"messages": [DEVELOPER], "seed": 1}
    before = orjson.dumps(body)
    openai.to_wire(_call(body, {"rename": {"seed": "random_seed"}, "roles": {"developer": "system"}, "set": {"a": 1}}))
    assert orjson.dumps(body) == before


# --- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp"])
@pytest.mark.parametrize(
    ("options", "body", "wire"),
    [
        ({"drop": ["user", "encoding_format"]}, {"user": "u"}, {"encoding_format": None}),
        ({"rename": {"dimensions": "output_dimension"}}, {"dimensions": 8}, {"output_dimension": 8}),
        ({"set": {"input_type": "query", "user": "us"}}, {"user": "u"}, {"input_type": "query", "user": "u"}),
        ({"set": {"temperature": 0.2, "reasoning_effort": "low"}}, {}, {}),
        ({"roles": {"developer": "system"}}, {}, {}),
    ],
)
def test_a_row_of_options_holds_for_embeddings_too(
    options: JsonObject, body: JsonObject, wire: JsonObject, kind: Kind
) -> None:
    expected: JsonObject = {"input": ["x"], "model": "m", "encoding_format": "base64", **wire}
    expected = {key: value for key, value in expected.items() if value is not None}
    assert _embedding(kind, {"input": ["x"], **body}, options) == expected


def test_a_field_that_callers_may_use_passes_with_embeddings_too() -> None:
    body = {"input": ["x"], "input_type": "query", "api_base": "http://169.254.169.254", "embed_dtype": "float16"}
    wire = _embedding("openai", body, {"pass": ["input_type", "api_base", "embed_dtype"]})
    assert wire == {"input": ["x"], "input_type": "query", "model": "m", "encoding_format": "base64"}
    assert "input_type" not in _embedding("openai", body, {})


def _embedding(kind: str, body: JsonObject, options: JsonObject) -> JsonObject:
    where = backend(kind, "http://127.0.0.1:1", options=options)
    to_wire = to_embedding_wire if kind == "openai" else to_open_embedding_wire
    return to_wire(Call(where, "/v1/embeddings", "m", body, stream=False, timeout_s=1))


def _calling(*ids: str) -> list[JsonObject]:
    called = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    results: list[JsonObject] = [{"role": "tool", "tool_call_id": one, "content": one} for one in ids]
    return [{"role": "assistant", "content": None, "tool_calls": [{"id": one, **called} for one in ids]}, *results]


@pytest.mark.parametrize(("kind", "to_wire"), [("openai", openai.to_wire), ("vllm", vllm.to_wire)])
def test_ids_of_calls_are_of_the_form_that_a_server_insists_on(
    kind: str, to_wire: Callable[[Call], JsonObject]
) -> None:
    messages = _calling("toolu_01A09q90qw90lq917835lq9", "D681PevKs", "call_1")
    turn, *results = to_wire(_call({"messages": messages}, {"tool_ids": 9}, kind))["messages"]
    ids = [call["id"] for call in turn["tool_calls"]]
    assert [result["tool_call_id"] for result in results] == ids
    assert ids[1] == "D681PevKs" and len({*ids}) == 3
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)
    assert to_wire(_call({"messages": messages}, {}, kind))["messages"] == messages


@pytest.mark.parametrize("length", [0, 65, "9.0", True])
def test_a_length_of_ids_that_is_none_is_refused_at_the_start(length: Any) -> None:
    with pytest.raises(ValueError, match=r"options\.tool_ids"):
        backend("openai", "http://127.0.0.1:1", options={"tool_ids": length})


# --- vLLM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", list(Priority))
def test_vllm_is_told_the_jobs_class_where_it_queues_by_it(priority: Priority) -> None:
    told = vllm.to_wire(_call({"priority": -1_000}, {"priority": True}, "vllm", priority=priority))
    assert told["priority"] == int(priority)


def test_a_caller_never_chooses_its_turn_in_vllms_queue() -> None:
    assert "priority" not in vllm.to_wire(_call({"priority": -1_000}, {}, "vllm"))


def _salt(tenant: str, secret: Any = True, **body: Any) -> str:
    return vllm.to_wire(_call(body, {"cache_salt": secret}, "vllm", tenant=tenant))["cache_salt"]


def test_each_tenant_has_a_cache_of_its_own_in_vllm() -> None:
    assert _salt("a") == _salt("a")
    assert (
        len(
            {_salt("a"), _salt("b"), _salt("a", "secret"), _salt("a", cache_salt="mine"), _salt("b", cache_salt="mine")}
        )
        == 5
    )
    assert _salt("b", cache_salt=_salt("a")) != _salt("a")


def test_without_that_option_a_callers_own_salt_passes() -> None:
    assert vllm.to_wire(_call({"cache_salt": "mine"}, {}, "vllm"))["cache_salt"] == "mine"
    assert "cache_salt" not in vllm.to_wire(_call({}, {}, "vllm", tenant="a"))


# --- where they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTED_URLS)
def test_a_hosted_kind_has_an_address_of_its_own(kind: Kind) -> None:
    assert Backend(name="b", kind=kind).url == HOSTED_URLS[kind]
    assert Backend(name="b", kind=kind, base_url="http://proxy:9/").url == "http://proxy:9"


@pytest.mark.parametrize("kind", ["vllm", "ollama", "llamacpp"])
def test_a_server_of_ones_own_must_be_named(kind: Kind) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Backend(name="b", kind=kind)


@pytest.mark.parametrize(
    ("kind", "version"),
    [("openai", "/v1"), ("vllm", "/v1"), ("anthropic", "/v1"), ("gemini", "/v1beta"), ("cohere", "/v2")],
)
def test_an_address_may_be_copied_with_its_version(kind: Kind, version: str) -> None:
    assert Backend(name="b", kind=kind, base_url=f"https://x.example/api{version}/").url == "https://x.example/api"


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp"])
@pytest.mark.parametrize("path", [3, ["v1"]])
def test_a_path_that_is_no_text_is_refused_at_the_start(kind: Kind, path: Any) -> None:
    with pytest.raises(ValueError, match=r"options\.path"):
        Backend(name="b", kind=kind, base_url="https://x.example", options={"path": path})


# --- what they may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("openai", {"dorp": ["n"]}, "options.dorp: backends of kind 'openai' have no such option; they have drop, "),
        ("openai", {"cache_salt": True}, "options.cache_salt: backends of kind 'openai' have no such option"),
        ("openai", {"drop": "presence_penalty"}, "options.drop: a list of texts is expected"),
        ("openai", {"pass": "top_k"}, "options.pass: a list of texts is expected"),
        ("anthropic", {"drop": ["n", 3]}, "options.drop: a list of texts is expected"),
        ("openai", {"rename": ["a"]}, "options.rename: a mapping of texts to texts is expected"),
        ("openai", {"roles": {"developer": None}}, "options.roles: a mapping of texts to texts is expected"),
        ("llamacpp", {"set": ["a"]}, "options.set: a mapping is expected"),
        ("vllm", {"priority": "yes"}, "options.priority: true or false is expected"),
        ("vllm", {"cache_salt": ""}, "options.cache_salt: true, false or a secret text is expected"),
        ("anthropic", {"max_tokens": True}, "options.max_tokens: a whole number above 0 is expected"),
        ("anthropic", {"thinking": True}, "options.thinking: one of adaptive, budget, off is expected"),
        ("gemini", {"safety_settings": {"category": "x"}}, "options.safety_settings: a list of mappings is expected"),
        ("cohere", {"documents": "x"}, "options.documents: a list is expected"),
        ("ollama", {"drop": ["n"]}, "options.drop: backends of kind 'ollama' have no such option"),
        ("ollama", {"keep_alive": True}, "options.keep_alive: a number or a text"),
        ("echo", {"tokns": 3}, "options.tokns: backends of kind 'echo' have no such option"),
    ],
)
def test_an_option_that_would_do_nothing_or_something_else_is_refused_at_the_start(
    kind: Kind, options: JsonObject, told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"backend 'b': {told}")):
        Backend(name="b", kind=kind, base_url="https://x.example", options=options)


def test_the_refusal_of_an_option_does_not_repeat_it() -> None:
    with pytest.raises(ValidationError, match="cache_salt") as refused:
        Backend(name="b", kind="vllm", base_url="http://x", options={"cache_salt": [SECRET]})
    assert SECRET not in refused.value.errors(include_input=False)[0]["msg"]


def test_thinking_may_be_off_as_yaml_reads_it() -> None:
    options = yaml.safe_load("thinking: off")
    assert options == {"thinking": False}
    where = Backend(name="b", kind="anthropic", options=options)
    body = {"messages": [USER], "reasoning_effort": "high"}
    wire = anthropic_request.to_wire(Call(where, "/v1/chat/completions", "m", body, stream=False, timeout_s=1))
    assert not {"thinking", "output_config"} & wire.keys()


def test_ollamas_own_options_are_its_own_affair() -> None:
    options = {"num_ctx": 8_192, "stop": ["a"], "whatever": {}, "keep_alive": -1, "think": "low"}
    assert Backend(name="b", kind="ollama", base_url="http://x", options=options).options == options
