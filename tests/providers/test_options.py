"""What a backend's `options` change in a request: rows of data for servers that differ, and vLLM's own fields."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.config import HOSTED_URLS, Backend, Kind
from common.contracts import JsonObject, Priority
from tests.providers.stages import backend
from workers.providers import openai, vllm
from workers.providers.base import Call

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
@pytest.mark.parametrize("path", [None, 3, ["v1"]])
def test_a_path_that_is_no_text_is_refused_at_the_start(kind: Kind, path: Any) -> None:
    with pytest.raises(ValueError, match=r"options\.path"):
        Backend(name="b", kind=kind, base_url="https://x.example", options={"path": path})


def test_a_path_among_the_options_of_another_kind_is_its_own_affair() -> None:
    where = Backend(name="b", kind="ollama", base_url="https://x.example/v1", options={"path": 3})
    assert (where.url, where.path_of("/v1/models")) == ("https://x.example", "/v1/models")
